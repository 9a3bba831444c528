//! Pods in a user namespace of their own (`hostUsers: false`): none of their ids is one that the host gives to anybody.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use nacre_protocol::cri::{IDMapping, UserNamespace};
use nacre_tests::Stay;
use nacre_tests::cri::{Pod, Wish};

use super::NODE;

/// First id of the pod on the host.
const FIRST: u32 = 2_000_000;

/// As a kubelet gives them.
const IDS: u32 = 65_536;

fn map() -> Vec<IDMapping> {
    vec![IDMapping { host_id: FIRST, container_id: 0, length: IDS, ..IDMapping::default() }]
}

fn options() -> UserNamespace {
    UserNamespace { mode: 0, uids: map(), gids: map(), ..UserNamespace::default() }
}

fn run<'a>(stay: &'a Stay<'_>, handler: &str, name: &str) -> Pod<'a> {
    let mut config = stay.config(name);
    let security = config.linux.mut_or_insert_default().security_context.mut_or_insert_default();
    security.namespace_options.mut_or_insert_default().userns_options = Some(options()).into();
    Pod::run_config(stay.cri(), handler, config)
}

/// A container of such a pod.
fn within(wish: Wish) -> Wish {
    wish.security(|security| {
        security.namespace_options.mut_or_insert_default().userns_options = Some(options()).into();
    })
}

/// With the last mount's ids mapped, as a kubelet has all volumes of such a pod.
fn mapped(wish: Wish) -> Wish {
    wish.with(|config| {
        if let Some(mount) = config.mounts.last_mut() {
            (mount.uid_mappings, mount.gid_mappings) = (map(), map());
        }
    })
}

#[test]
fn pod_of_a_user_namespace_is_root_of_itself_alone() {
    root_of_itself(&NODE.enter(), "nacre", "users");
}

#[test]
fn pod_of_a_user_namespace_without_a_pause_container_is_root_of_itself_alone() {
    root_of_itself(&NODE.enter(), "nacre-sandbox", "users-plain");
}

fn root_of_itself(stay: &Stay<'_>, handler: &str, name: &str) {
    let pod = run(stay, handler, name);
    // Low ports, links and sysfs are the network's owner's; the image's files and the host name are of the pod.
    let script = "grep -q ' 2000000 *65536' /proc/self/uid_map && stat -c %u:%g /bin/sh /etc /proc/self/status && hostname && ls /sys/class/net \
                  && python3 -c 'import socket; print(socket.create_server((\"\", 80)).getsockname()[1]); \
                  socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)' && echo new > /etc/new && cat /etc/new; exec sleep 100000";
    let first = pod.start("first", within(Wish::sh(script)));
    let name_of =
        |kind: &str| pod.sh(&first, &format!("readlink /proc/self/ns/{kind}")).ok().text().to_owned();
    let expected = format!("0:0\n0:0\n0:0\n{name}\neth0\nlo\n80\nnew\n");
    let logged = || {
        let log = pod.log("first", 0);
        log.lines()
            .filter_map(|line| line.splitn(4, ' ').nth(3))
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    nacre_tests::cri::wait_for("the first container's report", || {
        logged().ends_with("new\n") || pod.status(&first).state != nacre_tests::cri::RUNNING
    });
    assert_eq!(logged(), expected);
    assert!(pod.sh(&first, "ip -4 addr show eth0").ok().text().contains(&pod.address()));
    // The next container is in the same namespaces; both see the pod's shared memory.
    pod.sh(&first, "echo note > /dev/shm/note").ok();
    let second = pod.start("second", within(Wish::idle()));
    for kind in ["user", "net", "ipc", "uts"] {
        assert_eq!(
            pod.sh(&second, &format!("readlink /proc/self/ns/{kind}")).ok().text(),
            name_of(kind),
            "{kind}"
        );
    }
    assert_eq!(pod.sh(&second, "cat /dev/shm/note; id -u").ok().text(), "note\n0");
    // Root here is nobody in the guest: what belongs to its kernel stays as it is.
    let refused = pod.sh(&second, "echo 1 > /proc/sys/kernel/panic");
    assert_ne!(refused.status, 0, "{refused:?}");
    let (ended, log) = pod.run_to_end(
        "user",
        within(Wish::sh("id -u; touch /tmp/x && stat -c %u /tmp/x")).security(|security| {
            security.run_as_user.mut_or_insert_default().value = 1000;
        }),
    );
    assert_eq!(ended.exit_code, 0);
    assert!(log.contains("F 1000\n") && log.matches("F 1000").count() == 2, "{log}");
    pod.end();
}

#[test]
fn volumes_of_a_pod_in_a_user_namespace_have_the_owners_that_they_have_on_the_host() {
    let stay = NODE.enter();
    let pod = run(&stay, "nacre", "users-volumes");
    let (mapped_dir, plain_dir) = (stay.dir("mapped"), stay.dir("plain"));
    for (dir, owner) in [(&mapped_dir, 1000), (&plain_dir, 0)] {
        fs::write(dir.join("given"), "given").unwrap();
        chown(dir.join("given"), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let map = stay.path("kubelet/pods/u1/volumes/kubernetes.io~configmap/config");
    fs::create_dir_all(map.join("..1")).unwrap();
    fs::write(map.join("..1/key"), "value").unwrap();
    symlink("..1", map.join("..data")).unwrap();
    symlink("..data/key", map.join("key")).unwrap();
    let wish = within(Wish::idle()).mount(&plain_dir, "/plain");
    let wish = mapped(mapped(wish.mount(&mapped_dir, "/mapped")).mount_read_only(&map, "/map"));
    let app = pod.start("app", wish);
    let owner = |path: &str| pod.sh(&app, &format!("stat -L -c %u:%g {path}")).ok().text().to_owned();
    assert_eq!(owner("/mapped/given"), "1000:1000");
    assert_eq!(owner("/map/key"), "0:0");
    assert_eq!(pod.sh(&app, "cat /map/key").ok().text(), "value");
    // What nobody has mapped is not the container's.
    assert_eq!(owner("/plain/given"), "65534:65534");
    pod.sh(&app, "echo x > /mapped/root && echo x > /plain/root && chown 7:8 /mapped/root").ok();
    let on_host = |path: &Path| fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
    assert_eq!(on_host(&mapped_dir.join("root")), (7, 8));
    assert_eq!(on_host(&plain_dir.join("root")), (FIRST, FIRST));
    pod.end();
}
