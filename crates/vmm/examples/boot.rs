//! Boots a kernel in `nacre-vmm` and prints what happens, with times: a tool for measuring the start.
//!
//! `boot VMM KERNEL INITRAMFS [vcpus=N] [mem=MIB] [disk=FILE]... [rodisk=FILE]... [slots=N] [jail] [log] [rng] [balloon] [plug=FILE]`
//!
//! `plug=FILE` plugs the file as a disk when the guest says PLUG, and unplugs it when the guest says UNPLUG.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nacre_protocol::control::{Reply, Request};
use nacre_protocol::vm::{DiskConfig, Extent, FdIndex, JailConfig, KernelLog};

#[path = "../tests/owner/mod.rs"]
mod owner;

use owner::{Owner, Setup};

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(vmm), Some(kernel), Some(initramfs)) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: boot VMM KERNEL INITRAMFS [OPTION]...");
        std::process::exit(2);
    };
    let mut setup = Setup::new(open(&kernel), open(&initramfs));
    setup.config.memory_mib = 128;
    let mut plug = None;
    for arg in args {
        let (name, value) = arg.split_once('=').unwrap_or((&arg, ""));
        let number = || value.parse::<u32>().expect("a number");
        match name {
            "vcpus" => setup.config.vcpus = number() as u8,
            "mem" => setup.config.memory_mib = number(),
            "slots" => setup.config.hotplug_slots = number() as u8,
            "disk" => {
                let file = File::options().read(true).write(true).open(value).expect("disk");
                setup.disk(&format!("disk{}", setup.config.disks.len()), file, false);
            }
            "rodisk" => setup.disk(&format!("disk{}", setup.config.disks.len()), open(value), true),
            "plug" => plug = Some(File::options().read(true).write(true).open(value).expect("disk")),
            "jail" => setup.config.jail = Some(JailConfig { uid: 64000, gid: 64000 }),
            "log" => setup.config.kernel_log = KernelLog::Debug,
            "rng" => setup.config.rng = true,
            "balloon" => setup.config.balloon = true,
            _ => panic!("unknown option {arg}"),
        }
    }
    run(Path::new(&vmm), setup, plug);
}

fn open(path: &str) -> File {
    File::open(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn run(vmm: &Path, setup: Setup, plug: Option<File>) {
    let begin = Instant::now();
    let ms = move || begin.elapsed().as_secs_f64() * 1e3;
    let mut owner = Owner::spawn(vmm);
    eprintln!("[{:8.3}] spawned", ms());
    let (reply, mut serial, _agent) = owner.start(setup);
    match reply {
        Ok(Reply::Started(timings)) => eprintln!("[{:8.3}] {timings:?}", ms()),
        other => {
            eprintln!("[{:8.3}] not started: {other:?}", ms());
            return;
        }
    }
    let (tell, said) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let mut lines = Vec::new();
        while let Ok(count @ 1..) = serial.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            let _ = tell.send(text.clone());
            lines.push((ms(), text));
        }
        lines
    });
    let wait_for = |word: &str| said.iter().any(|text: String| text.contains(word));
    // The init of the test waits for a byte of time only; statistics are asked for when the guest is over or not.
    let stats = std::env::var_os("BOOT_STATS_AFTER_MS").map(|delay| {
        let delay = delay.to_str().and_then(|text| text.parse().ok()).expect("milliseconds");
        std::thread::sleep(Duration::from_millis(delay));
        owner.request(Request::Stats, &[])
    });
    let pid = owner.child.id();
    if let Some(disk) = plug {
        wait_for("PLUG");
        let extents = vec![Extent { file: FdIndex(0), length_bytes: disk.metadata().expect("disk").len() }];
        let config = DiskConfig { id: "plugged".into(), extents, read_only: false };
        let reply = owner.request(Request::PlugDisk(config), &[disk.as_fd()]);
        eprintln!("[{:8.3}] {reply:?}", ms());
        wait_for("UNPLUG");
        if let Ok(Reply::Plugged { slot }) = reply {
            eprintln!("[{:8.3}] {:?}", ms(), owner.request(Request::Pause, &[]));
            eprintln!("[{:8.3}] {:?}", ms(), owner.request(Request::Resume, &[]));
            eprintln!("[{:8.3}] {:?}", ms(), owner.request(Request::Unplug { slot }, &[]));
            eprintln!("[{:8.3}] {:?}", ms(), owner.request(Request::Unplug { slot }, &[]));
        }
    }
    if let Some(stats) = stats {
        eprintln!("[{:8.3}] {stats:?}", ms());
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        eprintln!("{smaps}");
    }
    let (reason, status) = owner.wait();
    let end = ms();
    for (at, text) in reader.join().expect("reader") {
        for line in text.lines() {
            let _ = writeln!(io::stdout(), "[{at:8.3}] {line}");
        }
    }
    eprintln!("[{end:8.3}] {reason:?}, {status}");
}
