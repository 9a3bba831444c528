//! Docker with nacre as a runtime: its own networks, ports, volumes and commands.

use std::process::Command;

use nacre_tests::docker::IMAGE;
use nacre_tests::{Docker, Outcome, TestSandbox};

/// `docker run --runtime nacre OPTIONS IMAGE COMMAND`
fn run(docker: &Docker, options: &[&str], command: &[&str]) -> Outcome {
    docker.run(&[&["run", "--runtime", "nacre"], options, &[IMAGE], command].concat())
}

fn get(url: &str) -> Outcome {
    Outcome::of(Command::new("busybox").args(["wget", "-qO-", "-T", "60", url]))
}

#[test]
fn docker_gives_a_vm_its_network_its_ports_and_its_volumes() {
    let _census = TestSandbox::new();
    let docker = Docker::start();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("index.html"), "from the host").unwrap();
    let share = format!("{}:/www", volume.path().display());

    let seen = run(&docker, &["--rm"], &["uname", "-r"]).ok();
    assert!(seen.text().ends_with("-guest") && seen.text() != host.trim(), "{seen:?}");
    run(&docker, &["--rm"], &["sh", "-c", "exit 42"]).ended_with(42);

    let options = ["-d", "--name", "web", "-p", "127.0.0.1:18080:8080", "-v", &share];
    run(&docker, &options, &["httpd", "-f", "-p", "8080", "-h", "/www"]).ok();
    let format = "{{.NetworkSettings.Networks.bridge.IPAddress}}";
    let address = docker.run(&["inspect", "-f", format, "web"]).ok().text().to_owned();
    assert_eq!(get(&format!("http://{address}:8080/")).ok().text(), "from the host");
    assert_eq!(get("http://127.0.0.1:18080/").ok().text(), "from the host");

    // A second container reaches the first by its address.
    let url = format!("http://{address}:8080/");
    assert_eq!(run(&docker, &["--rm"], &["wget", "-qO-", "-T", "60", &url]).ok().text(), "from the host");
    docker.run(&["rm", "-f", "web"]).ok();
}

#[test]
fn docker_connects_networks_to_a_container_that_runs_and_takes_them_away() {
    let _census = TestSandbox::new();
    let docker = Docker::start();
    docker.run(&["network", "create", "late"]).ok();
    run(&docker, &["-d", "--name", "web"], &["sleep", "100000"]).ok();
    let inside = |script: &str| docker.run(&["exec", "web", "sh", "-c", script]);
    assert_eq!(inside("ls /sys/class/net | grep -c eth").ok().text(), "1");

    docker.run(&["network", "connect", "late", "web"]).ok();
    let wait =
        |count: u8| format!("while [ $(ls /sys/class/net | grep -c eth) != {count} ]; do sleep 0.2; done");
    inside(&wait(2)).ok();
    let format = "{{.NetworkSettings.Networks.late.IPAddress}}";
    let address = docker.run(&["inspect", "-f", format, "web"]).ok().text().to_owned();
    inside(&format!("until ip -4 addr | grep -q {address}; do sleep 0.2; done")).ok();
    docker.run(&["network", "disconnect", "late", "web"]).ok();
    inside(&wait(1)).ok();
    docker.run(&["rm", "-f", "web"]).ok();
    docker.run(&["network", "rm", "late"]).ok();
}

#[test]
fn docker_commands_work_on_a_container_in_a_vm() {
    let _census = TestSandbox::new();
    let docker = Docker::start();
    let script = "echo out; echo err >&2; trap 'echo bye; exit 5' TERM; while true; do sleep 0.1; done";
    run(&docker, &["-d", "--name", "app", "-m", "96m"], &["sh", "-c", script]).ok();
    assert_eq!(docker.run(&["exec", "app", "sh", "-c", "echo in; exit 3"]).ended_with(3).text(), "in");
    assert_eq!(docker.run(&["exec", "app", "cat", "/sys/fs/cgroup/memory.max"]).ok().text(), "100663296");

    docker.run(&["pause", "app"]).ok();
    assert_eq!(docker.run(&["inspect", "-f", "{{.State.Status}}", "app"]).ok().text(), "paused");
    docker.run(&["unpause", "app"]).ok();
    let stats = docker.run(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "app"]).ok();
    assert!(stats.text().contains("/ 96MiB") && !stats.text().ends_with(" 0"), "{stats:?}");
    let top = docker.run(&["top", "app"]);
    assert_eq!(top.status, 0, "{top:?}");

    docker.run(&["stop", "-t", "60", "app"]).ok();
    assert_eq!(docker.run(&["inspect", "-f", "{{.State.ExitCode}}", "app"]).ok().text(), "5");
    let logs = docker.run(&["logs", "app"]).ok();
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("out\nbye\n", "err\n"));
    docker.run(&["start", "app"]).ok();
    docker.run(&["kill", "app"]).ok();
    assert_eq!(docker.run(&["wait", "app"]).ok().text(), "137");
    docker.run(&["rm", "app"]).ok();
}
