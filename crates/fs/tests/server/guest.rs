//! A guest's driver over the real vhost-user socket: one request queue, one request at a time, bytes as one likes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::Ordering;

use fuse_backend_rs::abi::fuse_abi::{
    CreateIn, EntryOut, InHeader, InitIn, InitIn2, InitOut, Opcode, OpenIn, OpenOut, OutHeader, ROOT_ID,
    ReadIn, WriteIn,
};
use nacre_protocol::fs::Submounts;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost_fs::vhost_user::{Frontend, VhostUserFrontend, VhostUserVirtioFeatures};
use vhost_fs::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory_fs::{
    ByteValued, Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::process::Server;

const MEMORY: u64 = 16 << 20;
const DESCRIPTORS: GuestAddress = GuestAddress(0);
const AVAIL: GuestAddress = GuestAddress(0x1000);
const USED: GuestAddress = GuestAddress(0x2000);
const REQUEST: GuestAddress = GuestAddress(0x1_0000);
const REPLY: GuestAddress = GuestAddress(8 << 20);
/// The request queue; 0 is the high priority queue.
const QUEUE: usize = 1;
const QUEUE_SIZE: u16 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// What Linux 6.12 offers in FUSE_INIT, all of it.
const ALL_FLAGS: u32 = u32::MAX;

/// Room for any reply that these tests ask for.
pub(crate) const ROOM: u32 = 64 << 10;

/// Room for the data of the longest read and what stands before it.
const MOST: u32 = (1 << 20) + 4096;

/// One chain's worth of descriptors: address, length, flags.
pub(crate) type Chain = Vec<(GuestAddress, u32, u16)>;

/// A guest with one share, named `s`.
pub(crate) struct Guest {
    pub(crate) server: Server,
    pub(crate) init: InitOut,
    /// Node id of the share's root.
    pub(crate) share: u64,
    /// User and group of its requests.
    pub(crate) caller: u32,
    _frontend: Frontend,
    memory: GuestMemoryMmap<()>,
    kick: EventFd,
    call: EventFd,
    answered: Epoll,
    sent: u16,
    unique: u64,
}

impl Guest {
    /// A guest that has mounted the directory.
    pub(crate) fn mount(directory: &Path, read_only: bool) -> Self {
        Self::mount_with(directory, read_only, Submounts::AsShare)
    }

    /// The same, with what is mounted below the directory.
    pub(crate) fn mount_with(directory: &Path, read_only: bool, submounts: Submounts) -> Self {
        let share = File::open(directory).unwrap();
        let server = Server::start_with(&share, read_only, submounts, "s");
        assert_eq!(server.reply(), Ok(()));
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(MEMORY).unwrap();
        let range = (GuestAddress(0), MEMORY as usize, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
        // The server's end of things closes with `server.vmm`, so the driver speaks over a copy.
        let socket = server.vmm.try_clone().unwrap();
        let mut frontend = Frontend::from_stream(socket, 2);
        let (kick, call) = (EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap());
        connect(&mut frontend, &memory, &kick, &call);
        let answered = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        answered.ctl(ControlOperation::Add, call.as_raw_fd(), event).unwrap();
        let mut guest = Self {
            server,
            init: InitOut::default(),
            share: 0,
            caller: 0,
            _frontend: frontend,
            memory,
            kick,
            call,
            answered,
            sent: 0,
            unique: 0,
        };
        guest.init = guest.initialise(ALL_FLAGS);
        guest.share = guest.lookup(ROOT_ID, b"s\0").unwrap();
        guest
    }

    /// FUSE_INIT with these flags.
    pub(crate) fn initialise(&mut self, flags: u32) -> InitOut {
        let init = InitIn { major: 7, minor: 41, max_readahead: 1 << 17, flags };
        let more = InitIn2 { flags2: u32::MAX, ..InitIn2::default() };
        let body = self.call(Opcode::Init, 0, &[init.as_slice(), more.as_slice()]).unwrap();
        object(&body)
    }

    /// Sends a request as it should be, and checks that the answer's form is as it should be (F14).
    pub(crate) fn call(&mut self, opcode: Opcode, node: u64, body: &[&[u8]]) -> Result<Vec<u8>, Errno> {
        self.call_number(opcode as u32, node, body)
    }

    pub(crate) fn call_number(&mut self, opcode: u32, node: u64, body: &[&[u8]]) -> Result<Vec<u8>, Errno> {
        let body = body.concat();
        let request = self.message(opcode, node, size_of::<InHeader>() + body.len(), &body);
        let reply = self.exchange(&request, MOST);
        self.read_reply(&reply)
    }

    /// Sends a request that has no answer, and knows that it was taken.
    pub(crate) fn tell(&mut self, opcode: Opcode, node: u64, body: &[&[u8]]) {
        let body = body.concat();
        let request = self.message(opcode as u32, node, size_of::<InHeader>() + body.len(), &body);
        assert!(self.exchange(&request, 0).is_empty());
    }

    /// Bytes of a request whose header names this length.
    pub(crate) fn message(&mut self, opcode: u32, node: u64, len: usize, body: &[u8]) -> Vec<u8> {
        self.unique += 1;
        let header = InHeader {
            len: u32::try_from(len).unwrap(),
            opcode,
            unique: self.unique,
            nodeid: node,
            uid: self.caller,
            gid: self.caller,
            ..InHeader::default()
        };
        [header.as_slice(), body].concat()
    }

    pub(crate) fn read_reply(&self, reply: &[u8]) -> Result<Vec<u8>, Errno> {
        let header: OutHeader = object(reply);
        assert_eq!(header.len as usize, reply.len(), "the reply's length is not what was written");
        assert_eq!(header.unique, self.unique, "the reply is another request's");
        if header.error == 0 {
            return Ok(reply[size_of::<OutHeader>()..].to_vec());
        }
        assert_eq!(reply.len(), size_of::<OutHeader>());
        Err(Errno::from_raw(-header.error))
    }

    /// Puts a request's bytes where the chains of these tests find them.
    pub(crate) fn put(&mut self, request: &[u8]) {
        self.memory.write_slice(request, REQUEST).unwrap();
    }

    /// Sends bytes with room for so many back.
    pub(crate) fn exchange(&mut self, request: &[u8], room: u32) -> Vec<u8> {
        self.put(request);
        let mut chain = vec![(REQUEST, u32::try_from(request.len()).unwrap(), 0)];
        if room > 0 {
            chain.push((REPLY, room, WRITE));
        }
        self.send(&chain)
    }

    /// Puts one chain on the queue and waits for it: the bytes that the server says it wrote.
    pub(crate) fn send(&mut self, chain: &Chain) -> Vec<u8> {
        for (index, &(address, len, flags)) in chain.iter().enumerate() {
            let last = index + 1 == chain.len();
            let at = DESCRIPTORS.0 + 16 * index as u64;
            self.memory.write_obj(address.0, GuestAddress(at)).unwrap();
            self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
            self.memory.write_obj(flags | if last { 0 } else { NEXT }, GuestAddress(at + 12)).unwrap();
            self.memory.write_obj(index as u16 + 1, GuestAddress(at + 14)).unwrap();
        }
        let slot = u64::from(self.sent % QUEUE_SIZE);
        self.memory.write_obj(0_u16, GuestAddress(AVAIL.0 + 4 + 2 * slot)).unwrap();
        self.sent = self.sent.wrapping_add(1);
        self.memory.store(self.sent, GuestAddress(AVAIL.0 + 2), Ordering::Release).unwrap();
        self.kick.write(1).unwrap();
        self.wait();
        let written: u32 = self.memory.read_obj(GuestAddress(USED.0 + 4 + 8 * slot + 4)).unwrap();
        let mut reply = vec![0; written as usize];
        self.memory.read_slice(&mut reply, REPLY).unwrap();
        reply
    }

    fn wait(&self) {
        let used = || self.memory.load::<u16>(GuestAddress(USED.0 + 2), Ordering::Acquire).unwrap();
        while used() != self.sent {
            let ready = self.answered.wait(30_000, &mut [EpollEvent::default()]).unwrap();
            assert_eq!(ready, 1, "the server does not answer");
            // Two notifications may have become one.
            let _ = self.call.read();
        }
    }

    pub(crate) fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<u64, Errno> {
        let reply = self.call(Opcode::Lookup, parent, &[name])?;
        Ok(object::<EntryOut>(&reply).nodeid)
    }

    pub(crate) fn open(&mut self, node: u64, flags: i32) -> Result<u64, Errno> {
        self.open_with_options(node, flags).map(|(handle, _)| handle)
    }

    /// The handle, and FOPEN_* flags.
    pub(crate) fn open_with_options(&mut self, node: u64, flags: i32) -> Result<(u64, u32), Errno> {
        let open = OpenIn { flags: flags.unsigned_abs(), fuse_flags: 0 };
        let out: OpenOut = object(&self.call(Opcode::Open, node, &[open.as_slice()])?);
        Ok((out.fh, out.open_flags))
    }

    pub(crate) fn open_directory(&mut self, node: u64) -> Result<u64, Errno> {
        let reply = self.call(Opcode::Opendir, node, &[OpenIn::default().as_slice()])?;
        Ok(object::<OpenOut>(&reply).fh)
    }

    /// Creates a file and opens it for reading and writing: its node id and its handle.
    pub(crate) fn create(&mut self, parent: u64, name: &[u8]) -> Result<(u64, u64), Errno> {
        let create = CreateIn { flags: libc::O_RDWR.unsigned_abs(), mode: 0o644, umask: 0, fuse_flags: 0 };
        let reply = self.call(Opcode::Create, parent, &[create.as_slice(), name])?;
        let (entry, open) = reply.split_at(size_of::<EntryOut>());
        Ok((object::<EntryOut>(entry).nodeid, object::<OpenOut>(open).fh))
    }

    pub(crate) fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        self.call(Opcode::Read, node, &[ReadIn { fh, offset, size, ..ReadIn::default() }.as_slice()])
    }

    pub(crate) fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let size = u32::try_from(data.len()).unwrap();
        let flags = libc::O_RDWR.unsigned_abs();
        let write = WriteIn { fh, offset, size, flags, ..WriteIn::default() };
        let reply = self.call(Opcode::Write, node, &[write.as_slice(), data])?;
        Ok(u32::from_le_bytes(reply[..4].try_into().unwrap()))
    }
}

