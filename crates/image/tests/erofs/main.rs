//! Layers to EROFS blobs, read back by everything at hand that reads tar or EROFS: GNU tar, fsck.erofs,
//! erofs-rs and the kernel.
//!
//! An oracle that this machine does not have is named on standard error, loudly, and its part of the test is
//! left out; erofs-rs is always there.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside functions that clippy knows as tests")]

mod faithful;
mod hostile;
mod oracles;
mod scale;
mod sparse;
mod tarball;
mod tree;
mod whiteouts;
