//! Namespaces, mounts, devices, hidden paths.

use serde_json::json;

use crate::fixture::{TestGuest, chain};

#[test]
fn every_namespace_is_new() {
    let guest = TestGuest::new();
    let script = "for n in pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; done";
    let inside = guest.sh(script).stdout;
    assert_eq!(inside.lines().count(), 6);
    for line in inside.lines() {
        let kind = line.split(':').next().unwrap();
        let outside = std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap();
        assert_ne!(outside.to_str().unwrap(), line);
    }
}

#[test]
fn init_is_number_one_of_its_processes() {
    let guest = TestGuest::new();
    // The shell expands the pattern itself: no second process that may or may not be there yet.
    assert_eq!(guest.sh("echo $$; echo /proc/[0-9]*").stdout, "1\n/proc/1\n");
}

#[test]
fn hostname_and_domainname_are_the_containers_own() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname");
    spec["domainname"] = json!("example.test");
    assert_eq!(guest.run(&spec).stdout, "nacre\nexample.test\n");
    assert_ne!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(), "nacre");
}

#[test]
fn mount_table_is_the_configurations() {
    let guest = TestGuest::new();
    let ended = guest.sh("cut -d' ' -f5 /proc/self/mountinfo");
    let mut points: Vec<_> = ended.stdout.lines().collect();
    points.retain(|point| !point.starts_with("/proc/") && !point.starts_with("/sys/firmware"));
    points.sort_unstable();
    let expected =
        ["/", "/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/proc", "/sys", "/sys/fs/cgroup", "/usr"];
    assert_eq!(points, expected, "{ended:?}");
}

#[test]
fn mount_options_hold() {
    let guest = TestGuest::new();
    let ended = guest
        .sh("while read -r i p d r point options rest; do echo $point $options; done < /proc/self/mountinfo");
    let has = |point: &str, options: &[&str]| {
        let line = ended.stdout.lines().find(|line| line.split(' ').next() == Some(point));
        let found: Vec<_> = line.unwrap().split(' ').nth(1).unwrap().split(',').collect();
        options.iter().all(|option| found.contains(option))
    };
    assert!(has("/dev/shm", &["rw", "nosuid", "nodev", "noexec", "relatime"]), "{ended:?}");
    assert!(has("/sys", &["ro", "nosuid", "nodev", "noexec"]), "{ended:?}");
    assert!(has("/usr", &["ro"]), "{ended:?}");
    assert!(has("/dev", &["nosuid"]), "{ended:?}");
}

#[test]
fn read_only_root_is_read_only_and_mount_points_are_made_before() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("touch /x; echo $?; touch /new/x; echo $?");
    spec["root"]["readonly"] = json!(true);
    spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/new", "type": "tmpfs"}));
    assert_eq!(guest.run(&spec).stdout, "1\n0\n");
}

#[test]
fn read_only_tmpfs_has_its_mount_points_all_the_same() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("touch /outer/x; echo $?; touch /outer/inner/x; echo $?");
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/outer", "type": "tmpfs", "options": ["ro"]}));
    mounts.push(json!({"destination": "/outer/inner", "type": "tmpfs"}));
    assert_eq!(guest.run(&spec).stdout, "1\n0\n");
}

