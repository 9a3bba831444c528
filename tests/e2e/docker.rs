//! Docker with nacre as a runtime: its own networks, ports, volumes and commands.

use std::process::{Child, Command};

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

/// A name server on the host that knows one name, until it is dropped.
struct NameServer(Child);

impl NameServer {
    /// Answers every query of `outside.test` with 192.0.2.7, on the address of a link of its own.
    fn start(address: &str) -> Self {
        let script = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 53))
while True:
    query, client = s.recvfrom(4096)
    end = query.index(0, 12) + 5
    known = b"\x07outside\x04test\x00\x00\x01" in query
    head = query[:2] + (b"\x81\x80" if known else b"\x81\x83") + b"\0\1" + (b"\0\1" if known else b"\0\0") + b"\0\0\0\0"
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\7" if known else b""
    s.sendto(head + query[12:end] + answer, client)
"#;
        Outcome::of(Command::new("ip").args(["link", "add", "names", "type", "dummy"])).ok();
        Outcome::of(Command::new("ip").args(["addr", "add", address, "dev", "names"])).ok();
        Outcome::of(Command::new("ip").args(["link", "set", "names", "up"])).ok();
        Self(Command::new("python3").args(["-c", script, address]).spawn().expect("python3"))
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = Command::new("ip").args(["link", "del", "names"]).status();
    }
}

#[test]
fn containers_of_a_user_defined_network_find_each_other_and_the_world_by_name() {
    let _census = TestSandbox::new();
    let _names = NameServer::start("198.51.100.53");
    let docker = Docker::start();
    docker.run(&["network", "create", "own"]).ok();
    let options = ["-d", "--name", "web", "--network", "own", "--dns", "198.51.100.53"];
    let serve = "mkdir /www && echo by-name > /www/index.html && exec httpd -f -p 8080 -h /www";
    run(&docker, &options, &["sh", "-c", serve]).ok();
    let client = ["--rm", "--network", "own", "--dns", "198.51.100.53"];
    let script = "until wget -qO- -T 60 http://web:8080/; do sleep 0.5; done";
    assert_eq!(run(&docker, &client, &["sh", "-c", script]).ok().text(), "by-name");
    let lookup = |name: &str| {
        let python = format!("import socket; print(socket.gethostbyname({name:?}))");
        docker.run(&["exec", "web", "python3", "-c", &python])
    };
    let format = "{{.NetworkSettings.Networks.own.IPAddress}}";
    let address = docker.run(&["inspect", "-f", format, "web"]).ok().text().to_owned();
    assert_eq!(lookup("web").ok().text(), address);
    // Docker's server asks others from within the container's namespace.
    assert_eq!(lookup("outside.test").ok().text(), "192.0.2.7");
    assert_ne!(lookup("missing.test").status, 0);
    // Port 53 stays a container's own.
    let bind = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53))";
    docker.run(&["exec", "web", "python3", "-c", bind]).ok();
    docker.run(&["rm", "-f", "web"]).ok();
    docker.run(&["network", "rm", "own"]).ok();
}

#[test]
fn compose_starts_services_in_vms_that_find_each_other() {
    let _census = TestSandbox::new();
    let docker = Docker::start();
    let project = tempfile::tempdir().unwrap();
    let file = project.path().join("compose.yaml");
    let services = format!(
        r#"
services:
  web:
    image: {IMAGE}
    runtime: nacre
    command: ["sh", "-c", "mkdir /www && echo composed > /www/index.html && exec httpd -f -p 8080 -h /www"]
  client:
    image: {IMAGE}
    runtime: nacre
    depends_on: [web]
    command: ["sh", "-c", "until wget -qO- -T 60 http://web:8080/; do sleep 0.5; done; exit 7"]
"#
    );
    std::fs::write(&file, services).unwrap();
    let file = file.display().to_string();
    let compose = |arguments: &[&str]| {
        docker.run(&[&["compose", "-p", "e2e", "--progress", "quiet", "-f", &file], arguments].concat())
    };
    let up = compose(&["up", "--exit-code-from", "client", "--no-color"]).ended_with(7);
    assert!(up.stdout.contains("composed"), "{up:?}");
    compose(&["down", "-t", "1"]).ok();
}
