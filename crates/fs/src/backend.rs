//! The vhost-user device: takes chains off the queues and lets the FUSE server answer them.

use std::io::{self, Write};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, OutHeader};
use fuse_backend_rs::api::server::{MAX_BUFFER_SIZE, Server};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use vhost_fs::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringRwLock, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue_fs::{DescriptorChain, QueueOwnedT};
use vm_memory_fs::{ByteValued, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::guard::GuardedFs;
use crate::jail::SHARES;

/// The high priority queue and one request queue (virtio 1.2, section 5.11.2).
const QUEUES: usize = 2;

/// Longest queue.
const QUEUE_SIZE: usize = 1024;

/// How long a guest may trust what it knows of names and attributes: updates of configuration files that the host
/// makes are seen within it.
const CACHE_TIME: Duration = Duration::from_secs(1);

type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;
type FuseServer = Server<GuardedFs>;

/// Longest request and longest reply: the data of a write or a read, and a page for what stands before it.
const MAX_MESSAGE: usize = MAX_BUFFER_SIZE as usize + 4096;

/// The file system on the directory of the shares. It is made before the jail, for it opens /proc/self/fd, and opens
/// the directory when the guest's FUSE_INIT comes, in the jail.
pub(crate) fn file_system() -> io::Result<GuardedFs> {
    let config = Config {
        root_dir: SHARES.to_owned(),
        cache_policy: CachePolicy::Auto,
        attr_timeout: CACHE_TIME,
        entry_timeout: CACHE_TIME,
        xattr: true,
        // Files that are bound twice are two shares: one may be read-only.
        enable_mntid: true,
        // File handles would need CAP_DAC_READ_SEARCH and open_by_handle_at, a way around the mount namespace.
        inode_file_handles: false,
        do_import: true,
        killpriv_v2: true,
        // Else the server remembers a number for each file that it ever saw, and a guest could make it remember more.
        use_host_ino: true,
        ..Config::default()
    };
    Ok(GuardedFs::new(PassthroughFs::new(config)?))
}

/// State of the device.
pub(crate) struct FsBackend {
    server: FuseServer,
    memory: Memory,
    event_idx: bool,
}

type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap<()>>>;

impl FsBackend {
    pub(crate) fn shared(server: FuseServer, memory: Memory) -> Arc<RwLock<Self>> {
        Arc::new(RwLock::new(Self { server, memory, event_idx: false }))
    }

    /// Answers what waits on a queue; at most one queue length, so that a driver that never stops does not keep
    /// the other queue waiting.
    fn serve(&self, vring: &VringRwLock) -> io::Result<()> {
        let memory = self.memory.memory();
        let mut answered = 0;
        while answered < QUEUE_SIZE {
            let chain = {
                let mut state = vring.get_mut();
                let mut chains = state.get_queue_mut().iter(memory.clone()).map_err(io::Error::other)?;
                chains.next()
            };
            let Some(chain) = chain else { break };
            answered += 1;
            let head = chain.head_index();
            let written = self.answer(&memory, chain);
            vring.add_used(head, written).map_err(io::Error::other)?;
        }
        if answered > 0 && (!self.event_idx || vring.needs_notification().map_err(io::Error::other)?) {
            vring.signal_used_queue()?;
        }
        Ok(())
    }

    /// Lets the FUSE server answer one request, and says what the reply's length is. What has no room for a request's
    /// and a reply's header is given back unanswered.
    fn answer(&self, memory: &GuestMemoryMmap<()>, chain: Chain) -> u32 {
        let Ok(reader) = Reader::from_descriptor_chain(memory, chain.clone()) else { return 0 };
        let Ok(writer) = VirtioFsWriter::new(memory, chain) else { return 0 };
        // A look ahead, for the shape of the reply alone: the server takes its own copy of the header.
        let Ok(header) = reader.clone().read_obj::<InHeader>() else { return 0 };
        if reader.available_bytes() > MAX_MESSAGE || writer.available_bytes() > MAX_MESSAGE {
            return refuse(header, writer);
        }
        let has_room = writer.available_bytes() >= size_of::<OutHeader>();
        match self.server.handle_message(reader, writer.clone().into(), None, None) {
            // The one reply whose length the server does not tell.
            Ok(0) if header.opcode == Opcode::Destroy as u32 && has_room => HEADER_LEN,
            Ok(written) => u32::try_from(written).unwrap_or(u32::MAX),
            // The request does not parse, or its reply has no room.
            Err(_) => refuse(header, writer),
        }
    }
}

const HEADER_LEN: u32 = size_of::<OutHeader>() as u32;

/// Answers `EINVAL`, where the request has an answer at all.
fn refuse(request: InHeader, mut writer: VirtioFsWriter<'_>) -> u32 {
    let no_reply = [Opcode::Forget as u32, Opcode::BatchForget as u32, Opcode::Interrupt as u32];
    if no_reply.contains(&request.opcode) {
        return 0;
    }
    let reply = OutHeader { len: HEADER_LEN, error: -libc::EINVAL, unique: request.unique };
    if writer.write_all(reply.as_slice()).is_ok() { HEADER_LEN } else { 0 }
}

impl VhostUserBackendMut for FsBackend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn handle_event(
        &mut self,
        device_event: u16,
        events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        if events != EventSet::IN {
            return Ok(());
        }
        let Some(vring) = vrings.get(usize::from(device_event)) else { return Ok(()) };
        if !self.event_idx {
            return self.serve(vring);
        }
        // The driver may add while notifications are off: look again after they are on.
        loop {
            vring.disable_notification().map_err(io::Error::other)?;
            self.serve(vring)?;
            if !vring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}