#[test]
fn files_and_directories_are_bound_from_the_share() {
    let guest = TestGuest::new();
    std::fs::create_dir(guest.share("volume")).unwrap();
    std::fs::write(guest.share("resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
    let mut spec = guest
        .spec("cat /etc/resolv.conf; echo data > /deep/er/volume/file; echo x > /etc/resolv.conf; echo $?");
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/etc/resolv.conf", "source": guest.share("resolv.conf"), "options": ["bind", "ro"]}));
    mounts.push(
        json!({"destination": "/deep/er/volume", "source": guest.share("volume"), "options": ["rbind"]}),
    );
    assert_eq!(guest.run(&spec).stdout, "nameserver 192.0.2.1\n2\n");
    assert_eq!(std::fs::read_to_string(guest.share("volume/file")).unwrap(), "data\n");
}

#[test]
fn shared_mounts_of_the_guest_do_not_reach_the_container() {
    let guest = TestGuest::new();
    let shared = nix::mount::MsFlags::MS_SHARED | nix::mount::MsFlags::MS_REC;
    let shares = &guest.guest.shares_dir;
    let bind = nix::mount::MsFlags::MS_BIND | nix::mount::MsFlags::MS_REC;
    nix::mount::mount(Some(shares), shares, None::<&str>, bind, None::<&str>).unwrap();
    nix::mount::mount(None::<&str>, "/", None::<&str>, shared, None::<&str>).unwrap();
    assert_eq!(guest.sh("grep -c shared: /proc/self/mountinfo").stdout, "0\n");
}

#[test]
fn recursive_read_only_reaches_submounts() {
    let guest = TestGuest::new();
    std::fs::create_dir_all(guest.share("volume/sub")).unwrap();
    let sub = guest.share("volume/sub");
    nix::mount::mount(Some("t"), &sub, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    let mut spec = guest.spec("touch /v/sub/x; echo $?");
    let bind = |options| json!({"destination": "/v", "source": guest.share("volume"), "options": options});
    spec["mounts"].as_array_mut().unwrap().push(bind(json!(["rbind", "ro"])));
    assert_eq!(guest.run(&spec).stdout, "0\n");
    *spec["mounts"].as_array_mut().unwrap().last_mut().unwrap() = bind(json!(["rbind", "rro"]));
    assert_eq!(guest.run(&spec).stdout, "1\n");
}

#[test]
fn tmpfs_is_filled_from_the_image_where_asked() {
    let guest = TestGuest::new();
    std::fs::create_dir_all(guest.image("data/sub")).unwrap();
    std::fs::write(guest.image("data/sub/file"), "text").unwrap();
    std::os::unix::fs::symlink("sub/file", guest.image("data/link")).unwrap();
    let mut spec = guest.spec("cat /data/link; echo new > /data/sub/file; stat -c %a /data/sub");
    let options = ["tmpcopyup", "mode=0755"];
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/data", "type": "tmpfs", "options": options}));
    assert_eq!(guest.run(&spec).stdout, "text755\n");
    assert_eq!(std::fs::read_to_string(guest.image("data/sub/file")).unwrap(), "text");
}

#[test]
fn default_devices_work() {
    let guest = TestGuest::new();
    let script = "cd /dev; stat -c '%n %t:%T %a' full null random tty urandom zero; ls -l fd ptmx stdin stdout stderr core | grep -o ' [a-z]* -> .*'; \
        echo x > /dev/null; head -c 3 /dev/zero | wc -c; echo out > /dev/stdout";
    let expected = "full 1:7 666\nnull 1:3 666\nrandom 1:8 666\ntty 5:0 666\nurandom 1:9 666\nzero 1:5 666\n \
         core -> /proc/kcore\n fd -> /proc/self/fd\n ptmx -> pts/ptmx\n stderr -> /proc/self/fd/2\n \
         stdin -> /proc/self/fd/0\n stdout -> /proc/self/fd/1\n3\nout\n";
    assert_eq!(guest.sh(script).stdout, expected.replace("\n         ", "\n"));
}

#[test]
fn devices_of_the_configuration_are_made() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("stat -c '%n %F %t:%T %a %u:%g' /dev/fuse /dev/sub/disk /dev/pipe");
    spec["linux"]["devices"] = json!([
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 3, "gid": 4},
        {"path": "/dev/sub/disk", "type": "b", "major": 7, "minor": 300, "fileMode": 0o640},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o644}
    ]);
    let expected = "/dev/fuse character special file a:e5 600 3:4\n/dev/sub/disk block special file 7:12c 640 0:0\n\
        /dev/pipe fifo 0:0 644 0:0\n";
    assert_eq!(guest.run(&spec).stdout, expected);
}

#[test]
fn masked_and_read_only_paths_hold() {
    let guest = TestGuest::new();
    std::fs::create_dir(guest.image("secret")).unwrap();
    std::fs::write(guest.image("secret/file"), "x").unwrap();
    std::fs::write(guest.image("hidden"), "x").unwrap();
    let script = "ls -A /secret | wc -l; wc -c < /hidden; touch /secret/y; echo $?; echo 1 > /proc/sys/kernel/msgmax; echo $?; touch /etc/x; echo $?";
    let mut spec = guest.spec(script);
    spec["linux"]["maskedPaths"] = json!(["/secret", "/hidden", "/no/such", "/proc/kcore"]);
    spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/etc", "/no/such"]);
    assert_eq!(guest.run(&spec).stdout, "0\n0\n1\n2\n1\n");
}

