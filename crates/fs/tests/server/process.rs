//! The server's process, started as its owner starts it.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use nacre_protocol::fs::{Change, Order, Share, Start, StartReply, Submounts};
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
        Self::start_with(share, read_only, Submounts::AsShare, name)
    }

    /// The same, with what is mounted below the share.
    pub(crate) fn start_with(share: &File, read_only: bool, submounts: Submounts, name: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes mount namespaces: run it as root");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fs.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let vmm = UnixStream::connect(&path).unwrap();
        let (child, owner) = start();
        let share_entry =
            Share { name: name.into(), file: FdIndex(1), read_only, submounts, user_namespace: None };
        let start = Start { listener: FdIndex(0), shares: vec![share_entry] };
        order(&owner, &Order::Serve(start), &[listener.as_raw_fd(), share.as_raw_fd()]);
        Self { child, owner, vmm }
    }

    pub(crate) fn reply(&self) -> StartReply {
        reply(&self.owner)
    }

    /// Lets a second process change what this one serves.
    pub(crate) fn change(&self, add: &[(&str, &File, bool)], remove: &[&str]) -> StartReply {
        self.change_with(add, Submounts::AsShare, remove)
    }

    /// The same, with what is mounted below those that come.
    pub(crate) fn change_with(
        &self,
        add: &[(&str, &File, bool)],
        submounts: Submounts,
        remove: &[&str],
    ) -> StartReply {
        let entry = |(at, (name, _, read_only)): (usize, &(&str, &File, bool))| Share {
            name: (*name).to_owned(),
            file: FdIndex(at as u32 + 1),
            read_only: *read_only,
            submounts,
            user_namespace: None,
        };
        let entries = add.iter().enumerate().map(entry).collect();
        let files: Vec<&File> = add.iter().map(|(_, file, _)| *file).collect();
        self.change_to(entries, &files, remove)
    }

    /// Adds a share whose ids are those of a user namespace.
    pub(crate) fn add_mapped(&self, name: &str, file: &File, user_namespace: &File) -> StartReply {
        let share = Share {
            name: name.to_owned(),
            file: FdIndex(1),
            read_only: false,
            submounts: Submounts::AsShare,
            user_namespace: Some(FdIndex(2)),
        };
        self.change_to(vec![share], &[file, user_namespace], &[])
    }

    fn change_to(&self, add: Vec<Share>, files: &[&File], remove: &[&str]) -> StartReply {
        let (mut child, owner) = start();
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let remove = remove.iter().map(|name| (*name).to_owned()).collect();
        let change = Change { server: FdIndex(0), add, remove };
        let mut fds = vec![pidfd.as_raw_fd()];
        fds.extend(files.iter().map(|file| file.as_raw_fd()));
        order(&owner, &Order::Change(change), &fds);
        let reply = reply(&owner);
        assert_eq!(child.wait().unwrap().success(), reply.is_ok());
        reply
    }

    pub(crate) fn status_of(&self, key: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned()
    }
}

/// The process, and the owner's end of its socket.
fn start() -> (Child, OwnedFd) {
    let (owner, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    // The socket arrives as stdin and is moved to the descriptor that the protocol names.
    let child = Command::new("sh")
        .args(["-c", "exec \"$0\" 3<&0 </dev/null", env!("CARGO_BIN_EXE_nacre-fs")])
        .stdin(Stdio::from(theirs))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (child, owner)
}

fn order(owner: &OwnedFd, order: &Order, fds: &[RawFd]) {
    let bytes = serde_json::to_vec(order).unwrap();
    let control = [ControlMessage::ScmRights(fds)];
    sendmsg::<()>(owner.as_raw_fd(), &[IoSlice::new(&bytes)], &control, MsgFlags::empty(), None).unwrap();
}

fn reply(owner: &OwnedFd) -> StartReply {
    let mut buffer = vec![0; 4096];
    let count = recv(owner.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
    serde_json::from_slice(&buffer[..count]).unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
