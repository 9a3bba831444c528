//! What the runtime tells by itself (GetContainerEvents), as an evented kubelet hears it.

use std::time::Duration;

use nacre_protocol::cri::{ContainerEvent, Empty};
use nacre_tests::Stay;
use nacre_tests::cri::{Answers, Wish};

use super::NODE;

/// ContainerEventType.
const CREATED: i32 = 0;
const STARTED: i32 = 1;
const STOPPED: i32 = 2;
const DELETED: i32 = 3;

/// Follows the events, from a moment at which they are known to come.
fn listen(stay: &Stay<'_>) -> Answers {
    let mut events = stay.cri().follow("GetContainerEvents", &Empty::new());
    for attempt in 0..100 {
        let probe = stay.pod().create("probe", Wish::idle().attempt(attempt));
        stay.pod().remove(&probe);
        if events.answer_within::<ContainerEvent>(Duration::from_secs(1)).is_some() {
            return events;
        }
    }
    panic!("no event of a hundred containers");
}

/// The next events of a container, others left out.
#[track_caller]
fn of(events: &mut Answers, id: &str, count: usize) -> Vec<i32> {
    let mut found = Vec::new();
    while found.len() < count {
        let event: ContainerEvent = events.answer();
        if event.container_id == id {
            found.push(event.container_event_type);
        }
    }
    found
}

#[test]
fn life_of_a_container_is_told_in_order() {
    let stay = NODE.share();
    let pod = stay.pod();
    let mut events = listen(&stay);
    let id = pod.start("told", Wish::sh("exit 3"));
    assert_eq!(of(&mut events, &id, 3), [CREATED, STARTED, STOPPED]);
    assert_eq!(pod.status(&id).exit_code, 3, "what is told has happened");
    pod.remove(&id);
    assert_eq!(of(&mut events, &id, 1), [DELETED]);
}

#[test]
fn life_of_a_pod_is_told_in_order() {
    let stay = NODE.share();
    let mut events = listen(&stay);
    let pod = stay.run("told");
    let id = pod.id().to_owned();
    assert_eq!(of(&mut events, &id, 2), [CREATED, STARTED]);
    pod.end();
    assert_eq!(of(&mut events, &id, 2), [STOPPED, DELETED]);
}

#[test]
fn ends_of_many_short_containers_are_all_told() {
    let stay = NODE.share();
    let pod = stay.pod();
    let mut events = listen(&stay);
    let mut ids: Vec<String> =
        (0..8).map(|attempt| pod.start("short", Wish::sh("exit 0").attempt(attempt))).collect();
    let all = ids.clone();
    while !ids.is_empty() {
        let event: ContainerEvent = events.answer();
        if event.container_event_type == STOPPED {
            ids.retain(|id| *id != event.container_id);
        }
    }
    all.iter().for_each(|id| pod.remove(id));
}
