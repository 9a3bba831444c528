use super::*;
use crate::hooks::Hook;
use serde_json::json;

const HOST: HostLimits = HostLimits { cpus: 4, memory_mib: 8192 };

fn spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {"args": ["true"], "cwd": "/", "apparmorProfile": "docker-default", "selinuxLabel": "x",
                    "oomScoreAdj": 200, "consoleSize": {"height": 24, "width": 80}},
        "root": {"path": "rootfs"},
        "hostname": "web",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}],
            "cgroupsPath": "/default/web",
            "resources": {"memory": {"limit": 67_108_864}, "cpu": {"quota": 150_000, "period": 100_000}},
        },
        "org.example.later": {"kept": true},
    })
}

fn plan_of(document: &Value) -> Result<Plan, PlanError> {
    let spec_json = serde_json::to_vec(document).unwrap();
    let rootfs = [Mount { kind: "erofs".into(), source: "/blobs/a".into(), ..Mount::default() }];
    plan(Inputs {
        bundle: Path::new("/bundle"),
        spec_json: &spec_json,
        rootfs: &rootfs,
        settings: &VmSettings::default(),
        host: HOST,
        late_links: false,
        joined: None,
    })
}

#[test]
fn limits_become_the_size_of_the_vm_and_its_cgroup() {
    let plan = plan_of(&spec()).unwrap();
    assert_eq!((plan.vcpus, plan.memory_mib), (2, 128));
    assert_eq!(plan.cgroup.path.as_deref(), Some("default/web"));
    assert_eq!(plan.cgroup.memory_max_bytes, (128 + 32) << 20);
    assert!(plan.cgroup.pids_max > 2);
}

#[test]
fn names_and_terminal_are_read() {
    let plan = plan_of(&spec()).unwrap();
    assert_eq!(
        (plan.hostname.as_str(), plan.console_size, plan.oom_score_adj),
        ("web", Some((80, 24)), Some(200))
    );
}

#[test]
fn labels_of_the_host_do_not_cross_and_unknown_fields_do() {
    let plan = plan_of(&spec()).unwrap();
    let sent: Value = serde_json::from_slice(&plan.spec_json).unwrap();
    assert!(sent["process"].get("apparmorProfile").is_none());
    assert!(sent["process"].get("selinuxLabel").is_none());
    assert!(sent["linux"].get("cgroupsPath").is_none());
    assert_eq!(sent["org.example.later"]["kept"], true);
    assert_eq!(sent["process"]["args"], json!(["true"]));
}

#[test]
fn nulls_of_go_are_empty() {
    let mut document = spec();
    document["annotations"] = Value::Null;
    document["hooks"] = Value::Null;
    document["linux"]["resources"] = json!({"memory": null, "cpu": {"quota": null}});
    assert_eq!(plan_of(&document).unwrap().memory_mib, 512);
}

#[test]
fn namespace_of_the_host_cannot_be_joined() {
    let mut document = spec();
    document["linux"]["namespaces"] = json!([{"type": "ipc", "path": "/proc/7/ns/ipc"}]);
    let error = plan_of(&document).unwrap_err();
    assert_eq!(error.to_string(), "joining the ipc namespace /proc/7/ns/ipc is not supported");
}

#[test]
fn network_that_was_prepared_is_the_vms_and_its_path_stays_here() {
    let mut document = spec();
    document["linux"]["namespaces"] =
        json!([{"type": "pid"}, {"type": "network", "path": "/var/run/netns/x"}]);
    let plan = plan_of(&document).unwrap();
    assert_eq!(plan.network, NetworkPlan::Path("/var/run/netns/x".into()));
    let sent: Value = serde_json::from_slice(&plan.spec_json).unwrap();
    assert_eq!(sent["linux"]["namespaces"], json!([{"type": "pid"}]));
    assert_eq!(plan_of(&spec()).unwrap().network, NetworkPlan::None);
}

#[test]
fn network_that_nobody_prepared_is_where_callers_may_put_links_later() {
    let mut document = spec();
    document["linux"]["namespaces"] = json!([{"type": "network"}]);
    let spec_json = serde_json::to_vec(&document).unwrap();
    let network = |late_links| {
        let (bundle, settings) = (Path::new("/bundle"), &VmSettings::default());
        let rootfs = &[Mount { kind: "overlay".into(), ..Mount::default() }];
        let (spec_json, joined) = (&spec_json, None);
        plan(Inputs { bundle, spec_json, rootfs, settings, host: HOST, late_links, joined }).unwrap().network
    };
    assert_eq!(network(true), NetworkPlan::Own);
    assert_eq!(network(false), NetworkPlan::None);
}