#[test]
fn sysctls_of_the_namespaces_are_set() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_forward");
    spec["linux"]["sysctl"] = json!({"kernel.shmmni": "4242", "net.ipv4.ip_forward": "1"});
    assert_eq!(guest.run(&spec).stdout, "4242\n1\n");
    assert_ne!(std::fs::read_to_string("/proc/sys/kernel/shmmni").unwrap().trim(), "4242");
}

#[test]
fn namespaces_of_another_container_are_joined() {
    let guest = TestGuest::new();
    let mut first = guest.create(&guest.spec("echo up; read line")).unwrap().start();
    assert_eq!(first.line(), "up");
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", first.child.pid());
    let mut spec = guest.spec("readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/pid; cat /proc/sys/kernel/hostname; echo $$");
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network", "path": path("net")},
        {"type": "ipc", "path": path("ipc")}, {"type": "uts", "path": path("uts")},
        {"type": "pid", "path": path("pid")}, {"type": "cgroup"}]);
    spec.as_object_mut().unwrap().remove("hostname");
    let link = |kind: &str| std::fs::read_link(path(kind)).unwrap().to_str().unwrap().to_owned();
    let expected = [link("net"), link("ipc"), link("pid"), "nacre".into()].join("\n");
    let ended = guest.run(&spec);
    assert!(ended.stdout.starts_with(&expected), "{ended:?} {expected}");
    assert_ne!(ended.stdout.lines().last(), Some("1"));
    first.say("\n");
    first.finish();
}

#[test]
fn namespace_file_of_another_type_is_refused() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("");
    spec["linux"]["namespaces"] =
        json!([{"type": "mount"}, {"type": "network", "path": "/proc/self/ns/ipc"}]);
    spec.as_object_mut().unwrap().remove("hostname");
    assert!(guest.refusal(&spec).contains("is not a namespace file of the type"));
}

#[test]
fn user_namespace_maps_root_to_somebody_else() {
    let guest = TestGuest::new();
    for name in ["", "tmp", "root"] {
        nix::unistd::chown(&guest.image(name), Some(100_000.into()), Some(100_000.into())).unwrap();
    }
    let script = "cat /proc/self/uid_map; id -u; touch /tmp/x; mount -t tmpfs t /tmp; echo $?; stat -c %t:%T /dev/null; echo x > /dev/null; cat /proc/sys/kernel/hostname";
    let mut spec = guest.spec(script);
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    spec["process"]["oomScoreAdj"] = json!(5);
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    let ended = guest.run(&spec);
    let lines: Vec<_> = ended.stdout.lines().map(str::trim).collect();
    assert_eq!(lines.get(1..), Some(&["0", "32", "1:3", "nacre"][..]), "{ended:?}");
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(guest.image("tmp/x")).unwrap().uid(), 100_000);
}

#[test]
fn time_namespace_has_its_offset() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("cut -d. -f1 /proc/uptime");
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000, "nanosecs": 0}});
    let uptime: u64 = guest.run(&spec).stdout.trim().parse().unwrap();
    assert!(uptime >= 1_000_000);
}

#[test]
fn terminal_is_the_containers_own_and_has_the_size() {
    let guest = TestGuest::new();
    let mut spec = guest.spec(
        "stty size; tty; test -t 0 -a -t 1 -a -t 2; echo $?; stat -c %t /dev/console; echo $TERM; exit 3",
    );
    spec["process"]["terminal"] = json!(true);
    spec["process"]["env"] = json!([]);
    let created = guest.create_with_terminal(&spec).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let master = created.init.terminal.unwrap();
    created.init.starter.start().unwrap();
    assert_eq!(crate::fixture::wait(&created.init.child), 3);
    let mut text = String::new();
    // EIO where the last slave is closed.
    let _ = std::io::Read::read_to_string(&mut std::fs::File::from(master), &mut text);
    assert_eq!(text, "37 101\r\n/dev/pts/0\r\n0\r\n88\r\nxterm\r\n");
    created.container.remove().unwrap();
}
