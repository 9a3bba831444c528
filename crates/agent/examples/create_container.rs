//! Measures container creation: `create_container BUNDLE COUNT`.
//!
//! BUNDLE is an OCI bundle whose `rootfs` directory is the image. Prints one line of microseconds for each container:
//! the request to "ready before exec", the root file system's part of it, the start to exec, and all to the end of the
//! program. Meant for the instruction-counted clock (docs/testing.md); the agent's binary is taken from this one's
//! directory.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nacre_agent::container::{
    ChildStdio, CreateInput, Guest, RootfsSource, SharedMemory, Sockets, Volumes, create, warm_up,
};
use nacre_agent::process::{Children, reap_for_ever};
use rustix::fs::{Mode, OFlags, open};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let bundle = PathBuf::from(args.next().context("usage: create_container BUNDLE COUNT")?);
    let count: u32 = args.next().context("usage: create_container BUNDLE COUNT")?.parse()?;
    let exe = std::env::current_exe()?;
    let agent_exe = exe.parent().and_then(|dir| dir.parent()).context("no directory")?.join("nacre-agent");
    let children = Arc::new(Children::default());
    let reaped = Arc::clone(&children);
    std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(reap_for_ever(reaped))?)
    });
    let state_dir = PathBuf::from("/run/nacre-bench");
    std::fs::create_dir_all(&state_dir)?;
    let unified = PathBuf::from("/sys/fs/cgroup/unified");
    let cgroup_root = if unified.exists() { unified } else { "/sys/fs/cgroup".into() };
    let guest = Guest {
        agent_exe,
        cgroup_root,
        state_dir,
        shares_dir: bundle.clone(),
        children,
        shared_memory: Arc::new(SharedMemory::new("/run/nacre-bench/shm".into())),
        sockets: Arc::new(Sockets::new("/run/nacre-bench/sockets".into())),
        volumes: Arc::new(Volumes::new("/run/nacre-bench/volumes".into())),
        launcher: Arc::default(),
        tracers: Arc::default(),
    };
    let spec_json = std::fs::read(bundle.join("config.json"))?;
    let begun = Instant::now();
    warm_up(&guest)?;
    println!("warm_up_us {}", begun.elapsed().as_micros());
    println!("create_us rootfs_us start_us total_us");
    for number in 0..count {
        run(&guest, spec_json.clone(), number)?;
    }
    Ok(())
}

fn run(guest: &Guest, spec_json: Vec<u8>, number: u32) -> Result<()> {
    let null =
        || -> Result<OwnedFd> { Ok(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?) };
    let input = CreateInput {
        id: format!("bench-{number}").parse()?,
        spec_json,
        rootfs: RootfsSource::Shared { name: "rootfs".into() },
        files: Vec::new(),
        devices: Vec::new(),
        stdio: ChildStdio::Files { stdin: null()?, stdout: null()?, stderr: null()? },
    };
    let begun = Instant::now();
    let created = create(guest, input)?;
    let start = Instant::now();
    created.init.starter.start()?;
    let start_us = start.elapsed().as_micros();
    ensure!(created.init.child.wait_ended(Duration::from_secs(60)), "the program does not end");
    let total_us = begun.elapsed().as_micros();
    created.container.remove()?;
    println!("{} {} {start_us} {total_us}", created.create_us, created.rootfs_us);
    Ok(())
}
