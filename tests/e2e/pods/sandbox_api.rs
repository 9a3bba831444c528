//! The same by the Sandbox API (`sandboxer = "shim"`): no pause container.

use std::process::Command;

use nacre_tests::cri::{Channel, Pod, Wish};
use nacre_tests::{Outcome, Stay, pids};

use super::NODE;

fn run<'a>(stay: &'a Stay<'_>, name: &str) -> Pod<'a> {
    Pod::run_with(stay.cri(), "nacre-sandbox", name, &stay.path("logs"))
}

#[test]
fn pod_without_a_pause_container_has_name_address_and_figures() {
    let stay = NODE.enter();
    let before = pids("nacre-vmm");
    let pod = run(&stay, "plain");
    let vmms: Vec<u32> = pids("nacre-vmm").difference(&before).copied().collect();
    assert_eq!(vmms.len(), 1);
    let address = pod.address();
    let first = pod.start("first", Wish::sh("echo note > /dev/shm/note; exec sleep 100000"));
    let second = pod.start("second", Wish::sh("while ! [ -e /dev/shm/note ]; do sleep 0.2; done; exit 6"));
    assert_eq!(pod.wait(&second).exit_code, 6);
    assert_eq!(pod.sh(&first, "hostname").ok().text(), "plain");
    assert!(pod.sh(&first, "ip -4 addr show eth0").ok().text().contains(&address));
    assert!(pod.stats(&first).memory.working_set_bytes.value > 0);
    assert_eq!(pod.stop(&first).exit_code, 137);
    assert!(pod.is_ready());
    // A killed VM is told.
    Outcome::of(Command::new("kill").args(["-9", &vmms[0].to_string()])).ok();
    pod.wait_until_not_ready();
    pod.end();
}

#[test]
fn processes_of_a_pod_without_a_pause_container_are_reached() {
    let stay = NODE.enter();
    let pod = run(&stay, "reached");
    let app = pod.start("app", Wish::idle());
    let out = pod.sh(&app, "echo out; echo err >&2; exit 9");
    assert_eq!((out.status, out.stdout.as_str(), out.stderr.as_str()), (9, "out\n", "err\n"));
    let mut streams = pod.exec_streams(&app, &["sh"], true);
    streams.resize(66, 22);
    streams.send(Channel::Stdin, b"until [ \"$(stty size)\" = '22 66' ]; do sleep 0.1; done; exit 14\n");
    assert_eq!(streams.finish().status, 14);
    let hog = Wish::sh("exec python3 -c 'x = bytearray(200 << 20)'").memory(48 << 20);
    let (ended, _) = pod.run_to_end("hog", hog);
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    pod.end();
}

#[test]
fn stop_and_removal_of_a_pod_without_a_pause_container_can_be_repeated() {
    let stay = NODE.enter();
    let before = pids("nacre-vmm");
    let pod = run(&stay, "repeated-plain");
    let app = pod.start("app", Wish::idle());
    pod.stop_all();
    pod.stop_all();
    assert_eq!(pod.status(&app).exit_code, 137);
    assert_eq!(pids("nacre-vmm").difference(&before).count(), 0);
    pod.end();
}

#[test]
fn containers_without_a_pause_container_share_processes_where_the_pod_says_so() {
    let stay = NODE.enter();
    let pod = run(&stay, "shared-plain");
    let watch = pod.start("watch", Wish::idle().share_processes());
    let app = pod.start("app", Wish::sh("echo up; exec sleep 4242").share_processes());
    let seen = pod.sh(&watch, "ps").ok();
    assert!(seen.text().contains("sleep 4242") && seen.text().contains("sleep 100000"), "{seen:?}");
    pod.sh(&watch, "set -- $(ps | grep '[s]leep 4242'); kill $1").ok();
    assert_eq!(pod.wait(&app).exit_code, 143);
    // What a container leaves behind ends with it, and the pod goes on.
    let (ended, _) = pod.run_to_end("parent", Wish::sh("sleep 5151 & sleep 0.1; exit 4").share_processes());
    assert_eq!(ended.exit_code, 4);
    assert!(!pod.sh(&watch, "ps").ok().text().contains("sleep 5151"));
    pod.end();
}

#[test]
fn container_that_can_trace_sees_no_other_that_is_being_made() {
    let stay = NODE.enter();
    let pod = run(&stay, "traced-plain");
    // Everything with more than what a container has by default is told, until there is /stop.
    let look = "until test -e /stop; do grep -h CapEff /proc/[0-9]*/status | grep -e '1ff' -e '3ff' && echo SEEN; \
                echo looked; done; exec sleep 100000";
    let tracer = Wish::sh(look).share_processes().security(|security| {
        security.capabilities.mut_or_insert_default().add_capabilities = vec!["SYS_PTRACE".into()];
    });
    let tracer = pod.start("tracer", tracer);
    for number in 0..3 {
        let (ended, _) = pod.run_to_end("other", Wish::sh("exit 4").share_processes().attempt(number));
        assert_eq!(ended.exit_code, 4);
        // It goes on, and an exec is one of its own processes.
        assert_eq!(pod.sh(&tracer, "cat /proc/self/cgroup").ok().text(), "0::/");
    }
    pod.sh(&tracer, "touch /stop").ok();
    let log = pod.log("tracer", 0);
    assert!(log.contains("looked") && !log.contains("SEEN"), "{log}");
    pod.end();
}
