//! Commands in a container, to their end.

use nacre_tests::Stay;
use nacre_tests::cri::{DEADLINE_EXCEEDED, Wish, wait_for};

use super::NODE;

#[test]
fn exec_tells_status_and_both_outputs() {
    status_and_outputs(&NODE.share());
}

pub(crate) fn status_and_outputs(stay: &Stay<'_>) {
    let pod = stay.pod();
    let id = pod.start("exec", Wish::idle());
    let out = pod.sh(&id, "echo out; echo err >&2; exit 9");
    assert_eq!((out.status, out.stdout.as_str(), out.stderr.as_str()), (9, "out\n", "err\n"));
    assert_eq!(pod.sh(&id, "kill -9 $$").status, 137);
    assert_eq!(pod.sh(&id, "no-such-program").status, 127);
    // It has no input.
    assert_eq!(pod.exec(&id, &["cat"]).ok().stdout, "");
    pod.remove(&id);
}

#[test]
fn exec_of_a_command_that_is_not_there_is_refused_and_names_it() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("exec", Wish::idle());
    let refusal = pod.try_exec(&id, &["no-such-program", "x"], 0).unwrap_err();
    assert!(refusal.message.contains("no-such-program"), "{refusal:?}");
    pod.sh(&id, "true").ok();
    pod.remove(&id);
}

#[test]
fn exec_that_takes_too_long_is_told_and_dead_in_the_guest() {
    too_long(&NODE.share());
}

pub(crate) fn too_long(stay: &Stay<'_>) {
    let pod = stay.pod();
    let id = pod.start("exec", Wish::idle());
    let refusal = pod.try_exec(&id, &["sleep", "4242"], 2).unwrap_err();
    assert_eq!(refusal.status, DEADLINE_EXCEEDED, "{refusal:?}");
    wait_for("its end", || !pod.sh(&id, "ps").ok().stdout.contains("sleep 4242"));
    pod.remove(&id);
}

#[test]
fn exec_within_its_time_is_not_disturbed() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("exec", Wish::idle());
    let out = pod.try_exec(&id, &["sh", "-c", "sleep 0.1; echo done; exit 3"], 120).unwrap();
    assert_eq!((out.status, out.text()), (3, "done"));
    pod.remove(&id);
}

#[test]
fn large_output_of_an_exec_is_whole() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("exec", Wish::idle());
    let out = pod.sh(&id, "yes 0123456789abcde | head -c 1048576; echo e >&2").ok();
    assert_eq!(out.stdout.len(), 1 << 20);
    assert!(out.stdout.lines().all(|line| line == "0123456789abcde"));
    assert_eq!(out.stderr, "e\n");
    pod.remove(&id);
}

#[test]
fn exec_has_user_groups_environment_and_directory_of_its_container() {
    let stay = NODE.share();
    let pod = stay.pod();
    let wish = Wish::idle().env("COLOR", "pearl grey").with(|config| config.working_dir = "/var".into());
    let wish = wish.security(|security| {
        security.run_as_user.mut_or_insert_default().value = 1234;
        security.run_as_group.mut_or_insert_default().value = 2345;
        security.supplemental_groups = vec![3456];
    });
    let id = pod.start("exec", wish);
    let out = pod.sh(&id, "id -u; id -g; id -G; echo $COLOR; pwd").ok();
    assert_eq!(out.stdout, "1234\n2345\n2345 3456\npearl grey\n/var\n");
    let limits =
        pod.sh(&id, "grep -E 'CapEff|CapBnd|Seccomp:' /proc/self/status; grep -c . /proc/self/mounts").ok();
    let of_init =
        pod.sh(&id, "grep -E 'CapEff|CapBnd|Seccomp:' /proc/1/status; grep -c . /proc/1/mounts").ok();
    assert_eq!(limits.stdout, of_init.stdout, "an exec may what its container may");
    pod.remove(&id);
}

#[test]
fn exec_in_a_container_that_does_not_run_is_refused() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.create("exec", Wish::sh("exit 0"));
    let refusal = pod.try_exec(&id, &["true"], 0).unwrap_err();
    assert!(refusal.message.contains("CREATED"), "{refusal:?}");
    pod.remove(&id);
    let id = pod.start("exec", Wish::sh("exit 0").attempt(1));
    pod.wait(&id);
    let refusal = pod.try_exec(&id, &["true"], 0).unwrap_err();
    assert!(refusal.message.contains("EXITED"), "{refusal:?}");
    pod.remove(&id);
}

#[test]
fn many_execs_at_once_each_get_their_own_output() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("exec", Wish::idle());
    let (name, logs) = (pod.id().to_owned(), stay.path("logs"));
    let connections: Vec<_> = (0..6).map(|_| stay.cri().again()).collect();
    std::thread::scope(|scope| {
        for (number, cri) in connections.into_iter().enumerate() {
            let (id, name, logs) = (&id, &name, &logs);
            scope.spawn(move || {
                let pod = nacre_tests::cri::Pod::again(&cri, name, "shared", logs);
                let script = format!("for i in 1 2 3; do echo {number}; done; exit {number}");
                let out = pod.sh(id, &script);
                assert_eq!(
                    (out.status, out.stdout),
                    (number.try_into().unwrap(), format!("{number}\n").repeat(3))
                );
            });
        }
    });
    pod.remove(&id);
}

#[test]
fn container_that_ends_takes_its_execs_along() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("exec", Wish::sh("until [ -e /tmp/go ]; do sleep 0.1; done; exit 0"));
    let out = pod.sh(&id, "touch /tmp/go; exec sleep 100000");
    assert_eq!(out.status, 137);
    assert_eq!(pod.wait(&id).exit_code, 0);
    pod.remove(&id);
}