#[test]
fn network_is_the_guests_and_its_namespace_is_not_made() {
    let kinds = |namespaces: Value| {
        let mut document = spec();
        document["linux"]["namespaces"] = namespaces;
        let sent: Value = serde_json::from_slice(&plan_of(&document).unwrap().spec_json).unwrap();
        sent["linux"]["namespaces"].clone()
    };
    let (pid, network, user) = (json!({"type": "pid"}), json!({"type": "network"}), json!({"type": "user"}));
    assert_eq!(kinds(json!([pid, network])), json!([pid]));
    // Of which the agent says that it has no maps.
    assert_eq!(kinds(json!([network, user])), json!([network, user]));
    assert_eq!(kinds(Value::Null), Value::Null);
}

#[test]
fn hooks_of_the_host_stay_here_and_those_of_the_container_go_along() {
    let mut document = spec();
    let hook = |path: &str| json!([{"path": path, "args": ["x", "y"], "timeout": 3}]);
    document["hooks"] = json!({
        "prestart": hook("/a"), "createRuntime": hook("/b"), "poststart": null, "poststop": hook("/c"),
        "startContainer": hook("/d"),
    });
    let plan = plan_of(&document).unwrap();
    let paths = |hooks: &[Hook]| hooks.iter().map(|hook| hook.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&plan.hooks.create), [Path::new("/a"), Path::new("/b")]);
    assert_eq!(paths(&plan.hooks.poststop), [Path::new("/c")]);
    assert!(plan.hooks.poststart.is_empty());
    let sent: Value = serde_json::from_slice(&plan.spec_json).unwrap();
    assert_eq!(sent["hooks"], json!({"startContainer": hook("/d")}));
}

#[test]
fn h02_annotation_of_ours_that_is_not_listed_is_refused() {
    let mut document = spec();
    document["annotations"] = json!({"dev.nacre.vmm": "/tmp/evil"});
    assert!(matches!(plan_of(&document), Err(PlanError::Annotation(_))));
}

#[test]
fn document_that_is_none_is_an_error() {
    for bad in ["", "[]", "{", "{\"mounts\": 3, \"process\": []}", "null"] {
        let inputs = Inputs {
            bundle: Path::new("/bundle"),
            spec_json: bad.as_bytes(),
            rootfs: &[],
            settings: &VmSettings::default(),
            host: HOST,
            late_links: false,
            joined: None,
        };
        assert!(plan(inputs).is_err(), "{bad:?}");
    }
}

#[test]
fn c09_seventy_kilobytes_of_mounts_cross_whole() {
    let mut document = spec();
    let mount = json!({"destination": format!("/{}", "d".repeat(300)), "type": "tmpfs", "source": "tmpfs"});
    document["mounts"] = Value::Array(vec![mount; 250]);
    let plan = plan_of(&document).unwrap();
    let sent: Value = serde_json::from_slice(&plan.spec_json).unwrap();
    assert_eq!(sent["mounts"], document["mounts"]);
}

#[test]
fn c09_document_above_the_limit_is_refused() {
    let mut document = spec();
    document["annotations"] = json!({"a": "x".repeat(MAX_SPEC_BYTES)});
    assert!(matches!(plan_of(&document), Err(PlanError::TooLong(_))));
}

fn pod(kind: &str) -> Value {
    let mut document = spec();
    document["annotations"] = json!({
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": "p1",
        "io.kubernetes.cri.sandbox-memory": "268435456",
        "io.kubernetes.cri.sandbox-cpu-quota": "300000",
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
    });
    document["linux"]["namespaces"] =
        json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]);
    document
}

#[test]
fn vm_of_a_pod_has_the_size_of_its_limits_and_a_file_server() {
    let plan = plan_of(&pod("sandbox")).unwrap();
    assert_eq!((plan.vcpus, plan.memory_mib), (3, 256 + 64));
    assert_eq!(plan.cgroup.cpu_max, None, "a container without a limit is not held to the others'");
    assert!(plan.needs_file_server() && plan.shares.is_empty());
    assert!(!plan_of(&spec()).unwrap().needs_file_server());
}

