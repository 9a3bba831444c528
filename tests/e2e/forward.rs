//! What listens on the loopback of one side of a network namespace, reached from the other: port-forward, and Docker's name server.

use std::collections::BTreeSet;
use std::process::Command;

use nacre_tests::cri::{Pod, Wish};
use nacre_tests::{Containerd, Outcome, TestSandbox};

fn namespaces() -> BTreeSet<String> {
    let list = Outcome::of(Command::new("ip").args(["netns", "list"])).ok().stdout;
    list.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn connection_to_the_loopback_of_the_pods_namespace_reaches_the_guests() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let before = namespaces();
    let pod = Pod::run(&cri, "forward", &containerd.path("logs"));
    let namespace = namespaces().difference(&before).next().expect("the pod's network namespace").clone();
    let script = "mkdir /www && echo loopback > /www/index.html && exec httpd -f -p 127.0.0.1:8080 -h /www";
    let web = pod.start("web", Wish::sh(script));
    pod.exec(&web, &["sh", "-c", "until wget -qO- http://127.0.0.1:8080/; do sleep 0.2; done"]).ok();

    let get = |url: &str| {
        let wget = ["netns", "exec", &namespace, "busybox", "wget", "-qO-", "-T", "60", url];
        Outcome::of(Command::new("ip").args(wget))
    };
    assert_eq!(get("http://127.0.0.1:8080/").ok().text(), "loopback");
    assert_ne!(get("http://127.0.0.1:8081/").status, 0, "nobody listens there");
    // What it listens on is the guest's loopback alone.
    assert_ne!(get(&format!("http://{}:8080/", pod.address())).status, 0);
    pod.end();
}
