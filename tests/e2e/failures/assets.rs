//! Kernels and agent images that are missing or damaged.

use std::path::PathBuf;

use nacre_tests::{Outcome, TestSandbox};

use super::assert_one_line;

/// The installed guest files: the directory `guest` beside that of `nacre`.
pub(super) fn installed() -> PathBuf {
    let path = std::env::var_os("PATH").expect("PATH is set");
    let bin = std::env::split_paths(&path).find(|dir| dir.join("nacre").is_file()).expect("nacre is on PATH");
    bin.parent().expect("the directory of programs has a parent").join("guest")
}

/// `nacre run` with another guest file than the installed one.
pub(super) fn run_with_asset(name: &str, content: &[u8], command: &[&str]) -> Outcome {
    let sandbox = TestSandbox::new();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name), content).unwrap();
    let image = TestSandbox::image();
    let arguments = [&["run", "--rm", image.as_str()], command].concat();
    // A guest that never answers is given up sooner than by default, and late enough for an emulated machine.
    let mut command = sandbox.command(&arguments);
    Outcome::of(command.env("NACRE_ASSETS", dir.path()).env("NACRE_TIMEOUT_MS", "30000"))
}

/// `nacre run` without the installed guest files, but for those in `$keep`.
fn run_without_assets(keep: &str) -> Outcome {
    let dir = installed();
    let (dir, image) = (dir.display(), TestSandbox::image());
    // Bind mounts of the files outlive the tmpfs that hides their directory.
    TestSandbox::new().script(&format!(
        "keep=$(mktemp -d); trap 'umount $keep; rmdir $keep' EXIT
         mount --bind {dir} $keep
         mount -t tmpfs none {dir}
         for name in {keep}; do touch {dir}/$name; mount --bind $keep/$name {dir}/$name; done
         nacre run --rm {image} true"
    ))
}

#[test]
fn missing_kernel_is_named_with_how_to_make_it() {
    let words = ["guest kernel", "vmlinux", "cargo xtask guest"];
    assert_one_line(&run_without_assets("initramfs.cpio"), 125, &words);
}

#[test]
fn missing_agent_image_is_named_with_how_to_make_it() {
    let words = ["agent image", "initramfs.cpio", "cargo xtask guest"];
    assert_one_line(&run_without_assets("vmlinux"), 125, &words);
}

#[test]
fn kernel_that_is_no_elf_file_is_named() {
    let out = run_with_asset("vmlinux", b"not a kernel", &["true"]);
    assert_one_line(&out, 125, &["guest kernel", "vmlinux", "not an ELF file", "cargo xtask guest"]);
}

#[test]
fn kernel_that_is_cut_short_is_named() {
    let kernel = std::fs::read(installed().join("vmlinux")).unwrap();
    let out = run_with_asset("vmlinux", &kernel[..kernel.len() / 3], &["true"]);
    assert_one_line(&out, 125, &["kernel", "cargo xtask guest"]);
}

#[test]
fn agent_image_that_is_no_archive_is_named() {
    let out = run_with_asset("initramfs.cpio", b"not an archive", &["true"]);
    assert_one_line(&out, 125, &["agent image", "initramfs.cpio", "cpio archive", "cargo xtask guest"]);
}
