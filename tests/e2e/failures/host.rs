//! KVM that is not there, not allowed, not KVM, or emulated.

use nacre_tests::TestSandbox;
use serde_json::Value;

use super::assert_one_line;

/// Puts a /dev without KVM in place of the host's, for this script alone.
const PRIVATE_DEV: &str = "
    dev=$(mktemp -d); mount -t tmpfs -o mode=755 none $dev
    for name in null zero full random urandom tty; do touch $dev/$name; mount --bind /dev/$name $dev/$name; done
    mount --move $dev /dev; rmdir $dev
";

#[test]
fn no_kvm_is_told_with_what_to_do() {
    let script = format!("{PRIVATE_DEV} exec nacre run --rm {} true", TestSandbox::image());
    assert_one_line(
        &TestSandbox::new().script(&script),
        125,
        &["/dev/kvm", "load the module", "nacre check"],
    );
}

#[test]
fn check_without_kvm_says_what_to_do() {
    let out = TestSandbox::new().script(&format!("{PRIVATE_DEV} exec nacre check"));
    assert_eq!(out.status, 1, "{out:?}");
    assert!(out.stdout.contains("PROBLEM  /dev/kvm        not there\n"), "{out:?}");
    assert!(out.stdout.trim_end().ends_with("nacre cannot run a micro-VM here."), "{out:?}");
}

#[test]
fn something_else_in_the_place_of_kvm_is_told() {
    let script =
        format!("mount --bind /dev/null /dev/kvm; exec nacre run --rm {} true", TestSandbox::image());
    assert_one_line(&TestSandbox::new().script(&script), 125, &["KVM", "nacre check"]);
}

#[test]
fn kvm_without_permission_is_told_with_what_to_do() {
    // A user of its own with a store of its own, nacre where that user can reach it, and a KVM that only root may open.
    let programs = super::assets::installed();
    let programs = programs.parent().unwrap().display();
    let script = format!(
        "nacre pull -q {} > /dev/null; id=$(nacre images -q)
         {PRIVATE_DEV}
         mknod -m 600 /dev/kvm c 10 232
         user=$(mktemp -d); trap 'umount $user/nacre $user; rmdir $user' EXIT
         mount -t tmpfs -o mode=755 none $user
         mkdir $user/run $user/nacre; mount --bind {programs} $user/nacre
         cp -r $NACRE_ROOT $user/store; chown -R 65534:65534 $user/store $user/run
         export XDG_RUNTIME_DIR=$user/run NACRE_ROOT=$user/store HOME=/nonexistent
         setpriv --reuid 65534 --regid 65534 --clear-groups $user/nacre/bin/nacre run --rm $id true",
        TestSandbox::image()
    );
    let out = TestSandbox::empty().script(&script);
    assert_one_line(&out, 125, &["/dev/kvm", "permission denied", "run as root"]);
}

/// On every machine: where `nacre check` says that ring 0 is run by the processor, a container runs; where it says that
/// it is interpreted, `nacre run` says so at once and with what to do.
#[test]
fn check_tells_what_run_then_does() {
    let sandbox = TestSandbox::new();
    let check = sandbox.nacre(&["check", "--json"]);
    let report: Value = serde_json::from_str(&check.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let ring0 = findings.iter().find(|finding| finding["what"] == "ring 0").unwrap();
    let out = sandbox.run(&[], &["true"]);
    if ring0["verdict"] == "ok" {
        assert_eq!((check.status, out.status), (0, 0), "{report} {out:?}");
    } else {
        assert!(ring0["advice"].as_str().unwrap().contains("hardware KVM"), "{report}");
        assert_one_line(&out, 125, &["interprets", "hardware KVM", "cargo xtask lab"]);
    }
}
