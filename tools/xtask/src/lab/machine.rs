//! The outer QEMU: one emulated machine with its disk, its shares and its outputs.
//!
//! QEMU and virtiofsd come out of the lab's own root file system and run through its own loader: the host's may
//! be years older, half as fast, or not there at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Kind;
use super::image::Image;
use crate::process::tail;
use crate::project::Project;

/// Memory of the machine in MiB.
const MEMORY_MIB: u32 = 3072;

/// What the kernel is told: no hardware that is not there, no self tests, no mitigations (the code is ours).
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=4 reboot=t panic=-1 cryptomgr.notests i8042.noaux \
     i8042.nopnp 8250.nr_uarts=1 initcall_blacklist=jent_mod_init,load_system_certificate_list,ima_init,\
     init_encrypted mitigations=off audit=0 selinux=0 apparmor=0 nokaslr tsc=reliable no_timer_check";

/// As fast as it can. Without ERMS and FSRM kernels clear and copy pages by eight bytes a step instead of one: the emulator
/// carries out each step by itself, and one that hits a page with translated code (what a VM that is gone has left) is
/// dear. A start of a VM takes half the time.
const FAST: &[&str] =
    &["-cpu", "max,la57=off,erms=off,fsrm=off", "-accel", "tcg,thread=multi,tb-size=512", "-smp", "2"];

/// One nanosecond for each instruction. The processor stays what every figure was measured on.
const COUNTED: &[&str] = &[
    "-cpu",
    "max,la57=off",
    "-accel",
    "tcg,thread=single,tb-size=512",
    "-smp",
    "1",
    "-icount",
    "shift=0,sleep=off",
];

/// The disk of a machine.
pub(super) enum Disk<'a> {
    /// The image, with every write thrown away at the end.
    Throwaway(&'a Path),
    /// A file that keeps what is written.
    Kept(&'a Path),
}

/// A host directory in the machine, at the same path.
pub(super) struct Share {
    tag: &'static str,
    path: PathBuf,
}

/// The tree, and the target directory where it is outside of the tree.
pub(super) fn shares(project: &Project) -> Vec<Share> {
    let mut shares = vec![Share { tag: "tree", path: project.root.clone() }];
    if !project.target.starts_with(&project.root) {
        shares.push(Share { tag: "target", path: project.target.clone() });
    }
    shares
}

/// The file that tells L1 what to mount.
pub(super) fn shares_text(shares: &[Share]) -> String {
    shares.iter().map(|share| format!("{} {}\n", share.tag, share.path.display())).collect()
}

/// A machine to be.
pub(super) struct Machine<'a> {
    pub(super) image: &'a Image,
    /// Directory of its sockets and logs.
    pub(super) state: &'a Path,
    pub(super) disk: Disk<'a>,
    pub(super) kind: Kind,
    pub(super) shares: Vec<Share>,
    /// Further QEMU arguments.
    pub(super) extra: Vec<String>,
}

/// A machine that runs. Dropping it leaves it alone; [`Running::kill`] ends it.
pub(super) struct Running {
    pub(super) qemu: Child,
    servers: Vec<Child>,
}

impl Running {
    pub(super) fn kill(&mut self) {
        for child in std::iter::once(&mut self.qemu).chain(&mut self.servers) {
            // It has ended already: what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits for the file servers, which end when QEMU has.
    pub(super) fn reap(&mut self) {
        for server in &mut self.servers {
            let _ = server.wait();
        }
    }
}

impl Machine<'_> {
    /// Console text of the machine.
    pub(super) fn console(&self) -> PathBuf {
        self.state.join("console.log")
    }

    /// What QEMU itself says.
    pub(super) fn log(&self) -> PathBuf {
        self.state.join("qemu.log")
    }

    /// Starts the file servers, then QEMU, in a process group of their own.
    pub(super) fn start(&self) -> Result<Running> {
        let mut servers = Vec::new();
        for share in &self.shares {
            match self.serve(share) {
                Ok(server) => servers.push(server),
                Err(error) => {
                    servers.iter_mut().for_each(end);
                    return Err(error);
                }
            }
        }
        match self.qemu() {
            Ok(qemu) => Ok(Running { qemu, servers }),
            Err(error) => {
                servers.iter_mut().for_each(end);
                Err(error)
            }
        }
    }

    fn socket(&self, share: &Share) -> PathBuf {
        self.state.join(format!("{}.sock", share.tag))
    }

    fn serve(&self, share: &Share) -> Result<Child> {
        let socket = self.socket(share);
        let log = self.state.join(format!("{}.log", share.tag));
        let mut command = self.image.program("usr/libexec/virtiofsd");
        command.arg(format!("--socket-path={}", socket.display()));
        command.arg(format!("--shared-dir={}", share.path.display()));
        command.args(["--sandbox=chroot", "--cache=auto", "--xattr", "--inode-file-handles=never"]);
        let mut server = spawn(command, &log)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            if server.try_wait()?.is_some() || Instant::now() > deadline {
                end(&mut server);
                bail!("the file server of {} did not start: {}", share.path.display(), tail(&log, 3));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn qemu(&self) -> Result<Child> {
        let mut command = self.image.program("usr/bin/qemu-system-x86_64");
        command.arg("-L").arg(self.image.rootfs().join("usr/share/qemu"));
        command.arg("-L").arg(self.image.rootfs().join("usr/share/seabios"));
        command.args(["-M", "q35"]).args(match self.kind {
            Kind::Kept | Kind::Fresh => FAST,
            Kind::Counted => COUNTED,
        });
        command.arg("-m").arg(MEMORY_MIB.to_string());
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
        ]);
        command.arg("-serial").arg(format!("file:{}", self.console().display()));
        command.arg("-kernel").arg(self.image.vmlinux());
        command.arg("-initrd").arg(self.state.join("initrd")).arg("-append").arg(KERNEL_ARGUMENTS);
        let (disk, snapshot) = match self.disk {
            Disk::Throwaway(path) => (path, "on"),
            Disk::Kept(path) => (path, "off"),
        };
        command.arg("-drive").arg(format!(
            "if=none,id=root,file={},format=raw,cache=unsafe,discard=unmap,snapshot={snapshot}",
            disk.display()
        ));
        command.args(["-device", "virtio-blk-pci,drive=root,disable-legacy=on", "-device", "virtio-rng-pci"]);
        self.add_shares(&mut command);
        command.args(&self.extra);
        spawn(command, &self.log())
    }

    fn add_shares(&self, command: &mut Command) {
        if self.shares.is_empty() {
            return;
        }
        // vhost-user servers map the guest's memory.
        command.arg("-object").arg(format!("memory-backend-memfd,id=mem,size={MEMORY_MIB}M,share=on"));
        command.args(["-machine", "memory-backend=mem"]);
        for share in &self.shares {
            let (tag, socket) = (share.tag, self.socket(share));
            command.arg("-chardev").arg(format!("socket,id=fs-{tag},path={}", socket.display()));
            command.arg("-device").arg(format!("vhost-user-fs-pci,chardev=fs-{tag},tag={tag}"));
        }
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Starts a process that may outlive this one: own process group, no terminal, output in a file.
fn spawn(mut command: Command, log: &Path) -> Result<Child> {
    use std::os::unix::process::CommandExt as _;
    let file = fs::File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
    command.spawn().with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))
}
