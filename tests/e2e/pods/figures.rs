//! Limits of containers and pods, and what is used of them: as the runtime tells it, and as the guest's kernel does.

use std::fs;

use nacre_protocol::cri::{
    LinuxContainerResources, ListContainerStatsRequest, ListContainerStatsResponse,
    ListPodSandboxStatsRequest, ListPodSandboxStatsResponse,
};
use nacre_tests::cri::{Pod, Wish, wait_for};
use nacre_tests::{Stay, pids};

use super::NODE;

const MIB: u64 = 1 << 20;

/// A file of the container's own cgroup.
#[track_caller]
fn cgroup(pod: &Pod<'_>, container: &str, file: &str) -> String {
    pod.sh(container, &format!("cat /sys/fs/cgroup/{file}")).ok().text().to_owned()
}

fn field(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {key} in {text}"))
}

#[test]
fn cpu_of_a_container_is_that_of_its_cgroup_in_the_guest() {
    cpu(&NODE.share());
}

pub(crate) fn cpu(stay: &Stay<'_>) {
    let pod = stay.pod();
    let id = pod.start("busy", Wish::sh("for i in $(seq 20000); do :; done; echo done; exec sleep 100000"));
    wait_for("its work", || pod.log("busy", 0).contains("done"));
    let told = || pod.stats(&id).cpu.usage_core_nano_seconds.value;
    // An exec costs time of its own: the guest's figure lies between two of the runtime's.
    let before = told();
    let guest = field(&cgroup(&pod, &id, "cpu.stat"), "usage_usec") * 1000;
    let after = told();
    assert!(0 < before && before <= guest && guest <= after, "{before} <= {guest} <= {after}");
    pod.remove(&id);
}

#[test]
fn memory_of_a_container_is_that_of_its_cgroup_in_the_guest() {
    memory(&NODE.share());
}

pub(crate) fn memory(stay: &Stay<'_>) {
    let pod = stay.pod();
    let hold = "x = bytearray(b'x' * (24 << 20)); print('held', flush=True); import time; time.sleep(100000)";
    let id = pod.start("holder", Wish::sh("").command(&["python3", "-c", hold]).memory(100 << 20));
    wait_for("its memory", || pod.log("holder", 0).contains("held"));
    let stats = pod.stats(&id);
    let (usage, set) = (stats.memory.usage_bytes.value, stats.memory.working_set_bytes.value);
    assert_eq!(stats.attributes.id, id);
    assert!((24 * MIB..60 * MIB).contains(&set) && set <= usage, "{set} of {usage}");
    let guest: u64 = cgroup(&pod, &id, "memory.current").parse().unwrap();
    // The exec that asks has some pages of its own.
    assert!(guest.abs_diff(usage) < 4 * MIB, "{usage} here, {guest} there");
    pod.remove(&id);
}

#[test]
fn figures_are_listed_by_pod_and_label() {
    let stay = NODE.share();
    let pod = stay.pod();
    let ids = ["one", "two"].map(|name| pod.start(name, Wish::idle().label("name", name)));
    let list = |key: &str, value: &str| {
        let mut request = ListContainerStatsRequest::new();
        let filter = request.filter.mut_or_insert_default();
        filter.pod_sandbox_id = pod.id().to_owned();
        filter.label_selector.insert(key.to_owned(), value.to_owned());
        let reply: ListContainerStatsResponse = stay.cri().must("ListContainerStats", &request);
        reply.stats.into_iter().map(|stats| stats.attributes.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(list("name", "two"), [ids[1].clone()]);
    let mut request = ListContainerStatsRequest::new();
    request.filter.mut_or_insert_default().pod_sandbox_id = pod.id().to_owned();
    let reply: ListContainerStatsResponse = stay.cri().must("ListContainerStats", &request);
    assert_eq!(reply.stats.len(), 2);
    assert!(reply.stats.iter().all(|stats| stats.memory.working_set_bytes.value > 0), "{reply:?}");
    ids.iter().for_each(|id| pod.remove(id));
}

#[test]
fn figures_of_a_pod_are_those_of_its_vm_on_the_host() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("app", Wish::idle());
    let stats = pod.pod_stats();
    assert_eq!(stats.attributes.id, pod.id());
    assert!(stats.linux.cpu.usage_core_nano_seconds.value > 0, "{stats:?}");
    // The VM's memory that was touched, and no more than it was given.
    let set = stats.linux.memory.working_set_bytes.value;
    assert!((20 * MIB..700 * MIB).contains(&set), "{set}");
    assert!(stats.linux.containers.iter().any(|container| container.attributes.id == id), "{stats:?}");
    let all: ListPodSandboxStatsResponse =
        stay.cri().must("ListPodSandboxStats", &ListPodSandboxStatsRequest::new());
    assert!(all.stats.iter().any(|stats| stats.attributes.id == pod.id()), "{all:?}");
    pod.remove(&id);
}

#[test]
fn limits_of_a_container_hold_in_the_guest_and_are_changed_while_it_runs() {
    limits(&NODE.share());
}

pub(crate) fn limits(stay: &Stay<'_>) {
    let pod = stay.pod();
    let wish = Wish::idle().memory(64 << 20).with(|config| {
        let resources = config.linux.mut_or_insert_default().resources.mut_or_insert_default();
        (resources.cpu_quota, resources.cpu_period, resources.cpu_shares) = (50_000, 100_000, 512);
    });
    let id = pod.start("limited", wish);
    let read = |file| cgroup(&pod, &id, file);
    assert_eq!((read("memory.max"), read("cpu.max")), ((64 << 20).to_string(), "50000 100000".to_owned()));
    // The curve on which 1024 shares, the default, are the weight 100, the default.
    assert_eq!(read("cpu.weight"), "59");
    let limits = LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        cpu_quota: 30_000,
        cpu_period: 100_000,
        cpu_shares: 1024,
        ..Default::default()
    };
    pod.update(&id, limits);
    assert_eq!((read("memory.max"), read("cpu.max")), ((96 << 20).to_string(), "30000 100000".to_owned()));
    assert_eq!(read("cpu.weight"), "100");
    pod.remove(&id);
}

