//! Disks that are full. The data directory is a small tmpfs, seen by the script alone.

use nacre_tests::TestSandbox;

use super::assert_one_line;

#[test]
fn disk_that_fills_while_pulling_is_told_and_freed() {
    let image = TestSandbox::image();
    // What is left goes to standard output. A layer that is whole stays, for the next pull or prune.
    let out = TestSandbox::empty().script(&format!(
        "mount -t tmpfs -o size=1m none $NACRE_ROOT
         status=0; nacre pull -q {image} || status=$?
         find $NACRE_ROOT -type f -size +4k ! -path '*/layers/sha256/*.erofs'
         nacre system prune -f > /dev/null; find $NACRE_ROOT -name '*.erofs'
         exit $status"
    ));
    // Docker's status of a pull that fails.
    assert_one_line(&out, 1, &["disk full", "nacre system prune"]);
    assert_eq!(out.stdout, "", "bytes are left");
}

#[test]
fn disk_that_is_full_while_starting_is_told_and_nothing_is_left() {
    let image = TestSandbox::image();
    let out = TestSandbox::empty().script(&format!(
        "mount -t tmpfs -o size=512m none $NACRE_ROOT
         nacre pull -q {image} > /dev/null
         id=$(nacre images -q)
         nacre ps > /dev/null
         mount -o remount,size=$(du -sk $NACRE_ROOT | cut -f1)k $NACRE_ROOT
         status=0; nacre run --rm $id true || status=$?
         nacre ps -aq; ls -A $NACRE_ROOT/containers | grep -v '^.lock$' || true
         exit $status"
    ));
    assert_one_line(&out, 125, &["disk full", "nacre system prune"]);
    assert_eq!(out.stdout, "", "a container is left");
}

#[test]
fn container_that_fills_its_layer_gets_the_error_itself() {
    let script = "dd if=/dev/zero of=/big bs=1M count=4096 2>&1; rm /big; echo alive";
    let out = TestSandbox::new().run(&["-m", "256m"], &["sh", "-c", script]).ok();
    assert!(out.stdout.contains("No space left on device"), "{out:?}");
    assert!(out.stdout.ends_with("alive\n"), "{out:?}");
}

#[test]
fn log_that_does_not_fit_stops_no_container() {
    let image = TestSandbox::image();
    let out = TestSandbox::empty().script(&format!(
        "mount -t tmpfs -o size=512m none $NACRE_ROOT
         nacre pull -q {image} > /dev/null
         nacre ps > /dev/null
         mount -o remount,size=$(($(du -sk $NACRE_ROOT | cut -f1) + 512))k $NACRE_ROOT
         id=$(nacre run -d {image} sh -c 'seq 1 200000; exit 9')
         nacre wait $id
         nacre logs $id | head -n 1
         nacre rm $id > /dev/null"
    ));
    assert_eq!((out.status, out.stdout.as_str()), (0, "9\n1\n"), "{out:?}");
}
