//! Sandboxes: made, told, stopped, removed, made again.

use std::collections::BTreeSet;
use std::path::Path;

use nacre_protocol::cri::{Empty, PodSandboxFilter, PodSandboxStatusRequest};
use nacre_tests::cri::{NOT_FOUND, Pod, READY, Wish, state};
use nacre_tests::{Stay, pids};

use super::NODE;

/// SANDBOX_NOTREADY.
const NOT_READY: i32 = 1;

fn vmms_since(before: &BTreeSet<u32>) -> usize {
    pids("nacre-vmm").difference(before).count()
}

#[test]
fn stop_and_removal_of_a_pod_can_be_repeated() {
    repeated(&NODE.enter());
}

pub(crate) fn repeated(stay: &Stay<'_>) {
    let before = pids("nacre-vmm");
    let pod = stay.run("repeated");
    let app = pod.start("app", Wish::idle());
    assert_eq!(vmms_since(&before), 1);
    for _ in 0..2 {
        pod.stop_all();
        assert!(!pod.is_ready());
        assert_eq!(pod.status(&app).exit_code, 137);
    }
    assert_eq!(vmms_since(&before), 0);
    let name = pod.name();
    for _ in 0..2 {
        let _: Empty = stay.cri().must("RemovePodSandbox", &name);
    }
    assert!(!Path::new("/run/nacre/k8s.io").join(&name.pod_sandbox_id).exists(), "state is left");
    let request = PodSandboxStatusRequest { pod_sandbox_id: name.pod_sandbox_id, ..Default::default() };
    assert_eq!(stay.cri().refuses("PodSandboxStatus", &request).status, NOT_FOUND);
}

#[test]
fn running_pod_is_removed_with_its_containers() {
    let stay = NODE.enter();
    let before = pids("nacre-vmm");
    let pod = stay.run("removed");
    pod.start("app", Wish::idle());
    let _: Empty = stay.cri().must("RemovePodSandbox", &pod.name());
    assert_eq!(vmms_since(&before), 0);
}

#[test]
fn pods_are_listed_by_id_state_and_label() {
    let stay = NODE.enter();
    let mut config = stay.config("listed");
    config.labels.insert("app".into(), "listed".into());
    let pod = stay.run_config(config);
    let ids = |change: &dyn Fn(&mut PodSandboxFilter)| -> Vec<String> {
        let found = stay.cri().pods(change).into_iter();
        // The shared pod may be there or not.
        found.filter(|found| found.metadata.name == "listed").map(|found| found.id).collect()
    };
    let own = [pod.id().to_owned()];
    let label =
        |value: &str| ids(&|filter| drop(filter.label_selector.insert("app".into(), value.to_owned())));
    assert_eq!(label("listed"), own);
    assert_eq!(label("other"), [""; 0]);
    assert_eq!(ids(&|filter| filter.id = pod.id().to_owned()), own);
    assert_eq!(ids(&|filter| filter.state = Some(state(READY)).into()), own);
    pod.stop_all();
    assert_eq!(ids(&|filter| filter.state = Some(state(READY)).into()), [""; 0]);
    assert_eq!(ids(&|filter| filter.state = Some(state(NOT_READY)).into()), own);
    pod.end();
}

#[test]
fn status_of_a_pod_tells_labels_annotations_handler_address_and_more_where_asked() {
    let stay = NODE.enter();
    let mut config = stay.config("told");
    config.labels.insert("io.kubernetes.pod.name".into(), "told".into());
    config.annotations.insert("example.org/note".into(), "one\n\"two\" = ü".into());
    let pod = stay.run_config(config);
    let told = pod.describe(true);
    let status = &told.status;
    assert_eq!(status.metadata.name, "told");
    assert_eq!(status.metadata.uid, "uid-told");
    assert_eq!(status.labels["io.kubernetes.pod.name"], "told");
    assert_eq!(status.annotations["example.org/note"], "one\n\"two\" = ü");
    assert_eq!(status.runtime_handler, "nacre");
    assert!(status.network.ip.starts_with("10.77."), "{status:?}");
    assert!(status.network.additional_ips[0].ip.starts_with("fd77:"), "{status:?}");
    let info: serde_json::Value = serde_json::from_str(&told.info["info"]).unwrap();
    assert_eq!(info["runtimeType"], "io.containerd.nacre.v2");
    assert!(info["pid"].as_u64().unwrap() > 0, "{info}");
    pod.end();
}

