//! Fixtures of the end-to-end tests: an installation to test, and what a test may leave behind.
//!
//! The tests are in `e2e/`, run by `cargo xtask e2e` where KVM works, with the installed binaries on PATH and
//! `NACRE_TEST_IMAGE` naming an image with busybox and python3.
//!
//! | module | owns |
//! |---|---|
//! | [`containerd`] | [`Containerd`]: one of a test's own, with its CRI, a network and the image |
//! | [`docker`] | [`Docker`]: a daemon of a test's own on such a containerd |
//! | [`cri`] | [`Cri`]: calls a container runtime as a kubelet does |
//! | [`host`] | loop devices and file systems that go with a test |
//! | [`images`] | the images that a containerd is given |
//! | [`node`] | [`Shared`]: a containerd and a pod that the tests of a module share |
//! | [`registry`] | [`TestRegistry`]: a registry that answers each request with the same failure |
//! | [`sandbox`] | [`TestSandbox`]: a data directory with the image, `nacre` commands in it, logs on failure |
//! | [`traces`] | [`Traces`]: processes, mounts, cgroups, sockets, links and files that nacre has on the machine |

pub mod containerd;
pub mod cri;
pub mod docker;
pub mod host;
pub mod images;
pub mod node;
pub mod registry;
pub mod sandbox;
pub mod traces;

pub use containerd::Containerd;
pub use cri::Cri;
pub use docker::Docker;
pub use node::{Shared, Stay};
pub use registry::TestRegistry;
pub use sandbox::{Outcome, TestSandbox};
pub use traces::{Traces, pids};
