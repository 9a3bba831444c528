//! Pods under a real containerd, with the calls of a kubelet in its order.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nacre_tests::cri::{Pod, RUNNING, Wish, wait_for};
use nacre_tests::host::LoopDevice;
use nacre_tests::{Containerd, Outcome, TestSandbox, pids};

/// VMMs that came after the start of a test.
struct Vmms(BTreeSet<u32>);

impl Vmms {
    fn before() -> Self {
        Self(pids("nacre-vmm"))
    }

    fn new(&self) -> Vec<u32> {
        pids("nacre-vmm").difference(&self.0).copied().collect()
    }
}

#[test]
fn container_that_ends_is_told_and_its_place_can_be_taken() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let pod = Pod::run(&cri, "jobs", &containerd.path("logs"));
    let volume = containerd.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("input"), "from the host").unwrap();

    for attempt in 0..2 {
        let script =
            "cat /data/input > /data/output; echo once >> /root-is-new; wc -l < /root-is-new; exit 3";
        let job = pod.start("job", Wish::sh(script).mount(&volume, "/data").attempt(attempt));
        let ended = pod.wait(&job);
        assert_eq!((ended.exit_code, ended.reason.as_str()), (3, "Error"));
        assert_eq!(fs::read_to_string(volume.join("output")).unwrap(), "from the host");
        pod.wait_for_log_end("job", attempt, "stdout F 1\n");
        pod.remove(&job);
        fs::remove_file(volume.join("output")).unwrap();
    }

    let hog = "exec python3 -c 'x = bytearray(200 << 20); print(len(x))'";
    let hog = pod.start("hog", Wish::sh(hog).memory(64 << 20));
    let ended = pod.wait(&hog);
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    pod.remove(&hog);

    let (used, cpu) = {
        let idle = pod.start("idle", Wish::sh("exec sleep 100000"));
        // The kernel's figures of a cgroup are up to two seconds old: at first there may be more page cache than memory.
        let mut stats = pod.stats(&idle);
        wait_for("memory that the container works with", || {
            stats = pod.stats(&idle);
            stats.memory.working_set_bytes.value > 0
        });
        pod.stop(&idle);
        pod.remove(&idle);
        (stats.memory.working_set_bytes.value, stats.cpu.usage_core_nano_seconds.value)
    };
    assert!((1 << 12..1 << 26).contains(&used) && cpu > 0, "{used} bytes, {cpu} ns");
    pod.end();
}

#[test]
fn pod_outlives_its_containerd() {
    outlive(Containerd::with_cri);
}

#[test]
fn pod_outlives_its_containerd_of_1_7() {
    outlive(Containerd::older);
}

fn outlive(start: fn() -> Containerd) {
    let (_census, vmms) = (TestSandbox::new(), Vmms::before());
    let mut containerd = start();
    let cri = containerd.cri();
    let volume = containerd.path("volume");
    fs::create_dir(&volume).unwrap();
    let pod = Pod::run(&cri, "steady", &containerd.path("logs"));
    let stays = pod.start("stays", Wish::idle().share_processes().mount(&volume, "/v"));
    assert!(pod.exec(&stays, &["ps"]).ok().text().contains("sleep 2000000000"), "the pause process");
    let script = "until [ -e /v/go ]; do sleep 0.2; done; echo last words; touch /v/gone; exit 17";
    let meanwhile = pod.start("meanwhile", Wish::sh(script).mount(&volume, "/v"));
    let script = "until [ -e /v/go ]; do sleep 0.2; done; echo while nobody hears; touch /v/told; \
                  until [ -e /dev/shm/go ]; do sleep 0.2; done; echo heard; exit 5";
    let ends = pod.start("ends", Wish::sh(script).mount(&volume, "/v"));
    let (id, vmm) = (pod.id().to_owned(), vmms.new());

    containerd.kill();
    fs::write(volume.join("go"), "").unwrap();
    wait_for("an end that nobody hears", || volume.join("gone").exists() && volume.join("told").exists());
    assert_eq!(vmms.new(), vmm);
    containerd.launch();
    let cri = containerd.cri();
    let pod = Pod::again(&cri, &id, "steady", &containerd.path("logs"));
    assert_eq!(pod.wait(&meanwhile).exit_code, 17);
    pod.wait_for_log_end("meanwhile", 0, "stdout F last words\n");
    assert_eq!(pod.status(&stays).state, RUNNING);
    assert_eq!(pod.sh(&stays, "touch /dev/shm/go; echo alive").ok().text(), "alive");
    assert_eq!(pod.wait(&ends).exit_code, 5);
    pod.wait_for_log_end("ends", 0, "stdout F heard\n");
    assert!(pod.log("ends", 0).contains("stdout F while nobody hears\n"), "{}", pod.log("ends", 0));
    let (fresh, _) = pod.run_to_end("fresh", Wish::sh("exit 0"));
    assert_eq!(fresh.exit_code, 0);
    assert_eq!(vmms.new(), vmm);

    // A killed VMM ends every container, and the pod can be taken away.
    Outcome::of(Command::new("kill").args(["-9", &vmm[0].to_string()])).ok();
    assert_eq!(pod.wait(&stays).exit_code, 137);
    pod.wait_until_not_ready();
    pod.end();
}

