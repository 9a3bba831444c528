//! Volumes of pods as a kubelet makes them on the host, seen from the containers.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use nacre_tests::cri::{Pod, Wish};
use nacre_tests::host::{LoopDevice, Tmpfs};
use nacre_tests::{Containerd, Outcome, TestSandbox};

fn inside(pod: &Pod<'_>, container: &str, script: &str) -> Outcome {
    pod.exec(container, &["sh", "-c", script])
}

/// Waits in the container until a command succeeds there.
#[track_caller]
fn wait_inside(pod: &Pod<'_>, container: &str, condition: &str) {
    let script = format!("for i in $(seq 200); do {condition} && exit 0; sleep 0.2; done; exit 1");
    let out = inside(pod, container, &script);
    assert_eq!(out.status, 0, "never true in the container: {condition}\n{out:?}");
}

/// A directory where a kubelet would have a volume of this kind.
fn kubelet_volume(containerd: &Containerd, kind: &str, name: &str) -> PathBuf {
    let path = containerd.path("kubelet/pods/uid-1/volumes").join(format!("kubernetes.io~{kind}")).join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Files of a volume, exchanged in one step, and links to those that are new: what a kubelet does.
fn publish(volume: &Path, version: &str, files: &[(&str, &str)]) {
    let data = volume.join(format!("..{version}"));
    fs::create_dir(&data).unwrap();
    for (name, text) in files {
        fs::write(data.join(name), text).unwrap();
        chown(data.join(name), None, Some(2000)).unwrap();
        fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o440)).unwrap();
    }
    let before = fs::read_link(volume.join("..data")).ok();
    symlink(format!("..{version}"), volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    for (name, _) in files {
        let link = volume.join(name);
        if link.symlink_metadata().is_err() {
            symlink(format!("..data/{name}"), link).unwrap();
        }
    }
    if let Some(before) = before {
        fs::remove_dir_all(volume.join(before)).unwrap();
    }
}

#[test]
fn change_of_a_config_map_is_an_inotify_event_in_the_container() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let pod = Pod::run(&cri, "config", &containerd.path("logs"));
    let map = kubelet_volume(&containerd, "configmap", "settings");
    publish(&map, "1", &[("key", "first"), ("old", "gone later")]);
    let programs = containerd.path("programs");
    fs::create_dir(&programs).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_nacre-watch"), programs.join("watch")).unwrap();
    let wish = Wish::sh("exec /programs/watch /etc/map > /tmp/events")
        .mount_read_only(&map, "/etc/map")
        .mount_read_only(&programs, "/programs");
    let app = pod.start("app", wish);
    wait_inside(&pod, &app, "grep -q watching /tmp/events");
    assert_eq!(
        inside(&pod, &app, "cat /etc/map/key; stat -c %u:%g:%a /etc/map/..data/key").ok().stdout,
        "first0:2000:440\n"
    );
    assert_ne!(inside(&pod, &app, "echo x > /etc/map/new").status, 0);

    publish(&map, "2", &[("key", "second"), ("new", "added")]);
    fs::remove_file(map.join("old")).unwrap();
    wait_inside(&pod, &app, "grep -q 'delete ..1' /tmp/events && grep -q 'delete old' /tmp/events");
    assert_eq!(inside(&pod, &app, "cat /etc/map/key /etc/map/new").ok().text(), "secondadded");
    assert_ne!(inside(&pod, &app, "test -L /etc/map/old").status, 0);
    let events = inside(&pod, &app, "cat /tmp/events").ok().stdout;
    let at = |event: &str| {
        events.lines().position(|line| line == event).unwrap_or_else(|| panic!("{event}: {events}"))
    };
    // In the order of a kubelet: the new files, the exchange, then what is gone.
    assert!(at("create ..2") < at("moved-to ..data"), "{events}");
    assert!(at("moved-to ..data") < at("create new") && at("create new") < at("delete ..1"), "{events}");
    pod.end();
}

