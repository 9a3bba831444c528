//! Cases of the security catalogue that need a running container.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::fixture::TestGuest;

fn without_mounts(spec: &mut Value, paths: &[&str]) {
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !paths.contains(&mount["destination"].as_str().unwrap()));
}

#[test]
fn c01_program_has_only_its_standard_streams() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("");
    spec["process"]["args"] = json!(["ls", "/proc/self/fd"]);
    // Number 3 is the directory that ls reads.
    assert_eq!(guest.run(&spec).stdout, "0\n1\n2\n3\n");
}

#[test]
fn c01_working_directory_through_a_descriptor_is_refused() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("pwd");
    for number in 0..=64 {
        for dir in ["fd", "task/1/fd"] {
            spec["process"]["cwd"] = json!(format!("/proc/self/{dir}/{number}"));
            let text = guest.refusal(&spec);
            assert!(text.starts_with("enter working directory"), "{text}");
        }
    }
}

#[test]
fn c01_exec_in_a_directory_through_a_descriptor_is_refused() {
    let guest = TestGuest::new();
    let mut started = guest.create(&guest.spec("echo up; read line")).unwrap().start();
    assert_eq!(started.line(), "up");
    for number in 0..=64 {
        let process = json!({"user": {}, "args": ["pwd"], "cwd": format!("/proc/self/fd/{number}")});
        assert!(started.exec(&guest, &process).is_err(), "{number}");
    }
    started.say("\n");
    started.finish();
}

#[test]
fn c02_agents_binary_cannot_be_written() {
    let guest = TestGuest::new();
    let before = std::fs::read(&guest.guest.agent_exe).unwrap();
    let mut spec = guest.spec("");
    // The agent's binary runs as the program itself, and another process of the container opens it for writing.
    spec["process"]["args"] = json!(["/proc/self/exe", "launcher"]);
    let ended = guest.run(&spec);
    assert_ne!(ended.status, 0);
    let script = "for p in /proc/[0-9]*; do ( : >> $p/exe ) 2>/dev/null && echo wrote $p; done; echo done";
    let mut started = guest.create(&guest.spec("echo up; read line")).unwrap().start();
    started.line();
    let mut process = guest.spec(script)["process"].clone();
    process["user"] = json!({"uid": 0, "gid": 0});
    let running = started.exec(&guest, &process).unwrap();
    assert_eq!(running.stdout, "done\n");
    assert_eq!(std::fs::read(&guest.guest.agent_exe).unwrap(), before);
    started.say("\n");
    started.finish();
}

#[test]
fn c02_writing_to_the_waiting_child_fails() {
    let guest = TestGuest::new();
    let running = guest.create(&guest.spec("true")).unwrap();
    let exe = format!("/proc/{}/exe", running.created.init.child.pid());
    let error = std::fs::OpenOptions::new().write(true).open(exe).unwrap_err();
    let errno = error.raw_os_error();
    assert!(errno == Some(libc_etxtbsy()) || errno == Some(nix::errno::Errno::EROFS as i32), "{error}");
    running.finish();
}

fn libc_etxtbsy() -> i32 {
    nix::errno::Errno::ETXTBSY as i32
}

#[test]
fn c04_links_in_dev_are_refused_and_nothing_is_made_through_them() {
    for (link, target) in [
        ("dev", "/tmp/victim"),
        ("dev/pts", "/tmp/victim"),
        ("dev/console", "/tmp/victim/console"),
        ("dev/null", "/tmp/victim/null"),
        ("dev/shm", "../tmp/victim"),
    ] {
        let guest = TestGuest::new();
        std::fs::create_dir(guest.image("tmp/victim")).unwrap();
        if link == "dev" {
            std::fs::remove_dir(guest.image("dev")).unwrap();
        }
        symlink(target, guest.image(link)).unwrap();
        let mut spec = guest.spec("true");
        spec["process"]["terminal"] = json!(true);
        // Without a /dev of its own, the image's is used.
        without_mounts(&mut spec, if link == "dev" { &[] } else { &["/dev"] });
        let refused = guest.create_with_terminal(&spec).unwrap_err();
        assert!(refused.is_invalid(), "{link}: {refused}");
        let made: Vec<_> = std::fs::read_dir(guest.image("tmp/victim")).unwrap().collect();
        assert!(made.is_empty(), "{link}: {made:?}");
    }
}

#[test]
fn c04_file_in_the_place_of_a_device_is_refused() {
    let guest = TestGuest::new();
    std::fs::write(guest.image("dev/null"), "not null").unwrap();
    let mut spec = guest.spec("true");
    without_mounts(&mut spec, &["/dev"]);
    assert!(guest.refusal(&spec).contains("/dev/null is not the device of that name"));
}

#[test]
fn c06_proc_and_sys_that_are_links_are_refused() {
    for name in ["proc", "sys"] {
        let guest = TestGuest::new();
        std::fs::remove_dir(guest.image(name)).unwrap();
        symlink("/tmp", guest.image(name)).unwrap();
        let text = guest.refusal(&guest.spec("true"));
        assert!(text.contains("symbolic link"), "{name}: {text}");
    }
}