#[test]
fn sandbox_api_needs_no_pause_container() {
    let (_census, vmms) = (TestSandbox::new(), Vmms::before());
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let pod = Pod::run_with(&cri, "nacre-sandbox", "plain", &containerd.path("logs"));
    assert_eq!(vmms.new().len(), 1);
    assert_eq!(containerd.ctr(&["-n", "k8s.io", "task", "ls", "-q"]).ok().text(), "", "no pause container");

    let first = pod.start("first", Wish::sh("echo note > /dev/shm/note; exec sleep 100000"));
    let second = pod.start("second", Wish::sh("while ! [ -e /dev/shm/note ]; do sleep 0.2; done; exit 6"));
    assert_eq!(pod.wait(&second).exit_code, 6);
    let address = pod.address();
    let inside = |script: &str| pod.exec(&first, &["sh", "-c", script]).ok();
    assert_eq!(inside("hostname").text(), "plain");
    assert!(inside("ip -4 addr show eth0").text().contains(&address));
    assert!(pod.stats(&first).memory.working_set_bytes.value > 0);
    assert_eq!(pod.stop(&first).exit_code, 137);
    assert!(pod.is_ready());

    // A killed VM is told.
    Outcome::of(Command::new("kill").args(["-9", &vmms.new()[0].to_string()])).ok();
    pod.wait_until_not_ready();
    pod.end();
    assert!(vmms.new().is_empty());
}

#[test]
fn block_snapshots_and_raw_block_volumes_are_disks_of_the_pods_vm() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_block_snapshots();
    let cri = containerd.cri();
    let volume = containerd.path("volume");
    fs::write(&volume, [b"from the host".as_slice(), &vec![0; 1 << 20]].concat()).unwrap();
    let device = LoopDevice::on(&volume);
    let pod = Pod::run_with(&cri, "nacre-block", "disks", &containerd.path("logs"));
    let wish = Wish::sh("exec sleep 100000").device(&device.0, "/dev/xvda", "rwm");
    let app = pod.start("app", wish);
    let inside = |script: &str| pod.exec(&app, &["sh", "-c", script]);

    // Its root is a disk of the guest's, which the host has not mounted.
    assert!(inside("mount").ok().text().contains("on / type ext4"));
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains("blockfile"), "{mounts}");
    inside("echo kept > /new && cat /new").ok();

    assert_eq!(inside("head -c 13 /dev/xvda").ok().text(), "from the host");
    inside("printf 'from the guest' | dd of=/dev/xvda bs=512 seek=1 conv=fsync").ok();
    // Other disks of the guest are not the container's.
    let foreign = "mknod /tmp/d b $(($(stat -c 0x%t /dev/xvda))) 0 && head -c 1 /tmp/d";
    assert_ne!(inside(foreign).status, 0);
    pod.stop(&app);
    pod.remove(&app);

    // The slots are free again; a volume that may only be read is read-only at the device.
    let wish = Wish::sh("exec sleep 100000").attempt(1).device(&device.0, "/dev/xvda", "rm");
    let app = pod.start("app", wish);
    let inside = |script: &str| pod.exec(&app, &["sh", "-c", script]);
    let read = "dd if=/dev/xvda bs=512 skip=1 count=1 2>/dev/null | head -c 14";
    assert_eq!(inside(read).ok().text(), "from the guest");
    assert_ne!(inside("printf x | dd of=/dev/xvda conv=fsync").status, 0);
    pod.end();
    assert!(fs::read(&volume).unwrap()[512..].starts_with(b"from the guest"));
}

#[test]
fn pod_whose_shim_was_killed_can_be_taken_away_and_made_anew() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let (shims, vmms) = (pids("containerd-shim"), Vmms::before());
    let pod = Pod::run(&cri, "again", &containerd.path("logs"));
    let app = pod.start("app", Wish::idle());
    for pid in pids("containerd-shim").difference(&shims) {
        Outcome::of(Command::new("kill").args(["-9", &pid.to_string()])).ok();
    }
    let killed = Instant::now();
    wait_for("its VM goes with it", || vmms.new().is_empty());
    assert!(killed.elapsed() < Duration::from_secs(5), "after {:?}", killed.elapsed());
    assert_eq!(pod.wait(&app).exit_code, 255);
    let id = pod.id().to_owned();
    pod.end();
    assert!(!Path::new("/run/nacre/k8s.io").join(id).exists(), "state of the dead pod is left");
    let pod = Pod::run(&cri, "again", &containerd.path("logs"));
    let app = pod.start("app", Wish::idle());
    pod.exec(&app, &["true"]).ok();
    pod.end();
}