#[test]
fn volume_that_is_too_large_to_follow_is_shared_and_seen_all_the_same() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let pod = Pod::run(&cri, "large", &containerd.path("logs"));
    let secret = kubelet_volume(&containerd, "secret", "large");
    publish(&secret, "1", &[("key", &"x".repeat(4 << 20))]);
    let app = pod.start("app", Wish::idle().mount_read_only(&secret, "/secret"));
    assert_eq!(inside(&pod, &app, "wc -c < /secret/key").ok().text(), (4 << 20).to_string());
    publish(&secret, "2", &[("key", "small")]);
    wait_inside(&pod, &app, "[ $(cat /secret/key) = small ]");
    pod.end();
}

#[test]
fn limit_of_a_volume_on_the_host_is_the_containers_too() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    // What an emptyDir with medium Memory is; a disk that is full, or a quota, ends writes in the same way.
    let memory = Tmpfs::on(containerd.path("memory"), "16m");
    let pod = Pod::run(&cri, "limit", &containerd.path("logs"));
    let app = pod.start("app", Wish::idle().mount(&memory.0, "/cache"));
    let full = inside(&pod, &app, "dd if=/dev/zero of=/cache/fill bs=1M count=32 conv=fsync");
    assert!(full.status != 0 && full.stderr.contains("No space left on device"), "{full:?}");
    assert!(fs::metadata(memory.0.join("fill")).unwrap().size() <= 16 << 20);
    // Free again, and executed.
    let script = "rm /cache/fill && cp /proc/self/exe /cache/sh && /cache/sh -c 'echo runs'";
    assert!(inside(&pod, &app, script).ok().stdout.ends_with("runs\n"));
    pod.end();
}

#[test]
fn volume_of_a_group_is_written_by_who_has_the_group_and_by_nobody_else() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let volume = containerd.path("volume");
    fs::create_dir(&volume).unwrap();
    // What a kubelet does for fsGroup.
    chown(&volume, None, Some(2000)).unwrap();
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o2770)).unwrap();
    let pod = Pod::run(&cri, "groups", &containerd.path("logs"));
    let user = |groups: Vec<i64>| {
        Wish::idle().mount(&volume, "/data").security(|security| {
            security.run_as_user.mut_or_insert_default().value = 1000;
            security.run_as_group.mut_or_insert_default().value = 3000;
            security.supplemental_groups = groups;
        })
    };
    let member = pod.start("member", user(vec![2000]));
    inside(&pod, &member, "echo x > /data/file && mkdir /data/dir && echo y > /data/dir/file").ok();
    for (path, mode) in [("file", 0), ("dir", 0o2000), ("dir/file", 0)] {
        let found = fs::metadata(volume.join(path)).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7000), (1000, 2000, mode), "{path}");
    }
    let other = pod.start("other", user(vec![2001]));
    assert_ne!(inside(&pod, &other, "ls /data").status, 0);
    assert_ne!(inside(&pod, &other, "echo x > /data/new").status, 0);
    pod.end();
}

#[test]
fn socket_of_the_host_as_a_volume_takes_connections_from_the_container() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let path = containerd.path("service.sock");
    let service = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    chown(&path, None, Some(2000)).unwrap();
    // Answers a request, once it has its end, with how long it was.
    std::thread::spawn(move || {
        for connection in service.incoming() {
            let mut connection = connection.unwrap();
            let mut request = Vec::new();
            connection.read_to_end(&mut request).unwrap();
            connection.write_all(request.len().to_string().as_bytes()).unwrap();
        }
    });
    let pod = Pod::run(&cri, "sockets", &containerd.path("logs"));
    let app = pod.start("app", Wish::idle().mount(&path, "/run/service.sock"));
    assert_eq!(inside(&pod, &app, "stat -c %A:%u:%g /run/service.sock").ok().text(), "srw-rw----:0:2000");
    let ask = |length: usize| {
        format!(
            "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/service.sock'); \
             s.sendall(b'x' * {length}); s.shutdown(socket.SHUT_WR); print(s.recv(100).decode())"
        )
    };
    for length in [0, 5, 1 << 20] {
        assert_eq!(pod.exec(&app, &["python3", "-c", &ask(length)]).ok().text(), length.to_string());
    }
    // Who is not of the group may not, as on the host.
    let stranger = pod.start(
        "stranger",
        Wish::idle().mount(&path, "/run/service.sock").security(|security| {
            security.run_as_user.mut_or_insert_default().value = 1000;
        }),
    );
    let refused = pod.exec(&stranger, &["python3", "-c", &ask(1)]);
    assert!(refused.status != 0 && refused.stderr.contains("Permission denied"), "{refused:?}");
    pod.end();
}

