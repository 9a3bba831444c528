//! Plays the owner of a VMM process: starts it, hands descriptors over, asks, listens.

#![allow(dead_code, reason = "each test uses the part that it needs")]
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]
#![allow(unreachable_pub, reason = "shared by tests and examples, which are crates of their own")]

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use nacre_protocol::control::{Envelope, Event, ExitReason, Failure, FromVmm, MAX_MESSAGE, Reply, Request};
use nacre_protocol::ports::CONTROL_PORT;
use nacre_protocol::vm::{DiskConfig, Extent, FdIndex, HostPort, KernelLog, VmConfig, VsockConfig};
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, recv, sendmsg, socketpair,
};

pub mod kernel;
mod sys;

/// A configuration and its descriptors.
pub struct Setup {
    pub config: VmConfig,
    pub fds: Vec<OwnedFd>,
    /// Where the guest's serial text arrives.
    pub serial: File,
    /// The agent's side would be behind this.
    pub agent: UnixStream,
    _dir: tempfile::TempDir,
}

impl Setup {
    /// One vCPU, 64 MiB, no optional device, no jail.
    pub fn new(kernel: File, initramfs: File) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("vsock")).unwrap();
        let (agent, agent_vmm) = UnixStream::pair().unwrap();
        let (serial, serial_vmm) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let fds: Vec<OwnedFd> =
            vec![kvm.into(), kernel.into(), initramfs.into(), serial_vmm, listener.into(), agent_vmm.into()];
        let config = VmConfig {
            vcpus: 1,
            memory_mib: 64,
            kvm: FdIndex(0),
            kernel: FdIndex(1),
            initramfs: FdIndex(2),
            kernel_log: KernelLog::Quiet,
            serial: FdIndex(3),
            vsock: VsockConfig {
                listener: FdIndex(4),
                host_ports: vec![HostPort { port: CONTROL_PORT, socket: FdIndex(5) }],
            },
            disks: Vec::new(),
            nets: Vec::new(),
            fs: None,
            balloon: false,
            rng: false,
            console: None,
            hotplug_slots: 0,
            jail: None,
        };
        Self { config, fds, serial: File::from(serial), agent, _dir: dir }
    }

    /// Adds a descriptor.
    pub fn fd(&mut self, fd: impl Into<OwnedFd>) -> FdIndex {
        self.fds.push(fd.into());
        FdIndex(self.fds.len() as u32 - 1)
    }

    /// Adds a disk of one whole file.
    pub fn disk(&mut self, id: &str, file: File, read_only: bool) {
        let length_bytes = file.metadata().unwrap().len();
        let file = self.fd(file);
        let extents = vec![Extent { file, length_bytes }];
        self.config.disks.push(DiskConfig { id: id.to_owned(), extents, read_only });
    }
}

/// A running VMM process.
pub struct Owner {
    pub child: Child,
    socket: Option<OwnedFd>,
    next_id: u64,
    pub events: Vec<Event>,
}

impl Owner {
    /// Starts the program with a control socket at descriptor 3.
    pub fn spawn(program: &Path) -> Self {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let mut command = Command::new(program);
        sys::pass_control(&mut command, &theirs);
        let child = command.spawn().unwrap();
        Self { child, socket: Some(ours), next_id: 1, events: Vec::new() }
    }

    /// Starts the machine and gives its serial output back.
    pub fn start(&mut self, setup: Setup) -> (Result<Reply, Failure>, File, UnixStream) {
        let fds: Vec<_> = setup.fds.iter().map(AsFd::as_fd).collect();
        let reply = self.request(Request::Start(Box::new(setup.config)), &fds);
        (reply, setup.serial, setup.agent)
    }

    /// Sends a request and waits for its reply; events that come before are kept.
    pub fn request(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, Failure> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&serde_json::to_vec(&Envelope { id, request }).unwrap(), fds);
        loop {
            match self.receive().expect("the VMM is gone before its reply") {
                FromVmm::Reply { id: of, result } if of == id => return result,
                FromVmm::Reply { id: of, result } => panic!("reply to {of} instead of {id}: {result:?}"),
                FromVmm::Event(event) => self.events.push(event),
            }
        }
    }

    /// Sends bytes as they are.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[] } else { &rights[..] };
        let socket = self.socket.as_ref().unwrap().as_raw_fd();
        sendmsg::<UnixAddr>(socket, &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None).unwrap();
    }

    /// The next message. None: the VMM closed its end.
    pub fn receive(&self) -> Option<FromVmm> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let count =
            recv(self.socket.as_ref().unwrap().as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap_or(0);
        (count > 0).then(|| serde_json::from_slice(&bytes[..count]).unwrap())
    }

    /// Waits for the reason of the end, and for the end.
    pub fn wait(mut self) -> (Option<ExitReason>, ExitStatus) {
        let mut reason = self.events.pop();
        while let Some(message) = self.receive() {
            if let FromVmm::Event(event) = message {
                reason = Some(event);
            }
        }
        let status = self.child.wait().unwrap();
        (reason.map(|Event::Exited(reason)| reason), status)
    }

    /// The owner dies.
    pub fn hang_up(mut self) -> ExitStatus {
        self.socket = None;
        self.child.wait().unwrap()
    }
}

/// Everything that arrives until the writer is gone.
pub fn read_all(mut serial: File) -> String {
    let mut text = Vec::new();
    serial.read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}
