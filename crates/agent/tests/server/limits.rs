//! What a container's limits tell the host. They need a cgroup v2 memory controller.

use nacre_protocol::rpc::agent::{ContainerRequest, Empty};
use serde_json::json;

use crate::fixture::{TestGuest, has_controllers};
use crate::host::{Host, context, unique};

#[tokio::test]
async fn memory_limit_that_kills_is_an_event_and_stands_in_the_exit() {
    if !has_controllers() {
        eprintln!("skipped: this machine has no cgroup v2 memory controller");
        return;
    }
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    // More than one process dies, which is still one event until it is taken.
    let mut spec = guest.spec("tail /dev/zero; tail /dev/zero; sleep 600");
    spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    host.run("greedy", &spec).await;
    let event = host.agent.next_event(context(), &Empty::new()).await.unwrap();
    assert_eq!((event.container_id, event.kind.as_str()), (unique("greedy"), "oom"));
    let request = ContainerRequest { container_id: unique("greedy"), ..Default::default() };
    let stats = host.agent.stats(context(), &request).await.unwrap();
    assert!(stats.memory_oom_kill >= 1 && stats.memory_max == 16 << 20, "{stats:?}");
    let kill = nacre_protocol::rpc::agent::SignalRequest {
        container_id: unique("greedy"),
        signal: 9,
        all: true,
        ..Default::default()
    };
    host.agent.signal(context(), &kill).await.unwrap();
    assert!(host.wait("greedy", "").await.oom_killed);
    host.delete("greedy", "").await.unwrap();
}

#[tokio::test]
async fn container_that_was_only_killed_is_not_out_of_memory() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    host.run("modest", &guest.spec("kill -9 $$; exit 3")).await;
    assert!(!host.wait("modest", "").await.oom_killed);
    host.delete("modest", "").await.unwrap();
}
