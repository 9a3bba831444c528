//! All that crosses a process border of nacre, and nothing else.
//!
//! | border | module | form |
//! |---|---|---|
//! | owner (shim) -> `nacre-vmm` | [`vm`], [`control`] | JSON messages with descriptors on a `SOCK_SEQPACKET` socket |
//! | shim <-> agent | [`rpc`] (feature `rpc`) | ttrpc on vsock port [`ports::CONTROL_PORT`] |
//! | containerd -> shim | `cri` (feature `cri`) | a pod's configuration in the Sandbox API |
//! | configuration -> shim, agent | [`annotations`] | annotations of the OCI configuration |
//! | bundle's small files -> agent | [`files`] | by value in `CreateContainerRequest` |
//! | a kubelet's projected volumes -> agent | [`volumes`] | by value in `SetVolumeRequest`, again at each change |
//! | shim <-> a process's stdio | [`stream`] | raw bytes on vsock port [`ports::STREAM_PORT`] |
//! | namespace on the host <-> guest's loopback | [`tunnel`] | raw bytes on vsock port [`ports::TUNNEL_PORT`] |
//! | shim -> `nacre-fs` | [`fs`] | one JSON message with descriptors on a `SOCK_SEQPACKET` socket |
//! | `nacre` -> shim | [`task`] | containerd Task API, with options and two files of our own |
//!
//! Both sides of each border share this vocabulary and no code. `docs/protocol.md` draws the sequences.

pub mod annotations;
pub mod assets;
pub mod control;
#[cfg(feature = "cri")]
pub mod cri;
pub mod files;
pub mod fs;
pub mod id;
pub mod ports;
#[cfg(feature = "rpc")]
pub mod rpc;
pub mod stream;
pub mod task;
pub mod tunnel;
pub mod vm;
pub mod volumes;
