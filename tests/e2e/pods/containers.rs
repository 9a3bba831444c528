//! Containers: created, started, told, ended, removed.

use nacre_tests::Stay;
use nacre_tests::cri::{CREATED, EXITED, NOT_FOUND, RUNNING, Wish, named, state};

use super::NODE;

#[test]
fn container_that_was_only_created_is_told_and_removed() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.create("created", Wish::idle());
    assert_eq!(pod.status(&id).state, CREATED);
    pod.remove(&id);
    let refusal = stay.cri().refuses("ContainerStatus", &named(&id));
    assert_eq!(refusal.status, NOT_FOUND, "{refusal:?}");
}

#[test]
fn container_is_not_started_twice() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("twice", Wish::idle());
    let refusal = stay.cri().refuses("StartContainer", &named(&id));
    assert!(refusal.message.contains("RUNNING"), "{refusal:?}");
    assert_eq!(pod.status(&id).state, RUNNING);
    pod.stop_within(&id, 0);
    let refusal = stay.cri().refuses("StartContainer", &named(&id));
    assert!(refusal.message.contains("EXITED"), "{refusal:?}");
    pod.remove(&id);
}

#[test]
fn container_that_ended_is_stopped_again_without_an_error() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("ended", Wish::sh("exit 7"));
    pod.wait(&id);
    for _ in 0..2 {
        assert_eq!(pod.stop(&id).exit_code, 7);
    }
    pod.remove(&id);
}

#[test]
fn running_container_is_removed_and_a_removed_one_again() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("running", Wish::idle());
    pod.remove(&id);
    pod.remove(&id);
    assert_eq!(stay.cri().containers(|filter| filter.id.clone_from(&id)), []);
}

#[test]
fn name_of_a_container_is_taken_until_its_next_attempt() {
    let stay = NODE.share();
    let pod = stay.pod();
    let first = pod.start("again", Wish::sh("touch /mark; exit 1"));
    pod.wait(&first);
    let refusal = pod.try_create("again", Wish::idle()).unwrap_err();
    assert!(refusal.message.contains("reserved"), "{refusal:?}");
    // A root file system and a log of its own.
    let second = pod.start("again", Wish::sh("ls /mark 2> /dev/null; echo again").attempt(1));
    let ended = pod.wait(&second);
    assert_eq!((ended.exit_code, ended.metadata.attempt), (0, 1));
    pod.wait_for_log_end("again", 1, "stdout F again\n");
    assert_eq!(pod.log("again", 0), "");
    pod.remove(&first);
    pod.remove(&second);
}

#[test]
fn containers_are_listed_by_pod_state_and_label() {
    let stay = NODE.share();
    let pod = stay.pod();
    let web = pod.start("web", Wish::idle().label("app", "web").label("tier", "front"));
    let job = pod.start("job", Wish::sh("exit 0").label("app", "job"));
    pod.wait(&job);
    let cri = stay.cri();
    let ids = |change: &dyn Fn(&mut nacre_protocol::cri::ContainerFilter)| -> Vec<String> {
        cri.containers(change).into_iter().map(|container| container.id).collect()
    };
    let label = |key: &str, value: &str| {
        ids(&|filter| drop(filter.label_selector.insert(key.to_owned(), value.to_owned())))
    };
    assert_eq!(label("app", "web"), std::slice::from_ref(&web));
    assert_eq!(label("app", "none"), [""; 0]);
    assert_eq!(ids(&|filter| filter.state = Some(state(EXITED)).into()), std::slice::from_ref(&job));
    assert_eq!(ids(&|filter| filter.state = Some(state(RUNNING)).into()), std::slice::from_ref(&web));
    assert_eq!(ids(&|filter| filter.pod_sandbox_id = pod.id().to_owned()).len(), 2);
    assert_eq!(ids(&|filter| filter.pod_sandbox_id = "0".repeat(64)), [""; 0]);
    pod.remove(&web);
    pod.remove(&job);
}

#[test]
fn status_of_a_container_tells_labels_annotations_mounts_and_times() {
    let stay = NODE.share();
    let pod = stay.pod();
    let volume = stay.dir("told");
    let wish = Wish::sh("exit 0").label("app", "told").mount_read_only(&volume, "/data").with(|config| {
        config.annotations.insert("example.org/note".into(), "a = \"b\"\nc".into());
    });
    let id = pod.start("told", wish);
    let status = pod.wait(&id);
    assert_eq!(status.labels["app"], "told");
    assert_eq!(status.annotations["example.org/note"], "a = \"b\"\nc");
    assert_eq!((status.metadata.name.as_str(), status.metadata.attempt), ("told", 0));
    let mount = status.mounts.iter().find(|mount| mount.container_path == "/data").unwrap();
    assert!(mount.readonly && mount.host_path == volume.display().to_string(), "{mount:?}");
    assert!(status.log_path.ends_with("shared/told-0.log"), "{status:?}");
    assert!(0 < status.created_at, "{status:?}");
    assert!(status.created_at <= status.started_at && status.started_at <= status.finished_at, "{status:?}");
    pod.remove(&id);
}

#[test]
fn init_containers_run_one_after_the_other_beside_a_sidecar_that_outlives_them() {
    init_containers(&NODE.share());
}

pub(crate) fn init_containers(stay: &Stay<'_>) {
    let pod = stay.pod();
    let volume = stay.dir("order");
    let at = |script: &str| Wish::sh(script).mount(&volume, "/work");
    let sidecar =
        pod.start("sidecar", at("until [ -e /work/over ]; do sleep 0.2; done; echo sidecar >> /work/order"));
    for number in 1..=2 {
        let name = format!("init-{number}");
        let (ended, _) = pod.run_to_end(&name, at(&format!("echo {name} >> /work/order")));
        assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    }
    let (ended, _) = pod.run_to_end("app", at("echo app >> /work/order; touch /work/over"));
    assert_eq!(ended.exit_code, 0);
    assert_eq!(pod.wait(&sidecar).exit_code, 0);
    let order = std::fs::read_to_string(volume.join("order")).unwrap();
    assert_eq!(order, "init-1\ninit-2\napp\nsidecar\n");
    pod.remove(&sidecar);
}

#[test]
fn container_cannot_join_a_pod_that_was_stopped() {
    let stay = NODE.enter();
    let pod = stay.run("over");
    let id = pod.create("late", Wish::idle());
    pod.stop_all();
    let refusal = stay.cri().refuses("StartContainer", &named(&id));
    assert!(refusal.message.contains("is not running"), "{refusal:?}");
    pod.end();
}