#[test]
fn unified_limits_of_a_container_hold_in_the_guest() {
    let stay = NODE.share();
    let pod = stay.pod();
    let wish = Wish::idle().with(|config| {
        let resources = config.linux.mut_or_insert_default().resources.mut_or_insert_default();
        resources.unified.insert("memory.high".into(), (32 << 20).to_string());
        resources.unified.insert("pids.max".into(), "17".into());
    });
    let id = pod.start("unified", wish);
    assert_eq!(cgroup(&pod, &id, "memory.high"), (32 << 20).to_string());
    assert_eq!(cgroup(&pod, &id, "pids.max"), "17");
    pod.remove(&id);
}

#[test]
fn pod_has_the_processors_and_the_memory_of_its_limits() {
    let stay = NODE.enter();
    let mut config = stay.config("sized");
    let resources = config.linux.mut_or_insert_default().resources.mut_or_insert_default();
    resources.memory_limit_in_bytes = 200 << 20;
    (resources.cpu_quota, resources.cpu_period) = (150_000, 100_000);
    let pod = stay.run_config(config);
    let app = pod.start("app", Wish::idle());
    assert_eq!(pod.sh(&app, "nproc").ok().text(), "2", "one and a half, rounded up");
    let total = field(
        &pod.sh(&app, "tr -s ' ' < /proc/meminfo | tr -d :").ok().stdout.replace(" kB", ""),
        "MemTotal",
    );
    // 200 MiB and the guest's own 64, less what the kernel keeps for itself.
    assert!((180 << 10..=264 << 10).contains(&total), "{total} KiB");
    pod.end();
}

#[test]
fn limits_of_a_pod_that_no_vm_can_have_are_refused() {
    let stay = NODE.enter();
    let mut config = stay.config("too-large");
    let resources = config.linux.mut_or_insert_default().resources.mut_or_insert_default();
    resources.memory_limit_in_bytes = i64::MAX;
    let refusal = Pod::try_run(stay.cri(), "nacre", config).err().unwrap();
    assert!(refusal.message.contains("memory"), "{refusal:?}");
}

#[test]
fn oom_score_of_a_container_is_that_of_the_kubelet() {
    let stay = NODE.share();
    let wish = Wish::sh("cat /proc/self/oom_score_adj").with(|config| {
        config.linux.mut_or_insert_default().resources.mut_or_insert_default().oom_score_adj = 800;
    });
    let (_, log) = stay.pod().run_to_end("score", wish);
    assert!(log.ends_with("stdout F 800\n"), "{log}");
}

#[test]
fn hosts_oom_killer_takes_a_pod_for_the_dearest_of_its_containers() {
    let stay = NODE.enter();
    let before = pids("nacre-vmm");
    let pod = stay.run("preferred");
    let vmm = *pids("nacre-vmm").difference(&before).next().expect("a VMM");
    let score = || fs::read_to_string(format!("/proc/{vmm}/oom_score_adj")).unwrap().trim().to_owned();
    let start = |name: &str, value: i64| {
        pod.start(
            name,
            Wish::idle().with(|config| {
                config.linux.mut_or_insert_default().resources.mut_or_insert_default().oom_score_adj = value;
            }),
        )
    };
    start("spare", 900);
    assert_eq!(score(), "900");
    start("dear", 300);
    assert_eq!(score(), "300");
    start("cheap", 1000);
    assert_eq!(score(), "300");
    pod.end();
}
