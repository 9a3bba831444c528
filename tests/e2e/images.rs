//! Images: pulled once, listed, inspected, removed.

use nacre_tests::TestSandbox;

#[test]
fn second_pull_moves_no_bytes() {
    let sandbox = TestSandbox::new();
    let out = sandbox.nacre(&["pull", &TestSandbox::image()]).ok();
    assert!(!out.stdout.contains("100%"), "{out:?}");
}

#[test]
fn quiet_pull_prints_the_name_alone() {
    let sandbox = TestSandbox::empty();
    let out = sandbox.nacre(&["pull", "-q", &TestSandbox::image()]).ok();
    assert_eq!((out.stdout.lines().count(), out.stderr.as_str()), (1, ""));
}

#[test]
fn images_lists_what_was_pulled() {
    assert_eq!(TestSandbox::new().nacre(&["images", "-q"]).ok().stdout.lines().count(), 1);
}

#[test]
fn inspect_prints_json() {
    let sandbox = TestSandbox::new();
    let name = sandbox.nacre(&["pull", "-q", &TestSandbox::image()]).ok();
    let out = sandbox.nacre(&["inspect", name.text()]).ok();
    let json: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    assert!(json.is_array(), "{json}");
}

#[test]
fn removed_image_is_gone() {
    let sandbox = TestSandbox::empty();
    let name = sandbox.nacre(&["pull", "-q", &TestSandbox::image()]).ok();
    sandbox.nacre(&["rmi", name.text()]).ok();
    assert_eq!(sandbox.nacre(&["images", "-q"]).ok().stdout, "");
}