#[test]
fn pod_is_made_again_as_its_next_attempt_with_a_vm_of_its_own() {
    let stay = NODE.enter();
    let first = stay.run("attempts");
    let refusal = Pod::try_run(stay.cri(), "nacre", stay.config("attempts")).err().unwrap();
    assert!(refusal.message.contains("reserved"), "{refusal:?}");
    let boot = |pod: &Pod<'_>, attempt| {
        let app = pod.start("app", Wish::idle().attempt(attempt));
        pod.sh(&app, "cat /proc/sys/kernel/random/boot_id").ok().stdout
    };
    let of_first = boot(&first, 0);
    first.stop_all();
    let mut config = stay.config("attempts");
    config.metadata.mut_or_insert_default().attempt = 1;
    let second = stay.run_config(config);
    assert_ne!(boot(&second, 1), of_first);
    first.end();
    assert!(second.is_ready());
    second.end();
}

#[test]
fn three_pods_start_at_once_and_are_three_vms() {
    let stay = NODE.enter();
    let before = pids("nacre-vmm");
    let connections: Vec<_> =
        (0..3).map(|number| (stay.cri().again(), format!("parallel-{number}"))).collect();
    let logs = stay.path("logs");
    std::thread::scope(|scope| {
        for (cri, name) in &connections {
            let logs = &logs;
            scope.spawn(move || {
                let pod = Pod::run(cri, name, logs);
                let app = pod.start("app", Wish::idle());
                assert_eq!(pod.sh(&app, "hostname").ok().text(), name);
            });
        }
    });
    assert_eq!(vmms_since(&before), 3);
    for pod in stay.cri().pods(|_| {}).iter().filter(|pod| pod.metadata.name.starts_with("parallel")) {
        Pod::again(stay.cri(), &pod.id, &pod.metadata.name, &logs).end();
    }
    assert_eq!(vmms_since(&before), 0);
}

#[test]
fn twenty_containers_run_in_one_pod() {
    let stay = NODE.enter();
    let before = pids("nacre-vmm");
    let pod = stay.run("twenty");
    let ids: Vec<String> = (0..20)
        .map(|number| {
            pod.start(&format!("c{number}"), Wish::sh(&format!("echo {number} > /mark; exec sleep 100000")))
        })
        .collect();
    for (number, id) in ids.iter().enumerate() {
        let seen = pod.sh(id, "until [ -s /mark ]; do sleep 0.1; done; cat /mark").ok();
        assert_eq!(seen.text(), number.to_string());
    }
    assert_eq!(vmms_since(&before), 1);
    pod.end();
}

#[test]
fn pod_of_an_unknown_handler_is_refused() {
    let stay = NODE.enter();
    let refusal = Pod::try_run(stay.cri(), "nacre-typo", stay.config("typo")).err().unwrap();
    assert!(refusal.message.contains("nacre-typo"), "{refusal:?}");
    assert!(stay.cri().pods(|_| {}).iter().all(|pod| pod.metadata.name != "typo"));
}

#[test]
fn refused_pod_leaves_its_name_free() {
    let stay = NODE.enter();
    let mut config = stay.config("once-refused");
    config.annotations.insert("dev.nacre.vmm".into(), "/bin/sh".into());
    let refusal = Pod::try_run(stay.cri(), "nacre", config).err().unwrap();
    assert!(refusal.message.contains("annotation dev.nacre.vmm is not allowed"), "{refusal:?}");
    let pod = stay.run("once-refused");
    assert!(pod.is_ready());
    pod.end();
}
