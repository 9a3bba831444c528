//! Cases of [`pods`](super::pods) again with containerd 1.7, which many nodes still run: its shim manager, its events
//! and its streaming server are others.

use nacre_tests::{Containerd, Shared};

use super::pods::{containers, ends, exec, figures, logs, security, streams, volumes};

static NODE: Shared = Shared::new(module_path!(), Containerd::older);

#[test]
fn init_containers_run_one_after_the_other_beside_a_sidecar_that_outlives_them() {
    containers::init_containers(&NODE.share());
}

#[test]
fn exit_codes_and_their_reasons_are_told() {
    ends::exit_codes(&NODE.share());
}

#[test]
fn container_that_takes_too_much_memory_is_oom_killed_and_the_pod_lives_on() {
    ends::oom(&NODE.share());
}

#[test]
fn exec_tells_status_and_both_outputs() {
    exec::status_and_outputs(&NODE.share());
}

#[test]
fn exec_that_takes_too_long_is_told_and_dead_in_the_guest() {
    exec::too_long(&NODE.share());
}

#[test]
fn exec_is_fed_by_stdin_and_ends_with_its_status() {
    streams::exec_with_input(&NODE.share());
}

#[test]
fn exec_on_a_terminal_has_one_and_follows_its_size() {
    streams::exec_on_a_terminal(&NODE.share());
}

#[test]
fn attached_client_hears_and_is_heard_until_it_closes_stdin() {
    streams::attach(&NODE.share());
}

#[test]
fn capabilities_are_added_and_dropped() {
    security::capabilities(&NODE.share());
}

#[test]
fn containers_of_a_pod_share_an_empty_dir_and_the_host_sees_it() {
    volumes::empty_dir(&NODE.share());
}

#[test]
fn cpu_of_a_container_is_that_of_its_cgroup_in_the_guest() {
    figures::cpu(&NODE.share());
}

#[test]
fn lines_of_both_streams_are_logged_with_time_stream_and_tag() {
    logs::lines(&NODE.share());
}

#[test]
fn limits_of_a_container_hold_in_the_guest_and_are_changed_while_it_runs() {
    figures::limits(&NODE.share());
}