#[test]
fn device_nodes_of_the_host_are_disks_or_the_guests_own_or_refused() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let file = containerd.path("disk");
    fs::write(&file, [b"from the host".as_slice(), &vec![0; 1 << 20]].concat()).unwrap();
    let device = LoopDevice::on(&file);
    let pod = Pod::run(&cri, "nodes", &containerd.path("logs"));
    let wish = Wish::idle()
        .mount(Path::new(&device.0), "/dev/disk")
        .mount(Path::new("/dev/zero"), "/dev/zeroes")
        .mount(Path::new("/dev/null"), "/dev/null");
    let app = pod.start("app", wish);
    assert_eq!(inside(&pod, &app, "head -c 13 /dev/disk").ok().text(), "from the host");
    inside(&pod, &app, "printf 'from the guest' | dd of=/dev/disk bs=512 seek=1 conv=fsync").ok();
    assert!(fs::read(&file).unwrap()[512..].starts_with(b"from the guest"));
    assert_eq!(inside(&pod, &app, "head -c 3 /dev/zeroes | wc -c; echo x > /dev/null").ok().text(), "3");

    let (_, refused) = pod.start_refused("refused", Wish::idle().mount(Path::new("/dev/kmsg"), "/dev/kmsg"));
    assert!(refused.message.contains("is a character device of the host"), "{refused:?}");
    pod.end();
}

#[test]
fn mount_that_should_appear_on_the_host_is_refused_with_the_reason() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    // The runtime above asks for a shared mount on the host before anybody else is asked.
    let shared = Tmpfs::on(containerd.path("shared"), "1m");
    Outcome::of(Command::new("mount").arg("--make-rshared").arg(&shared.0)).ok();
    let mut config = nacre_tests::cri::pod_config("propagation", &containerd.path("logs"));
    config.linux.mut_or_insert_default().security_context.mut_or_insert_default().privileged = true;
    let pod = Pod::run_config(&cri, "nacre", config);
    let wish = Wish::idle().mount(&shared.0, "/shared").with(|config| {
        // Bidirectional.
        config.mounts.last_mut().unwrap().propagation = 2;
    });
    let wish = wish.security(|security| security.privileged = true);
    let (_, refused) = pod.start_refused("both", wish);
    assert!(refused.message.contains("bidirectional propagation"), "{refused:?}");
    pod.end();
}

#[test]
fn what_the_host_mounts_below_a_volume_is_seen_where_it_follows_and_written_where_the_host_lets() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let tree = Tmpfs::on(containerd.path("tree"), "1m");
    Outcome::of(Command::new("mount").arg("--make-rshared").arg(&tree.0)).ok();
    let before = Tmpfs::on(tree.0.join("before"), "1m");
    let pod = Pod::run(&cri, "below", &containerd.path("logs"));
    let wish = Wish::idle().mount(&tree.0, "/alone").mount_read_only(&tree.0, "/read-only");
    let wish = wish.mount(&tree.0, "/follows").with(|config| {
        // HostToContainer.
        config.mounts.last_mut().unwrap().propagation = 1;
    });
    let app = pod.start("app", wish);

    let later = Tmpfs::on(tree.0.join("later"), "1m");
    fs::write(later.0.join("file"), "").unwrap();
    wait_inside(&pod, &app, "test -e /follows/later/file");
    inside(&pod, &app, "test -d /alone/later && ! test -e /alone/later/file").ok();
    drop(later);
    wait_inside(&pod, &app, "! test -e /follows/later/file");

    let refused = inside(&pod, &app, "touch /read-only/file");
    assert!(refused.status != 0 && refused.stderr.contains("Read-only file system"), "{refused:?}");
    inside(&pod, &app, "touch /read-only/before/file").ok();
    assert!(before.0.join("file").exists());
    pod.end();
}
