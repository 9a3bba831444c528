//! Messages that do not parse, and requests that are not served.

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, WriteIn};
use nix::errno::Errno;
use vm_memory_fs::{ByteValued, GuestAddress};

use crate::guest::{Guest, ROOM, snapshot};

const HEADER: usize = size_of::<InHeader>();

fn mount() -> (tempfile::TempDir, Guest) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "inside").unwrap();
    let guest = Guest::mount(dir.path(), false);
    (dir, guest)
}

/// Opcodes that have an answer.
fn answered() -> impl Iterator<Item = u32> {
    let silent = [Opcode::Forget as u32, Opcode::BatchForget as u32, Opcode::Interrupt as u32];
    (0..64).filter(move |opcode| !silent.contains(opcode))
}

#[test]
fn unknown_opcodes_are_not_served() {
    let (_dir, mut guest) = mount();
    let known = [7, 19, Opcode::CopyFileRange as u32, 50, 51, 52, 53, 63, 64, 4096, 436_207_616, u32::MAX];
    for opcode in known {
        assert_eq!(guest.call_number(opcode, guest.share, &[&[0; 128]]), Err(Errno::ENOSYS), "{opcode}");
    }
}

#[test]
fn requests_that_were_not_negotiated_are_refused() {
    let (_dir, mut guest) = mount();
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    let expected = [
        (Opcode::Bmap, Errno::ENOSYS),
        (Opcode::Poll, Errno::ENOSYS),
        (Opcode::NotifyReply, Errno::ENOSYS),
        (Opcode::Ioctl, Errno::ENOTTY),
        (Opcode::SetupMapping, Errno::EINVAL),
        (Opcode::RemoveMapping, Errno::EINVAL),
    ];
    for (opcode, errno) in expected {
        assert_eq!(guest.call(opcode, file, &[&[0; 128]]), Err(errno), "{opcode:?}");
    }
}

#[test]
fn request_without_its_body_is_answered_with_an_error() {
    let (dir, mut guest) = mount();
    let before = snapshot(dir.path());
    let whole = [Opcode::Readlink, Opcode::Statfs, Opcode::Destroy].map(|opcode| opcode as u32);
    for opcode in answered().filter(|opcode| !whole.contains(opcode)) {
        let result = guest.call_number(opcode, guest.share, &[]);
        assert!(result.is_err(), "{opcode}: {result:?}");
    }
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn header_that_is_cut_is_given_back() {
    let (_dir, mut guest) = mount();
    let request = guest.message(Opcode::Lookup as u32, guest.share, HEADER + 5, b"file\0");
    for len in 1..HEADER {
        assert!(guest.exchange(&request[..len], ROOM).is_empty(), "{len} bytes");
    }
    assert_eq!(guest.lookup(1, b"s\0"), Ok(guest.share));
}

#[test]
fn length_that_lies_is_refused() {
    let (_dir, mut guest) = mount();
    for len in [0, 1, HEADER - 1, HEADER, HEADER + 6, HEADER + 100_000, 1 << 21, u32::MAX as usize] {
        let request = guest.message(Opcode::Lookup as u32, guest.share, len, b"file\0");
        let reply = guest.exchange(&request, ROOM);
        let result = guest.read_reply(&reply);
        assert!(matches!(result, Err(Errno::EINVAL | Errno::ENOMEM)), "{len}: {result:?}");
    }
}

#[test]
fn reply_without_room_is_not_written() {
    let (_dir, mut guest) = mount();
    for room in [0, 1, 15] {
        let request = guest.message(Opcode::Lookup as u32, guest.share, HEADER + 5, b"file\0");
        assert!(guest.exchange(&request, room).is_empty(), "room for {room}");
    }
    for room in [16, 17, 100] {
        let request = guest.message(Opcode::Lookup as u32, guest.share, HEADER + 5, b"file\0");
        let reply = guest.exchange(&request, room);
        assert_eq!(guest.read_reply(&reply), Err(Errno::EINVAL), "room for {room}");
    }
}

#[test]
fn request_of_many_mebibytes_is_refused_unread() {
    let (dir, mut guest) = mount();
    // The same two mebibytes again and again.
    let mut chain = vec![(GuestAddress(0x1_0000), 2 << 20, 0); 7];
    chain.push((GuestAddress(8 << 20), ROOM, 2));
    let body = [WriteIn { size: 1 << 30, ..WriteIn::default() }.as_slice(), &[1; 4096]].concat();
    for opcode in [Opcode::Write, Opcode::Ioctl, Opcode::Setxattr] {
        let request = guest.message(opcode as u32, guest.share, HEADER + body.len(), &body);
        guest.put(&request);
        let reply = guest.send(&chain);
        assert_eq!(guest.read_reply(&reply), Err(Errno::EINVAL), "{opcode:?}");
    }
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"inside");
}

#[test]
fn buffers_outside_of_memory_are_given_back() {
    let (_dir, mut guest) = mount();
    for address in [16 << 20, (16 << 20) - 20, u64::MAX - 4, 1 << 40] {
        assert!(guest.send(&vec![(GuestAddress(address), 64, 0), (GuestAddress(8 << 20), 64, 2)]).is_empty());
        assert!(
            guest.send(&vec![(GuestAddress(0x1_0000), 64, 0), (GuestAddress(address), 64, 2)]).is_empty()
        );
    }
    assert_eq!(guest.lookup(1, b"s\0"), Ok(guest.share));
}

#[test]
fn f14_destroy_is_answered_and_forgets_all() {
    let (_dir, mut guest) = mount();
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    assert_eq!(guest.call(Opcode::Destroy, 0, &[]), Ok(vec![]));
    assert_eq!(guest.open(file, libc::O_RDONLY), Err(Errno::EBADF));
}

#[test]
fn names_without_an_end_and_random_bodies_do_not_stop_the_server() {
    let (_dir, mut guest) = mount();
    // A fixed sequence (xorshift): the same bytes at each run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..4000 {
        let opcode = (next() % 56) as u32;
        // Not DESTROY and not INIT: they would make a new file system.
        if [Opcode::Destroy as u32, Opcode::Init as u32].contains(&opcode) {
            continue;
        }
        let body: Vec<u8> =
            (0..next() % 96).map(|_| if next() % 3 == 0 { 0 } else { next() as u8 }).collect();
        let node = [guest.share, 1, next()][(next() % 3) as usize];
        let request = guest.message(opcode, node, HEADER + body.len(), &body);
        guest.exchange(&request, ROOM);
    }
    assert_eq!(guest.lookup(1, b"s\0"), Ok(guest.share));
}