/// Plans a container that joins the sandbox whose VMM is process 700.
fn plan_joining(document: &Value, guest_pid: Option<u32>, users: Option<&IdMaps>) -> Result<Plan, PlanError> {
    let spec_json = serde_json::to_vec(document).unwrap();
    let joined = pod::Joined {
        share_prefix: "c3-",
        host_pid: 700,
        guest_pid,
        network: None,
        own_processes: false,
        sysctls: &BTreeMap::new(),
        users,
    };
    plan(Inputs {
        bundle: Path::new("/bundle"),
        spec_json: &spec_json,
        rootfs: &[Mount { kind: "overlay".into(), ..Mount::default() }],
        settings: &VmSettings::default(),
        host: HOST,
        late_links: false,
        joined: Some(joined),
    })
}

#[test]
fn container_that_joins_has_names_of_its_own() {
    let mut document = pod("container");
    document["mounts"] =
        json!([{"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind"]}]);
    document["linux"]["namespaces"] = json!([{"type": "ipc", "path": "/proc/700/ns/ipc"}, {"type": "pid"}]);
    let plan = plan_joining(&document, Some(60), None).unwrap();
    assert_eq!(
        plan.shares.iter().map(|share| share.name.as_str()).collect::<Vec<_>>(),
        ["c3-rootfs", "c3-m0"]
    );
    let sent: Value = serde_json::from_slice(&plan.spec_json).unwrap();
    assert_eq!(sent["mounts"][0]["source"], "/run/nacre/shares/c3-m0");
    assert_eq!(
        sent["linux"]["namespaces"],
        json!([{"type": "ipc", "path": "/proc/60/ns/ipc"}, {"type": "pid"}])
    );
}

#[test]
fn pod_with_the_hosts_network_processes_or_ipc_is_refused() {
    let all = ["network", "pid", "ipc"];
    for missing in all {
        let mut document = pod("sandbox");
        document["linux"]["namespaces"] =
            all.iter().filter(|kind| **kind != missing).map(|kind| json!({"type": kind})).collect();
        let error = plan_of(&document).unwrap_err();
        assert!(matches!(error, PlanError::HostNamespace(kind) if kind == missing), "{error}");
    }
}

/// A configuration with a user namespace, as containerd makes it.
fn with_users(mut document: Value, path: &str) -> Value {
    document["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user", "path": path}));
    let lines = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    document["linux"]["uidMappings"] = lines.clone();
    document["linux"]["gidMappings"] = lines;
    document
}

fn user_namespace_of(plan: &Plan) -> Value {
    let sent: Value = serde_json::from_slice(&plan.spec_json).unwrap();
    sent["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .find(|found| found["type"] == "user")
        .cloned()
        .unwrap()
}

#[test]
fn user_namespace_of_a_sandbox_is_the_guests_wherever_the_host_has_it() {
    for (kind, path) in [("sandbox", ""), ("sandbox", "/run/netns-user"), ("", "")] {
        let mut document = pod(kind);
        if kind.is_empty() {
            document["annotations"] = json!({});
        }
        let plan = plan_of(&with_users(document, path)).unwrap();
        assert_eq!(plan.users.as_ref().map(|users| (users.uid(7), users.gid(8))), Some((100_007, 100_008)));
        assert_eq!(user_namespace_of(&plan), json!({"type": "user", "path": "/run/nacre/user-namespace"}));
    }
    // A namespace of the host's, of which nothing is known.
    let mut document = pod("sandbox");
    document["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user", "path": "/proc/1/ns/user"}));
    assert!(matches!(plan_of(&document), Err(PlanError::JoinNamespace { .. })));
}

#[test]
fn container_joins_the_user_namespace_of_its_pod_and_no_other() {
    let users = plan_of(&with_users(pod("sandbox"), "")).unwrap().users;
    let join = |path: &str, users: Option<&IdMaps>| {
        let mut document = with_users(pod("container"), path);
        // A container may not bring others than the pod's.
        document["linux"]["uidMappings"][0]["hostID"] = json!(5);
        plan_joining(&document, None, users)
    };
    let plan = join("/proc/700/ns/user", users.as_ref()).unwrap();
    assert_eq!(plan.users, users);
    assert_eq!(user_namespace_of(&plan)["path"], "/run/nacre/user-namespace");
    let sent: Value = serde_json::from_slice(&plan.spec_json).unwrap();
    for maps in ["uidMappings", "gidMappings"] {
        assert_eq!(sent["linux"][maps], json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]));
    }
    let without = plan_joining(&pod("container"), None, users.as_ref());
    assert!(matches!(without, Err(PlanError::NoUserNamespace)));
    for (path, users) in [("/proc/700/ns/user", None), ("/proc/701/ns/user", users.as_ref())] {
        assert!(matches!(join(path, users), Err(PlanError::JoinNamespace { .. })), "{path}");
    }
}
