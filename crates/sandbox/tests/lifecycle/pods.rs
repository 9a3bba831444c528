//! Several containers in one sandbox: they join it, leave it, and end with it.

use nacre_sandbox::agent::Reach;
use nacre_sandbox::error::SandboxError;
use nacre_sandbox::plan::pod::PodRequest;
use nacre_sandbox::sandbox::{CreateRequest, Force};
use nacre_sandbox::state::State;

use crate::cases::kill;
use crate::fixture::{Host, init, init_of};

pub(crate) async fn containers_of_a_pod_come_and_go_in_one_vm(mut host: Host) -> Host {
    let pid = host.create_pod(&["sleep"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    for round in 0..3 {
        let id = format!("app{round}");
        assert_eq!(host.join(&id, &["exit", "5"]).await.unwrap(), pid);
        assert!(matches!(host.join(&id, &["exit", "5"]).await, Err(SandboxError::HasContainer(_))));
        host.sandbox.start(init_of(&id)).await.unwrap();
        assert_eq!(host.sandbox.wait(init_of(&id)).await.unwrap().status, 5);
        assert_eq!(host.sandbox.status(&init_of(&id)).unwrap().state, State::Stopped);
        assert_eq!(host.sandbox.delete(init_of(&id)).await.unwrap().1.status, 5);
        assert!(matches!(host.sandbox.status(&init_of(&id)), Err(SandboxError::NoContainer(_))));
    }
    assert!(!host.sandbox.shutdown(Force::Empty).await.unwrap());
    assert_eq!(host.sandbox.status(&init()).unwrap().state, State::Running);
    host.sandbox.signal(init(), 9, Reach::Process).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 137);
    host.sandbox.delete(init()).await.unwrap();
    host
}

pub(crate) async fn container_that_joins_and_is_never_started_can_be_deleted(mut host: Host) -> Host {
    host.create_pod(&["sleep"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    host.join("app", &["sleep"]).await.unwrap();
    assert_eq!(host.sandbox.delete(init_of("app")).await.unwrap().1.status, 137);
    assert_eq!(host.sandbox.status(&init()).unwrap().state, State::Running);
    host
}

pub(crate) async fn end_of_a_pods_sandbox_ends_its_containers(mut host: Host) -> Host {
    host.create_pod(&["sleep"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    host.join("app", &["sleep"]).await.unwrap();
    host.sandbox.start(init_of("app")).await.unwrap();
    host.sandbox.signal(init(), 15, Reach::Process).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 143);
    assert_eq!(host.sandbox.wait(init_of("app")).await.unwrap().status, 137);
    // In either order.
    host.sandbox.delete(init()).await.unwrap();
    assert_eq!(host.sandbox.delete(init_of("app")).await.unwrap().1.status, 137);
    assert!(host.sandbox.shutdown(Force::Empty).await.unwrap());
    host
}

pub(crate) async fn container_of_another_pod_is_refused(mut host: Host) -> Host {
    host.create_pod(&["sleep"]).await.unwrap();
    let text = std::fs::read_to_string(host.path("bundle/config.json")).unwrap();
    let other = text.replace("\"web\"", "\"other\"").replace("\"sandbox\"", "\"container\"");
    std::fs::write(host.path("member/config.json"), other).unwrap();
    let request = CreateRequest { id: "app".into(), bundle: host.path("member"), ..CreateRequest::default() };
    let refused = host.sandbox.create(request).await;
    assert!(matches!(refused, Err(SandboxError::OtherPod { .. })), "{refused:?}");
    host
}

pub(crate) async fn container_that_cannot_join_leaves_the_pod_as_it_was(mut host: Host) -> Host {
    host.create_pod(&["sleep"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    assert!(host.join("app", &["refuse"]).await.is_err());
    std::fs::rename(host.path("member/rootfs"), host.path("gone")).unwrap();
    let error = host.join("app", &["sleep"]).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot open "), "{error}");
    std::fs::rename(host.path("gone"), host.path("member/rootfs")).unwrap();
    host.join("app", &["exit", "0"]).await.unwrap();
    host.sandbox.start(init_of("app")).await.unwrap();
    assert_eq!(host.sandbox.wait(init_of("app")).await.unwrap().status, 0);
    host
}

pub(crate) async fn pod_without_a_container_of_its_own_lives_until_it_is_stopped(mut host: Host) -> Host {
    let pid = host.sandbox.start_pod(PodRequest::default()).await.unwrap();
    host.vmms.push(pid);
    assert!(
        !host.sandbox.shutdown(Force::Empty).await.unwrap(),
        "a pod without containers is no empty sandbox"
    );
    assert!(host.sandbox.start_pod(PodRequest::default()).await.is_err());
    assert_eq!(host.join("app", &["exit", "3"]).await.unwrap(), pid);
    host.sandbox.start(init_of("app")).await.unwrap();
    assert_eq!(host.sandbox.wait(init_of("app")).await.unwrap().status, 3);
    assert_eq!(host.sandbox.pod_stats().await.unwrap().cpu_usage_usec, 7);
    host.sandbox.delete(init_of("app")).await.unwrap();
    host.join("last", &["sleep"]).await.unwrap();
    host.sandbox.start(init_of("last")).await.unwrap();
    assert!(host.sandbox.pod_status().unwrap().exit.is_none());
    host.sandbox.stop_pod().await.unwrap();
    host.sandbox.stop_pod().await.unwrap();
    assert_eq!(host.sandbox.wait_pod().await.unwrap().status, 137);
    assert_eq!(host.sandbox.wait(init_of("last")).await.unwrap().status, 137);
    assert!(matches!(host.join("late", &["sleep"]).await, Err(SandboxError::NotRunning(_))));
    host
}

pub(crate) async fn death_of_a_pods_vm_is_told_to_who_waits(mut host: Host) -> Host {
    let pid = host.sandbox.start_pod(PodRequest::default()).await.unwrap();
    host.vmms.push(pid);
    let waits = tokio::spawn({
        let sandbox = host.sandbox.clone();
        async move { sandbox.wait_pod().await }
    });
    kill(pid);
    let exit = waits.await.unwrap().unwrap();
    assert_eq!(exit.status, 137);
    assert!(exit.failure.is_some_and(|failure| failure.contains("signal 9")));
    assert!(host.sandbox.shutdown(Force::Empty).await.unwrap());
    host
}

pub(crate) async fn layers_of_a_container_that_joins_are_a_disk_that_leaves_with_it(mut host: Host) -> Host {
    host.create_pod(&["sleep"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    // More of them than there are slots, one after the other.
    for round in 0..20 {
        let id = format!("app{round}");
        host.join_with_layers(&id, &["exit", "0"]).await.unwrap();
        host.sandbox.start(init_of(&id)).await.unwrap();
        host.sandbox.wait(init_of(&id)).await.unwrap();
        host.sandbox.delete(init_of(&id)).await.unwrap();
        // Nobody else takes the events out.
        while host.events.try_recv().is_ok() {}
    }
    for round in 0..16 {
        host.join_with_layers(&format!("side{round}"), &["sleep"]).await.unwrap();
    }
    let error = host.join_with_layers("one-more", &["sleep"]).await.unwrap_err().to_string();
    assert!(error.contains("no free hot-plug slot is left"), "{error}");
    // One that leaves makes room.
    host.sandbox.delete(init_of("side3")).await.unwrap();
    host.join_with_layers("one-more", &["sleep"]).await.unwrap();
    host
}

pub(crate) async fn disk_that_the_guest_does_not_take_is_taken_back(mut host: Host) -> Host {
    host.kernel("no-disks");
    host.create_pod(&["sleep"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    for _ in 0..20 {
        let error = host.join_with_layers("app", &["sleep"]).await.unwrap_err().to_string();
        assert!(error.contains("the driver failed"), "{error}");
    }
    host
}
