//! The server's process, started as its owner starts it.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use nacre_protocol::fs::{Share, Start, StartReply};
use nacre_protocol::vm::FdIndex;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};

pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) owner: OwnedFd,
    /// The VMM's end of the vhost-user connection.
    pub(crate) vmm: UnixStream,
}

impl Server {
    /// Starts the server with one share; needs root, as the shim has.
    pub(crate) fn start(share: &File, read_only: bool, name: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes mount namespaces: run it as root");
        let (owner, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fs.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let vmm = UnixStream::connect(&path).unwrap();
        // The socket arrives as stdin and is moved to the descriptor that the protocol names.
        let child = Command::new("sh")
            .args(["-c", "exec \"$0\" 3<&0 </dev/null", env!("CARGO_BIN_EXE_nacre-fs")])
            .stdin(Stdio::from(theirs))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let share_entry = Share { name: name.into(), file: FdIndex(1), read_only };
        let start = Start { listener: FdIndex(0), shares: vec![share_entry] };
        let bytes = serde_json::to_vec(&start).unwrap();
        let fds: [RawFd; 2] = [listener.as_raw_fd(), share.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(owner.as_raw_fd(), &[IoSlice::new(&bytes)], &control, MsgFlags::empty(), None).unwrap();
        Self { child, owner, vmm }
    }

    pub(crate) fn reply(&self) -> StartReply {
        let mut buffer = vec![0; 4096];
        let count = recv(self.owner.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        serde_json::from_slice(&buffer[..count]).unwrap()
    }

    pub(crate) fn status_of(&self, key: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
