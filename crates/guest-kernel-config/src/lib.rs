//! The guest's kernel and its first root file system: what is in them, and how they are made.
//!
//! | module | owns |
//! |---|---|
//! | [`fragments`] | the configuration by concern (`fragments/NN-*.config`) and the documented overrides |
//! | [`config`] | reading fragments, merging them, checking what `olddefconfig` made of them |
//! | [`required`] | the symbols that a feature of nacre stands on, each with its reason |
//! | [`recipe`] | the inputs of a build, and the cache key that they make |
//! | [`kernel`] | the build itself: source package to `vmlinux`, in a cache outside the source tree |
//! | [`cpio`] | the archive format of an initramfs |
//! | [`initramfs`] | what the guest's initramfs holds |
//! | [`cache`] | where that cache is |
//!
//! ```text
//! fragments -> merge -> allnoconfig -> check -> make vmlinux -> strip -> size check -> cache
//!                 '------- sha256 with source, compiler, recipe version: the cache key'
//! ```
//!
//! `docs/guest-kernel.md` tells why the kernel is configured as it is.

pub mod cache;
pub mod config;
pub mod cpio;
pub mod fragments;
pub mod initramfs;
pub mod kernel;
pub mod recipe;
pub mod required;
