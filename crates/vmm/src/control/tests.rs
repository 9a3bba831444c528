use super::*;
use nacre_protocol::control::{MAX_MESSAGE, VmStats};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use std::os::fd::AsRawFd;

fn pair() -> (OwnedFd, Socket) {
    let (owner, vmm) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    (owner, Socket::new(vmm).unwrap())
}

fn tell(owner: &OwnedFd, bytes: &[u8]) {
    assert_eq!(send(owner.as_raw_fd(), bytes, MsgFlags::empty()).unwrap(), bytes.len());
}

fn hear(owner: &OwnedFd) -> FromVmm {
    let mut bytes = vec![0; MAX_MESSAGE];
    let count = recv(owner.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).unwrap();
    serde_json::from_slice(&bytes[..count]).unwrap()
}

fn failure_kind(message: FromVmm) -> (u64, FailureKind) {
    match message {
        FromVmm::Reply { id, result: Err(failure) } => (id, failure.kind),
        other => panic!("not a failure: {other:?}"),
    }
}

#[test]
fn requests_before_the_start_are_refused() {
    let (owner, socket) = pair();
    tell(&owner, br#"{"id":4,"request":{"op":"stats"}}"#);
    nix::sys::socket::shutdown(owner.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
    assert!(wait_for_start(&socket).unwrap().is_none());
    assert_eq!(failure_kind(hear(&owner)), (4, FailureKind::State));
}

#[test]
fn malformed_requests_are_answered_and_skipped() {
    let (owner, socket) = pair();
    for bytes in [&b"{"[..], b"\xff\xfe", br#"{"id":1,"request":{"op":"exec"}}"#] {
        tell(&owner, bytes);
    }
    tell(&owner, br#"{"id":9,"request":{"op":"resume"}}"#);
    let (envelope, fds) = receive(&socket).unwrap().unwrap();
    assert_eq!((envelope.id, envelope.request, fds.len()), (9, Request::Resume, 0));
    for _ in 0..3 {
        assert_eq!(failure_kind(hear(&owner)), (0, FailureKind::Invalid));
    }
}

#[test]
fn too_long_message_breaks_the_socket() {
    let (owner, socket) = pair();
    tell(&owner, &vec![b' '; MAX_MESSAGE + 1]);
    assert!(matches!(receive(&socket), Err(ControlError::TooLong)));
}

#[test]
fn owner_that_is_gone_is_the_end_of_file() {
    let (owner, socket) = pair();
    drop(owner);
    assert!(wait_for_start(&socket).unwrap().is_none());
}

#[test]
fn other_sockets_are_no_control_socket() {
    let (stream, _) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(Socket::new(stream.into()), Err(ControlError::NotASocket)));
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(Socket::new(file.into()), Err(ControlError::NotASocket)));
}

#[test]
fn reply_repeats_the_number() {
    let (owner, socket) = pair();
    socket.send(&reply(7, Ok(Reply::Stats(VmStats::default())))).unwrap();
    assert!(matches!(hear(&owner), FromVmm::Reply { id: 7, result: Ok(Reply::Stats(_)) }));
}
