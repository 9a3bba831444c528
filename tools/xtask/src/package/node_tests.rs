//! `deploy/node/install.sh` on a made-up node: `curl` notes its calls, commands stand in for restart and check.

mod node;

use std::fs;

use node::{Node, told};

/// Path of containerd's main file on a node.
const CONFIG: &str = "etc/containerd/config.toml";
/// Status for "not now".
const BUSY: Option<i32> = Some(75);

const TABLE: &str = "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = \"overlayfs\"\n";

/// Shapes that containerd's main file has.
fn configurations() -> Vec<Option<String>> {
    vec![
        None,
        Some(format!("version = 3\n{TABLE}")),
        Some(format!("version = 3\nroot = '/x'\nimports = []\n\n{TABLE}")),
        Some(format!("imports = [ ]\nversion = 3\n{TABLE}")),
        Some(format!("version = 3\nimports = ['/etc/a.toml', '/etc/b.toml' ]\n{TABLE}")),
        Some(format!("version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n{TABLE}")),
        Some("version = 3".into()),
        Some("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n".into()),
        Some("version = 2\n[debug]\nlevel = \"info\"".into()),
    ]
}

#[test]
fn second_install_changes_and_restarts_nothing() {
    for config in configurations() {
        let node = Node::new(config.as_deref());
        node.ok("install");
        let after = node.tree();
        node.ok("install");
        assert_eq!(node.tree(), after, "{config:?}");
        assert_eq!(node.restarts(), 1, "{config:?}");
    }
}

#[test]
fn uninstall_gives_every_byte_back() {
    for config in configurations() {
        let node = Node::new(config.as_deref());
        let before = node.tree();
        node.ok("install");
        node.ok("uninstall");
        assert_eq!(node.tree(), before, "{config:?}");
        assert_eq!(node.restarts(), 2, "{config:?}");
        node.ok("uninstall");
        assert_eq!(node.tree(), before, "{config:?}");
    }
}

#[test]
fn version_3_gets_a_drop_in_and_its_import() {
    let node = Node::new(Some("version = 3\nimports = ['/etc/a.toml']\n"));
    node.ok("install");
    let drop_in = node.read("etc/containerd/conf.d/nacre.toml");
    assert!(drop_in.contains("runtime_path = \"/opt/nacre/bin/containerd-shim-nacre-v2\"\n"), "{drop_in}");
    let import = "\nimports = ['/etc/a.toml', \"/etc/containerd/conf.d/*.toml\"] # the last one by nacre\n";
    assert!(node.read(CONFIG).ends_with(import), "{}", node.read(CONFIG));
}

#[test]
fn version_2_gets_a_block_at_its_end_and_no_drop_in() {
    let node = Node::new(Some("version = 2\n[debug]\nlevel = \"info\"\n"));
    node.ok("install");
    let config = node.read(CONFIG);
    assert!(
        config.starts_with("version = 2\n[debug]\nlevel = \"info\"\n# nacre begin\n[plugins."),
        "{config}"
    );
    assert!(!node.host("etc/containerd/conf.d/nacre.toml").exists());
}

#[test]
fn what_others_have_put_behind_the_block_stays_on_a_line_of_its_own() {
    let node = Node::new(Some("version = 2\n[debug]"));
    node.ok("install");
    node.write(CONFIG, &(node.read(CONFIG) + "[metrics]\n"));
    node.ok("uninstall");
    assert_eq!(node.read(CONFIG), "version = 2\n[debug]\n[metrics]\n");
}

#[test]
fn import_that_others_have_come_to_need_stays() {
    let node = Node::new(Some("version = 3\n"));
    node.ok("install");
    node.write("etc/containerd/conf.d/gpu.toml", "version = 3\n");
    node.ok("uninstall");
    assert!(node.read(CONFIG).contains("conf.d/*.toml"));
    assert!(!node.host("opt").exists() && !node.host("etc/containerd/conf.d/nacre.toml").exists());
}

#[test]
fn configuration_that_is_not_understood_is_left_alone() {
    let hand_made = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nacre]\n";
    for config in [
        "version = 3\nimports = [\n  '/etc/a.toml',\n]\n",
        "version = 3\nimports = ['/etc/a.toml',]\n",
        "version = 3\nimports = [] # []\n",
        "root = '/x'\n[x]\nversion = 3\n",
        hand_made,
    ] {
        let node = Node::new(Some(config));
        let output = node.run("install");
        assert_eq!(output.status.code(), Some(1), "{config:?}: {}", told(&output));
        assert_eq!((node.read(CONFIG).as_str(), node.restarts()), (config, 0));
        assert!(!node.host("etc/containerd/conf.d/nacre.toml").exists(), "{config:?}");
    }
}

#[test]
fn configuration_that_cannot_be_taken_apart_is_not_replaced() {
    let node = Node::new(Some("version = 2\n[debug]"));
    node.ok("install");
    let before = node.read(CONFIG);
    node.stand_in("sed", "exit 4");
    let output = node.run("uninstall");
    assert!(!output.status.success(), "{}", told(&output));
    assert_eq!(node.read(CONFIG), before);
}

#[test]
fn uninstall_waits_for_running_sandboxes() {
    let node = Node::new(Some("version = 3\n"));
    node.ok("install");
    node.start_sandbox();
    let before = node.tree();
    let output = node.run("uninstall");
    assert_eq!(output.status.code(), BUSY, "{}", told(&output));
    assert!(told(&output).contains("/run/nacre/k8s.io/abc"), "{}", told(&output));
    assert_eq!(node.tree(), before);
}

