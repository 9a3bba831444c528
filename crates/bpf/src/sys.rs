//! bpf(2).
#![expect(unsafe_code, reason = "nothing safe wraps bpf(2)")]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::Insn;

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const LINK_CREATE: libc::c_long = 28;

/// First fields of the BPF_PROG_LOAD variant of union bpf_attr; the kernel takes a short one.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
#[derive(Default)]
pub(crate) struct ProgAttach {
    pub(crate) target_fd: u32,
    pub(crate) attach_bpf_fd: u32,
    pub(crate) attach_type: u32,
    pub(crate) attach_flags: u32,
}

/// First fields of BPF_MAP_CREATE.
#[repr(C)]
#[derive(Default)]
pub(crate) struct MapCreate {
    pub(crate) map_type: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapUpdate {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Tries where a signal interrupts the verifier, which then says EAGAIN.
const TRIES: usize = 64;

fn bpf<T>(command: libc::c_long, attr: &T) -> rustix::io::Result<libc::c_long> {
    let call = || {
        // SAFETY: private to this file, and called only with the repr(C) structs above, each of which is the
        // beginning of the bpf_attr variant of its command and without padding; every pointer in them is live.
        let ret = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
        if ret < 0 {
            return Err(std::io::Error::last_os_error()
                .raw_os_error()
                .map_or(Errno::IO, Errno::from_raw_os_error));
        }
        Ok(ret)
    };
    for _ in 1..TRIES {
        match call() {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    call()
}

/// A command that returns a new descriptor.
fn open<T>(command: libc::c_long, attr: &T) -> rustix::io::Result<OwnedFd> {
    let fd = i32::try_from(bpf(command, attr)?).map_err(|_| Errno::BADF)?;
    // SAFETY: private to this file, and used only for commands that return a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor as bpf(2) takes it.
pub(crate) fn number(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().unsigned_abs()
}

/// Loads a program of this type.
pub(crate) fn load(
    program: &[Insn],
    prog_type: u32,
    expected_attach_type: u32,
) -> rustix::io::Result<OwnedFd> {
    let attr = ProgLoad {
        prog_type,
        expected_attach_type,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..ProgLoad::default()
    };
    open(PROG_LOAD, &attr)
}

pub(crate) fn attach(attr: &ProgAttach) -> rustix::io::Result<()> {
    bpf(PROG_ATTACH, attr).map(drop)
}

pub(crate) fn detach(attr: &ProgAttach) -> rustix::io::Result<()> {
    bpf(PROG_DETACH, attr).map(drop)
}

pub(crate) fn create_map(attr: &MapCreate) -> rustix::io::Result<OwnedFd> {
    open(MAP_CREATE, attr)
}

/// Puts a socket's descriptor into an entry of a map with keys of four and values of eight bytes.
pub(crate) fn put_socket(map: &OwnedFd, key: u32, socket: &impl AsFd) -> rustix::io::Result<()> {
    let value = u64::from(number(socket));
    let attr = MapUpdate {
        map_fd: number(map),
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        ..MapUpdate::default()
    };
    bpf(MAP_UPDATE_ELEM, &attr).map(drop)
}

/// Attaches a program to `target` for as long as the link that is returned is open.
pub(crate) fn link(program: &OwnedFd, target: &impl AsFd, attach_type: u32) -> rustix::io::Result<OwnedFd> {
    let attr = LinkCreate { prog_fd: number(program), target_fd: number(target), attach_type, flags: 0 };
    open(LINK_CREATE, &attr)
}
