//! What the containers of a pod share: kernel, names, IPC, processes where they ask for it; and what they do not.

use std::fs;
use std::path::Path;
use std::process::Command;

use nacre_tests::cri::Wish;
use nacre_tests::{Outcome, pids};

use super::NODE;

#[test]
fn containers_of_a_pod_share_one_vm_with_its_network_and_memory() {
    let stay = NODE.enter();
    let before = pids("nacre-vmm");
    let vmms = || pids("nacre-vmm").difference(&before).count();
    let pod = stay.run("web");
    assert_eq!(vmms(), 1);

    let serve = "echo hello > /tmp/index.html; echo shared > /dev/shm/note; exec httpd -f -p 8080 -h /tmp";
    let server = pod.start("server", Wish::sh(serve));
    let client = pod.start("client", Wish::idle());
    assert_eq!(vmms(), 1, "one VM for the pod");
    let inside = |container: &str, script: &str| pod.sh(container, script);

    // One kernel, another than the host's; one host name; one shared memory; one loopback.
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let (first, second) = (inside(&server, "uname -r; hostname"), inside(&client, "uname -r; hostname"));
    assert_eq!(first.text(), second.text());
    assert!(first.text().contains("-guest") && !first.text().contains(host.trim()), "{first:?}");
    assert!(first.text().ends_with("web"), "{first:?}");
    let fetch = "for i in 1 2 3 4 5 6 7 8 9; do wget -qO- http://127.0.0.1:8080/ && break; sleep 1; done";
    assert_eq!(inside(&client, fetch).ok().text(), "hello");
    assert_eq!(inside(&client, "cat /dev/shm/note").ok().text(), "shared");

    // Root file systems and processes are each one's own.
    assert_ne!(inside(&client, "cat /tmp/index.html").status, 0);
    assert!(!inside(&client, "ps").ok().text().contains("httpd"));

    // The address that CNI gave the pod is the guest's, and reaches it from the host.
    let address = pod.address();
    assert!(inside(&client, "ip -4 addr show eth0").ok().text().contains(&address));
    let url = format!("http://{address}:8080/");
    let mut get = Command::new("busybox");
    assert_eq!(Outcome::of(get.args(["wget", "-qO-", "-T", "60", &url])).ok().text(), "hello");

    assert_eq!(pod.stop(&server).exit_code, 137);
    pod.remove(&server);
    assert_eq!(inside(&client, "echo still here").ok().text(), "still here");
    let id = pod.id().to_owned();
    pod.end();
    assert_eq!(vmms(), 0);
    assert!(!Path::new("/run/nacre/k8s.io").join(&id).exists(), "no sandbox is left");
}

#[test]
fn container_that_comes_later_finds_the_pod_as_it_is() {
    let stay = NODE.share();
    let pod = stay.pod();
    let app =
        pod.start("app", Wish::sh("mkdir /w && echo here > /w/i && exec httpd -f -p 127.0.0.1:8181 -h /w"));
    pod.sh(&app, "until wget -qO- http://127.0.0.1:8181/i; do sleep 0.1; done").ok();
    // An ephemeral container, as `kubectl debug` adds one.
    let debug =
        pod.start("debugger", Wish::sh("exec sh").with(|config| (config.stdin, config.tty) = (true, true)));
    assert_eq!(pod.sh(&debug, "hostname; wget -qO- http://127.0.0.1:8181/i").ok().stdout, "shared\nhere\n");
    pod.remove(&debug);
    pod.remove(&app);
}