/// The first bytes of a reply as one of FUSE's structures.
pub(crate) fn object<T: ByteValued>(bytes: &[u8]) -> T {
    let mut object = T::zeroed();
    object.as_mut_slice().copy_from_slice(&bytes[..size_of::<T>()]);
    object
}

/// Set-up of the device and its request queue.
fn connect(frontend: &mut Frontend, memory: &GuestMemoryMmap<()>, kick: &EventFd, call: &EventFd) {
    frontend.set_owner().unwrap();
    let wanted = (1 << VIRTIO_F_VERSION_1) | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    assert_eq!(frontend.get_features().unwrap() & wanted, wanted);
    frontend.set_features(wanted).unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    let region = memory.iter().next().unwrap();
    let info = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
    let base = info.userspace_addr;
    assert_eq!(region.len(), MEMORY);
    frontend.set_mem_table(&[info]).unwrap();
    frontend.set_vring_num(QUEUE, QUEUE_SIZE).unwrap();
    let addresses = VringConfigData {
        queue_max_size: QUEUE_SIZE,
        queue_size: QUEUE_SIZE,
        flags: 0,
        desc_table_addr: base + DESCRIPTORS.0,
        used_ring_addr: base + USED.0,
        avail_ring_addr: base + AVAIL.0,
        log_addr: None,
    };
    frontend.set_vring_addr(QUEUE, &addresses).unwrap();
    frontend.set_vring_base(QUEUE, 0).unwrap();
    frontend.set_vring_call(QUEUE, call).unwrap();
    frontend.set_vring_kick(QUEUE, kick).unwrap();
    frontend.set_vring_enable(QUEUE, true).unwrap();
}

/// Everything in a directory that a request could change: for each path its kind, mode, owner, size and content.
pub(crate) fn snapshot(directory: &Path) -> BTreeMap<String, String> {
    let mut entries = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let content = if kind.is_file() {
            format!("{:?}", std::fs::read(&path).unwrap())
        } else if kind.is_symlink() {
            format!("{:?}", path.read_link().unwrap())
        } else {
            format!("{} {}", kind.is_dir(), kind.is_fifo())
        };
        let facts = format!("{:o} {} {} {} {content}", meta.mode(), meta.uid(), meta.gid(), meta.mtime());
        entries.insert(path.display().to_string(), facts);
        if kind.is_dir() {
            entries.extend(snapshot(&path));
        }
    }
    entries
}
