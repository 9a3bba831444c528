//! Vsock addresses and fixed paths in the guest.

/// Context id of the host (virtio 1.2, section 5.10.4; `VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;

/// Context id of every guest. The VMM's vsock device is private to its VM, so no two ever meet.
pub const GUEST_CID: u32 = 3;

/// Host port that the agent connects to when it is up; the connection then carries ttrpc with the agent as
/// server. The VMM hands it to the descriptor that its owner gave at start, once; a second connection is reset.
pub const CONTROL_PORT: u32 = 1024;

/// Guest port on which the agent takes stream connections (module [`crate::stream`]).
pub const STREAM_PORT: u32 = 1025;

/// Guest port on which the agent takes tunnels (module [`crate::tunnel`]).
pub const TUNNEL_PORT: u32 = 1026;

/// Where the guest mounts the virtio-fs share: one entry for each host file or directory.
pub const SHARES_DIR: &str = "/run/nacre/shares";

/// Tag of the virtio-fs device.
pub const SHARES_TAG: &str = "nacre";

/// Source of a bind mount that is the sandbox's own shared memory: one tmpfs of the guest for all containers that name it,
/// made when the first does.
pub const SHARED_MEMORY_DIR: &str = "/run/nacre/shm";

/// Path by which a container's configuration names the user namespace of its sandbox. There is no such file.
pub const USER_NAMESPACE: &str = "/run/nacre/user-namespace";

/// Path by which it names the PID namespace that the containers of a sandbox without a process of its own share. It is made when the
/// first does, and there is no such file either.
pub const PROCESS_NAMESPACE: &str = "/run/nacre/process-namespace";