#[test]
fn c06_link_into_proc_is_no_mount_point() {
    let guest = TestGuest::new();
    symlink("/proc/sys/kernel", guest.image("data")).unwrap();
    let mut spec = guest.spec("true");
    spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/data", "type": "tmpfs"}));
    assert!(guest.refusal(&spec).contains("inside procfs"));
    spec["mounts"].as_array_mut().unwrap().last_mut().unwrap()["destination"] = json!("/proc/self/attr");
    assert!(guest.create(&spec).is_err());
}

#[test]
fn mount_through_a_link_of_the_image_stays_in_the_image() {
    let guest = TestGuest::new();
    symlink("/../../../../../../../../tmp/outside", guest.image("volume")).unwrap();
    std::fs::create_dir(guest.image("tmp/outside")).unwrap();
    let outside = Path::new("/tmp/outside").exists();
    let mut spec = guest.spec("grep -c ' /tmp/outside ' /proc/self/mountinfo");
    spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/volume", "type": "tmpfs"}));
    assert_eq!(guest.run(&spec).stdout, "1\n");
    assert_eq!(Path::new("/tmp/outside").exists(), outside);
}

#[test]
fn bind_source_outside_the_share_is_refused() {
    let guest = TestGuest::new();
    std::fs::create_dir(guest.share("volume")).unwrap();
    symlink("/etc", guest.share("volume/link")).unwrap();
    for source in ["/etc".into(), guest.share("../state"), guest.share(""), guest.share("volume/link")] {
        let mut spec = guest.spec("true");
        let mount = json!({"destination": "/data", "source": source, "options": ["bind"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
        assert!(guest.create(&spec).is_err(), "{source:?}");
    }
}

#[test]
fn c10_and_f12_devices_that_no_rule_allows_do_not_work() {
    let guest = TestGuest::new();
    let script = "cd /tmp; for n in 'c 1 1' 'b 254 0' 'b 7 0' 'c 10 229'; do mknod n $n 2>&1; done; \
        cat /dev/extra; echo $?; rm -f null; mknod null c 1 3 && echo x > null && echo fine";
    let mut spec = guest.spec(script);
    let caps = json!(["CAP_MKNOD", "CAP_SYS_RAWIO", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]);
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = caps.clone();
    }
    // A node alone opens nothing.
    spec["linux"]["devices"] = json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 1}]);
    for resources in
        [json!({}), json!({"devices": []}), json!({"devices": [{"allow": false, "access": "rwm"}]})]
    {
        spec["linux"]["resources"] = resources;
        let ended = guest.run(&spec);
        let denied = ended.stdout.matches("Operation not permitted").count();
        assert_eq!(denied, 4, "{ended:?}");
        // A tmpfs or share without device nodes may deny the last one; the image of this test does not.
        assert!(ended.stdout.ends_with("1\nfine\n"), "{ended:?}");
    }
}

#[test]
fn c10_rule_allows_exactly_its_device() {
    let guest = TestGuest::new();
    let mut spec = guest.spec(
        "dd if=/dev/kmsg bs=8k count=1 of=/dev/null 2>/dev/null && echo read; echo x > /dev/kmsg; echo $?",
    );
    spec["linux"]["devices"] = json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]);
    spec["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]);
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(["CAP_SYSLOG"]);
    }
    let ended = guest.run(&spec);
    assert_eq!(ended.stdout, "read\n2\n", "{ended:?}");
}

#[test]
fn c15_waiting_child_cannot_be_looked_into_from_the_container() {
    let guest = TestGuest::new();
    let caps = json!({"bounding": [], "effective": [], "permitted": []});
    let script = "echo up; read line; \
        for p in /proc/[0-9]*; do [ $p = /proc/1 ] && continue; [ $p = /proc/$$ ] && continue; \
        [ -r $p/status ] || continue; grep -q nacre-agent $p/status || continue; \
        echo found; readlink $p/exe $p/cwd $p/fd/*; cat $p/maps $p/environ; cat $p/fd/0 $p/mem; done 2>/dev/null; echo end";
    let mut spec = guest.spec(script);
    spec["process"]["capabilities"] = caps.clone();
    let mut started = guest.create(&spec).unwrap().start();
    assert_eq!(started.line(), "up");
    let process = json!({"user": {}, "args": ["true"], "cwd": "/", "capabilities": caps});
    let waiting = {
        let stdio =
            || rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty()).unwrap();
        let stdio =
            nacre_agent::container::ChildStdio::Files { stdin: stdio(), stdout: stdio(), stderr: stdio() };
        let input =
            nacre_agent::container::ExecInput { process_json: serde_json::to_vec(&process).unwrap(), stdio };
        nacre_agent::container::create_exec(&guest.guest, &started.container, input).unwrap()
    };
    started.say("\n");
    let ended = started.finish();
    assert_eq!(ended.stdout, "found\nend\n");
    drop(waiting);
}
