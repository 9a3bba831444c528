use proptest::prelude::*;

use super::process::LimitPlan;
use super::*;
use crate::container::sys::mount::{
    ATTR_ATIME_MASK, ATTR_NOATIME, ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, MountAttr,
};

fn plan(extra: &str) -> Result<Plan, InvalidSpec> {
    let json =
        format!(r#"{{"ociVersion":"1.2.0","process":{{"user":{{}},"args":["true"],"cwd":"/"}}{extra}}}"#);
    Plan::parse(json.as_bytes())
}

fn process(extra: &str) -> Result<ProcessPlan, InvalidProcess> {
    ProcessPlan::parse(format!(r#"{{"user":{{}},"args":["true"],"cwd":"/"{extra}}}"#).as_bytes())
}

fn mount(json: &str) -> Result<MountPlan, InvalidSpec> {
    plan(&format!(r#","mounts":[{json}]"#)).map(|plan| plan.container.mounts.into_iter().next().unwrap())
}

#[test]
fn smallest_configuration_is_a_plan() {
    let plan = plan("").unwrap();
    assert_eq!(plan.container.namespaces.new, libc::CLONE_NEWNS as u64);
    assert_eq!(plan.container.devices.len(), 6);
    assert_eq!(plan.process.capabilities, CapabilityPlan::default());
}

#[test]
fn mount_options_become_attributes_and_parameters() {
    let mount = mount(
        r#"{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","nodev","mode=1777","size=64k","ro"]}"#,
    )
    .unwrap();
    assert_eq!(mount.attr.set, ATTR_NOSUID | ATTR_NODEV | ATTR_RDONLY);
    let MountSource::Filesystem { parameters, .. } = mount.source else { panic!("{:?}", mount.source) };
    let expected =
        [("mode", "1777"), ("size", "64k")].map(|(key, value)| (key.to_owned(), Some(value.to_owned())));
    assert_eq!(parameters, expected);
}

#[test]
fn later_option_wins() {
    let mount =
        mount(r#"{"destination":"/a","type":"tmpfs","options":["ro","rw","noatime","relatime","noatime"]}"#);
    let MountAttr { set, clear, .. } = mount.unwrap().attr;
    assert_eq!((set, clear), (ATTR_NOATIME, ATTR_RDONLY | ATTR_ATIME_MASK));
}

#[test]
fn recursive_options_are_kept_apart() {
    let mount =
        mount(r#"{"destination":"/a","source":"/s","options":["rbind","rro","rprivate","nosuid"]}"#).unwrap();
    assert_eq!((mount.recursive_attr.set, mount.recursive_attr.propagation), (ATTR_RDONLY, libc::MS_PRIVATE));
    assert_eq!(mount.attr.set, ATTR_NOSUID);
    assert!(matches!(mount.source, MountSource::Bind { recursive: true, .. }));
}

#[test]
fn destinations_are_cleaned() {
    assert_eq!(mount(r#"{"destination":"/a/../b//./c","type":"tmpfs"}"#).unwrap().destination, "/b/c");
    for bad in [r#""a""#, r#""/""#, r#""/..""#, r#""/a\u0000b""#] {
        assert!(mount(&format!(r#"{{"destination":{bad},"type":"tmpfs"}}"#)).is_err(), "{bad}");
    }
}

#[test]
fn mounts_that_are_not_done_are_refused() {
    for bad in [
        r#"{"destination":"/a"}"#,
        r#"{"destination":"/a","type":"bind"}"#,
        r#"{"destination":"/a","source":"/s","options":["bind","idmap"]}"#,
    ] {
        assert!(mount(bad).is_err(), "{bad}");
    }
    let many = vec![r#"{"destination":"/a","type":"tmpfs"}"#; 201].join(",");
    assert!(mount(&many).is_err());
}

#[test]
fn namespaces_are_new_or_joined_once() {
    let linux = r#","linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/proc/7/ns/net"}]}"#;
    let namespaces = plan(linux).unwrap().container.namespaces;
    assert_eq!(namespaces.new, (libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64);
    assert_eq!(namespaces.join[0].kind, libc::CLONE_NEWNET as u64);
    for bad in [
        r#"[{"type":"pid"},{"type":"pid"}]"#,
        r#"[{"type":"mount","path":"/proc/1/ns/mnt"}]"#,
        r#"[{"type":"user"}]"#,
    ] {
        assert!(plan(&format!(r#","linux":{{"namespaces":{bad}}}"#)).is_err(), "{bad}");
    }
}

#[test]
fn id_mappings_stay_in_range() {
    let with = |map: &str| {
        plan(&format!(
            r#","linux":{{"namespaces":[{{"type":"user"}}],"uidMappings":[{map}],"gidMappings":[{map}]}}"#
        ))
    };
    assert!(with(r#"{"containerID":0,"hostID":100000,"size":65536}"#).is_ok());
    assert!(with(r#"{"containerID":0,"hostID":1,"size":0}"#).is_err());
    assert!(with(r#"{"containerID":0,"hostID":1,"size":4294967295}"#).is_err());
    assert!(plan(r#","linux":{"uidMappings":[{"containerID":0,"hostID":1,"size":1}]}"#).is_err());
}

#[test]
fn c13_names_are_plain() {
    let uts = r#","linux":{"namespaces":[{"type":"uts"}]}"#;
    assert!(plan(&format!(r#","hostname":"web-1.example"{uts}"#)).is_ok());
    for bad in [r"a\nb", r"a\u0000b", "a b", "a:b", &"x".repeat(65)] {
        assert!(plan(&format!(r#","hostname":"{bad}"{uts}"#)).is_err(), "{bad}");
    }
    assert!(plan(r#","hostname":"a""#).is_err());
}

#[test]
fn h03_sysctls_are_namespaced_and_one_line() {
    let with = |key: &str, value: &str| {
        let sysctl = format!(r#","linux":{{"sysctl":{{"{key}":"{value}"}}}}"#);
        plan(&sysctl).map(|plan| plan.container.sysctls.into_iter().next().unwrap())
    };
    assert_eq!(with("net.ipv4.ip_forward", "1").unwrap().0, "net/ipv4/ip_forward");
    assert_eq!(with("net/ipv4/conf/eth0.1/forwarding", "1").unwrap().0, "net/ipv4/conf/eth0.1/forwarding");
    assert_eq!(with("net.ipv4.conf.eth0/1.forwarding", "1").unwrap().0, "net/ipv4/conf/eth0.1/forwarding");
    assert!(with("kernel.shmmax", "1000").is_ok() && with("fs.mqueue.msg_max", "5").is_ok());
    for bad in [
        "vm.swappiness",
        "kernel.core_pattern",
        "net..x",
        "net.ipv4.//.x",
        "net",
        "kernel.shmmax.x",
        "+net.x",
    ] {
        assert!(with(bad, "1").is_err(), "{bad}");
    }
    assert!(with("net.ipv4.ip_forward", r"1\nx").is_err());
}

#[test]
fn devices_come_beside_the_default_ones() {
    let devices = r#","linux":{"devices":[{"path":"/dev/fuse","type":"c","major":10,"minor":229,"fileMode":438},
        {"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":384}]}"#;
    let devices = plan(devices).unwrap().container.devices;
    assert_eq!(devices.len(), 7);
    assert_eq!(devices.iter().find(|device| device.path == "/dev/null").unwrap().mode, 0o600);
    for bad in [
        r#"{"path":"/dev/x","type":"c","major":-1,"minor":0}"#,
        r#"{"path":"/dev/x","type":"c","major":4096,"minor":0}"#,
        r#"{"path":"/","type":"c","major":1,"minor":0}"#,
        r#"{"path":"dev/x","type":"c","major":1,"minor":0}"#,
    ] {
        assert!(plan(&format!(r#","linux":{{"devices":[{bad}]}}"#)).is_err(), "{bad}");
    }
}

#[test]
fn hooks_of_the_container_are_refused_and_those_of_the_host_are_not() {
    assert!(plan(r#","hooks":{"prestart":[{"path":"/bin/hook"}]}"#).is_ok());
    assert!(plan(r#","hooks":{"createContainer":[{"path":"/bin/hook"}]}"#).is_err());
    assert!(plan(r#","hooks":{"startContainer":[{"path":"/bin/hook"}]}"#).is_err());
}

#[test]
fn capability_sets_are_kept_exactly() {
    let process =
        process(r#","capabilities":{"bounding":["CAP_CHOWN","CAP_NET_RAW"],"effective":["CAP_CHOWN"]}"#);
    let capabilities = process.unwrap().capabilities;
    assert_eq!((capabilities.bounding, capabilities.effective), (1 | 1 << 13, 1));
    assert_eq!((capabilities.inheritable, capabilities.ambient, capabilities.permitted), (0, 0, 0));
}

#[test]
fn c11_ids_that_mean_no_change_are_refused() {
    let with =
        |user: &str| ProcessPlan::parse(format!(r#"{{"user":{user},"args":["a"],"cwd":"/"}}"#).as_bytes());
    let ids = |uid, gid| UserPlan::Ids { uid, gid };
    assert_eq!(with(r#"{"uid":2147483648,"gid":1}"#).unwrap().user, ids(2_147_483_648, 1));
    assert!(with(r#"{"uid":4294967295}"#).is_err() && with(r#"{"gid":4294967295}"#).is_err());
    assert!(with(r#"{"uid":4294967296}"#).is_err() && with(r#"{"uid":-1}"#).is_err());
    assert!(with(r#"{"additionalGids":[4294967295]}"#).is_err());
    assert_eq!(with(r#"{"username":"web:www"}"#).unwrap().user, UserPlan::Text("web:www".into()));
}

#[test]
fn c13_environment_entries_have_names() {
    assert!(process(r#","env":["A=b\nc","B="]"#).is_ok());
    for bad in [r#""=x""#, r#""A""#, r#""A=\u0000""#] {
        assert!(process(&format!(r#","env":[{bad}]"#)).is_err(), "{bad}");
    }
}

#[test]
fn limits_are_named_once_and_in_order() {
    let limit = |soft, hard| format!(r#"{{"type":"RLIMIT_NOFILE","soft":{soft},"hard":{hard}}}"#);
    let with = |limits: &str| process(&format!(r#","rlimits":[{limits}]"#));
    let expected = LimitPlan { resource: libc::RLIMIT_NOFILE, soft: 5, hard: u64::MAX };
    assert_eq!(with(&limit(5, u64::MAX)).unwrap().limits, [expected]);
    assert!(with(&limit(6, 5)).is_err());
    assert!(with(&format!("{},{}", limit(5, 6), limit(5, 6))).is_err());
}

#[test]
fn c09_large_environment_is_kept_whole() {
    let value = "x".repeat(100_000);
    let process = process(&format!(r#","env":["BIG={value}"]"#)).unwrap();
    assert_eq!(process.env[0].len(), 100_004);
}

proptest! {
    #[test]
    fn any_bytes_are_a_plan_or_an_error(json: Vec<u8>) {
        let _ = Plan::parse(&json);
    }

    #[test]
    fn cleaned_paths_stay_clean(path in "/[a./]{0,20}") {
        let cleaned = clean("path", std::path::Path::new(&path)).unwrap();
        prop_assert!(cleaned.split('/').all(|part| part != "." && part != ".."));
        prop_assert_eq!(clean("path", std::path::Path::new(&cleaned)).unwrap(), cleaned);
    }
}

#[test]
fn init_is_asked_for_by_annotation_and_needs_a_pid_namespace() {
    let asked = |value: &str, namespaces: &str| {
        let annotation = format!(r#","annotations":{{"dev.nacre.init":"{value}"}}"#);
        plan(&format!(r#"{annotation},"linux":{{"namespaces":[{namespaces}]}}"#))
    };
    let first = |plan: Result<Plan, InvalidSpec>| plan.unwrap().container.first_process;
    let own = r#"{"type":"pid"}"#;
    assert_eq!(first(plan("")), FirstProcess::Program);
    assert_eq!(
        (first(asked("true", own)), first(asked("false", ""))),
        (FirstProcess::Init, FirstProcess::Program)
    );
    assert!(matches!(asked("true", ""), Err(InvalidSpec::Namespace { .. })));
    let joined = r#"{"type":"pid","path":"/proc/1/ns/pid"}"#;
    assert!(matches!(asked("true", joined), Err(InvalidSpec::Namespace { .. })));
    assert!(matches!(asked("yes", own), Err(InvalidSpec::Unsupported(_))));
}
