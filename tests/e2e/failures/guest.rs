//! Guests that panic, hang, or lose their agent.

use nacre_guest_kernel_config::cpio::Archive;
use nacre_tests::TestSandbox;

use super::assert_one_line;
use super::assets::{installed, run_with_asset};

/// The agent out of the installed initramfs.
fn agent() -> Vec<u8> {
    let archive = std::fs::read(installed().join("initramfs.cpio")).unwrap();
    let mut rest = archive.as_slice();
    // newc: 110 bytes of header, the name, the data; both padded to four.
    loop {
        let field =
            |at: usize| usize::from_str_radix(std::str::from_utf8(&rest[at..at + 8]).unwrap(), 16).unwrap();
        let (size, name_len) = (field(54), field(94));
        let data = (110 + name_len).next_multiple_of(4);
        if rest[110..].starts_with(b"init\0") {
            return rest[data..data + size].to_vec();
        }
        rest = &rest[(data + size).next_multiple_of(4)..];
    }
}

/// An initramfs whose init is this script of busybox's shell, with the agent beside it.
fn initramfs(script: &str) -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
    let mut archive = Archive::new();
    for name in ["dev", "proc", "run", "sys"] {
        archive.directory(name, 0o755).unwrap();
    }
    archive.character_device("dev/console", 0o600, 5, 1).unwrap();
    archive.character_device("dev/null", 0o666, 1, 3).unwrap();
    archive.file("busybox", 0o755, &busybox.expect("busybox is installed")).unwrap();
    archive.file("agent", 0o555, &agent()).unwrap();
    archive.file("init", 0o755, format!("#!/busybox sh\n{script}").as_bytes()).unwrap();
    archive.finish().unwrap()
}

#[test]
fn guest_without_an_init_is_a_kernel_panic_that_is_told() {
    let empty = Archive::new().finish().unwrap();
    let out = run_with_asset("initramfs.cpio", &empty, &["true"]);
    assert_one_line(&out, 125, &["guest's kernel panicked", "unable to mount root", "cargo xtask guest"]);
}

#[test]
fn init_that_ends_is_a_kernel_panic_that_is_told() {
    let out = run_with_asset("initramfs.cpio", &initramfs("exit 3\n"), &["true"]);
    assert_one_line(&out, 125, &["guest's kernel panicked", "attempted to kill init", "0x00000300"]);
}

#[test]
fn guest_that_hangs_is_given_up_with_the_limit_that_can_be_changed() {
    let out =
        run_with_asset("initramfs.cpio", &initramfs("while true; do /busybox sleep 100; done\n"), &["true"]);
    assert_one_line(&out, 125, &["not ready within 30000 ms", "NACRE_TIMEOUT_MS"]);
}

#[test]
fn agent_that_cannot_start_is_told_in_its_own_words() {
    // No place for one of its mounts; it expects to be /init, for its children.
    let script = "/busybox rmdir /proc\n/busybox mv /agent /init\nexec /init\n";
    let out = run_with_asset("initramfs.cpio", &initramfs(script), &["true"]);
    assert_one_line(&out, 125, &["the guest restarted the machine", "nacre-agent:", "cannot mount /proc"]);
}

#[test]
fn kernel_panic_under_a_running_container_is_told_as_the_end_of_its_vm() {
    let script = "echo 2 > /proc/sys/vm/panic_on_oom; exec python3 -c 'x = bytearray(200 << 20)'";
    let out = TestSandbox::new().run(&["--privileged", "-m", "64m"], &["sh", "-c", script]);
    assert_one_line(&out, 125, &["VM failed", "guest's kernel panicked", "out of memory"]);
}
