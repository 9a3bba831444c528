//! Registries that are down, refuse, limit, or cannot be trusted.

use std::collections::BTreeSet;
use std::path::Path;

use nacre_tests::{Outcome, TestRegistry, TestSandbox};

use super::assert_last_line;

/// Every file below a directory.
fn files(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path()));
        } else {
            found.insert(entry.path().display().to_string());
        }
    }
    found
}

/// `nacre run` of an image from this registry, with a store that must hold afterwards what it held before.
fn run_from(registry: &TestRegistry) -> Outcome {
    let sandbox = TestSandbox::empty();
    sandbox.nacre(&["images"]).ok();
    let before = files(sandbox.root());
    let out = sandbox.nacre(&["run", "--rm", &format!("{}/team/app:1", registry.host()), "true"]);
    let after: Vec<String> = files(sandbox.root()).difference(&before).cloned().collect();
    assert!(after.is_empty(), "{after:?} are left in the store");
    out
}

#[test]
fn registry_that_is_down_gives_125() {
    let out = TestSandbox::new().nacre(&["run", "--rm", "127.0.0.1:1/no/such", "true"]);
    assert_last_line(&out, 125, &["127.0.0.1:1", "cannot connect", "check"]);
}

#[test]
fn registry_that_hangs_up_gives_125() {
    let registry = TestRegistry::hanging_up();
    assert_last_line(&run_from(&registry), 125, &[&registry.host(), "broke", "try again"]);
}

#[test]
fn registry_that_wants_credentials_names_the_login() {
    let registry = TestRegistry::answering(401, &["WWW-Authenticate: Basic realm=\"team\""], "");
    assert_last_line(&run_from(&registry), 125, &[&registry.host(), "team/app", "login"]);
}

#[test]
fn registry_that_forbids_names_the_repository() {
    let registry = TestRegistry::answering(403, &[], "");
    assert_last_line(&run_from(&registry), 125, &[&registry.host(), "team/app", "refuses access"]);
}

#[test]
fn image_that_the_registry_has_not_is_named() {
    let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
    let registry = TestRegistry::answering(404, &["Content-Type: application/json"], body);
    assert_last_line(&run_from(&registry), 125, &["no such image", "team/app:1"]);
}

#[test]
fn registry_that_limits_the_rate_says_how_long_to_wait() {
    let registry = TestRegistry::answering(429, &["Retry-After: 3600"], "");
    assert_last_line(&run_from(&registry), 125, &[&registry.host(), "rate", "3600 s"]);
}

#[test]
fn registry_that_is_broken_tells_its_status() {
    let registry = TestRegistry::answering(500, &[], "");
    assert_last_line(&run_from(&registry), 125, &[&registry.host(), "status 500", "try again"]);
}

#[test]
fn registry_that_sends_something_else_is_refused() {
    let registry = TestRegistry::answering(200, &["Content-Type: text/html"], "<html>welcome</html>");
    assert_last_line(&run_from(&registry), 125, &["team/app"]);
}

#[test]
fn registry_with_a_certificate_of_nobody_is_not_trusted() {
    let registry = TestRegistry::with_certificate_of_nobody("registry.nacre.test");
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.1 registry.nacre.test\n").unwrap();
    let out = TestSandbox::empty().script(&format!(
        "mount --bind {} /etc/hosts; exec nacre run --rm registry.nacre.test:{}/team/app true",
        hosts.display(),
        registry.port(),
    ));
    assert_last_line(&out, 125, &["registry.nacre.test", "TLS", "ca.crt"]);
}