#[test]
fn update_waits_for_running_sandboxes_and_then_replaces_what_differs() {
    let node = Node::new(Some("version = 3\n"));
    node.ok("install");
    node.release("bin/nacre-vmm", "2");
    node.start_sandbox();
    assert_eq!(node.run("install").status.code(), BUSY);
    assert_eq!(node.read("opt/nacre/bin/nacre-vmm"), "1");
    fs::remove_dir_all(node.host("run")).unwrap();
    node.ok("install");
    assert_eq!(node.read("opt/nacre/bin/nacre-vmm"), "2");
    assert_eq!(node.restarts(), 1, "containerd reads no program");
}

#[test]
fn node_that_cannot_run_vms_keeps_its_configuration_and_gets_no_label() {
    let node = Node::new(Some("version = 3\n"));
    let output = node.run_with("install", &[("CHECK", "false"), ("NODE_NAME", "n1")]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((node.read(CONFIG).as_str(), node.restarts()), ("version = 3\n", 0));
    assert!(!node.dir.path().join("calls.curl").exists());
}

#[test]
fn configuration_that_containerd_refuses_is_taken_back() {
    let node = Node::new(Some("version = 3\n"));
    let refuse =
        "echo restart >> \"$CALLS.restart\"; ! grep -q nacre \"$HOST_ROOT/etc/containerd/config.toml\"";
    let output = node.run_with("install", &[("RESTART", refuse)]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert_eq!((node.read(CONFIG).as_str(), node.restarts()), ("version = 3\n", 2));
    assert!(!node.host("etc/containerd/conf.d/nacre.toml").exists());
}

#[test]
fn restart_that_was_interrupted_is_made_up_for() {
    let node = Node::new(Some("version = 3\n"));
    node.ok("install");
    node.write("opt/nacre/restart-containerd", "");
    node.ok("install");
    assert_eq!(node.restarts(), 2);
}

/// Makes a sandbox while a command of the script runs.
const START_SANDBOX: &str = "mkdir -p \"$HOST_ROOT/run/nacre/k8s.io/late\"";

#[test]
fn sandbox_that_starts_before_the_restart_of_an_uninstall_keeps_its_programs() {
    let node = Node::new(Some("version = 3\n"));
    node.ok("install");
    let output = node.run_with("uninstall", &[("RESTART", START_SANDBOX)]);
    assert_eq!(output.status.code(), BUSY, "{}", told(&output));
    assert_eq!(node.read("opt/nacre/bin/nacre-fs"), "1");
    fs::remove_dir_all(node.host("run")).unwrap();
    node.ok("uninstall");
    assert!(!node.host("opt").exists());
}

#[test]
fn sandbox_that_starts_while_an_update_is_copied_finds_one_version() {
    let node = Node::new(Some("version = 3\n"));
    node.ok("install");
    node.release("bin/nacre", "2");
    node.release("bin/nacre-fs", "2");
    node.stand_in("cp", &format!("{START_SANDBOX}\nexec /bin/cp \"$@\""));
    assert_eq!(node.run("install").status.code(), BUSY);
    let versions = ["nacre", "nacre-fs"].map(|name| node.read(&format!("opt/nacre/bin/{name}")));
    assert_eq!(versions, ["1", "1"]);
}

#[test]
fn files_of_an_interrupted_install_go_as_well() {
    for config in [None, Some("version = 3\n")] {
        let node = Node::new(config);
        let before = node.tree();
        node.ok("install");
        node.write("etc/containerd/config.toml.nacre-new", "half");
        node.write("etc/containerd/conf.d/nacre.toml.nacre-new", "half");
        node.write("opt/nacre/bin/nacre-vmm.new", "half");
        node.ok("uninstall");
        assert_eq!(node.tree(), before, "{config:?}");
    }
}

#[test]
fn node_is_labelled_last_and_its_token_is_no_argument() {
    let node = Node::new(Some("version = 3\n"));
    let account = node.dir.path().join("account");
    fs::create_dir(&account).unwrap();
    fs::write(account.join("token"), "secret").unwrap();
    let account = account.display().to_string();
    let variables = [
        ("NODE_NAME", "n1"),
        ("KUBERNETES_SERVICE_HOST", "fd00::1"),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("SERVICE_ACCOUNT", account.as_str()),
    ];
    for (verb, value) in [("install", "\"ready\""), ("uninstall", "null")] {
        let output = node.run_with(verb, &variables);
        assert!(output.status.success(), "{}", told(&output));
        let curl = fs::read_to_string(node.dir.path().join("calls.curl")).unwrap();
        let body = format!("{{\"metadata\":{{\"labels\":{{\"nacre-runtime\":{value}}}}}}}\n");
        assert!(curl.contains(&body) && curl.contains("\nPATCH\n"), "{curl}");
        assert!(curl.ends_with("\nhttps://[fd00::1]:443/api/v1/nodes/n1\n"), "{curl}");
        assert!(!curl.contains("secret"), "{curl}");
    }
    let stdin = fs::read_to_string(node.dir.path().join("calls.stdin")).unwrap();
    assert_eq!(stdin, "header = \"Authorization: Bearer secret\"\n");
}
