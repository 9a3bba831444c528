//! What a process of a container is: its command, environment and directory, its user and groups.

use nacre_tests::Stay;
use nacre_tests::cri::Wish;
use nacre_tests::images::CONFIGURED;

use super::NODE;

/// Runs a container to its end; its standard output.
#[track_caller]
fn said(stay: &Stay<'_>, name: &str, wish: Wish) -> String {
    let (ended, log) = stay.pod().run_to_end(name, wish);
    assert_eq!(ended.exit_code, 0, "{ended:?}: {log}");
    let text = log.lines().filter_map(|line| line.split_once(" stdout F ")).map(|(_, text)| text);
    text.collect::<Vec<_>>().join("\n")
}

#[test]
fn user_directory_entry_point_and_environment_come_from_the_image() {
    of_the_image(&NODE.share());
}

pub(crate) fn of_the_image(stay: &Stay<'_>) {
    // Words for its command alone follow its entry point, `sh -c`.
    let wish = Wish::of(CONFIGURED).args(&["id -un; id -gn; pwd; echo $GREETING; echo $0", "zero"]);
    assert_eq!(said(stay, "image", wish), "nobody\nnogroup\n/var/tmp/work\nfrom the image\nzero");
}

#[test]
fn command_of_a_pod_replaces_entry_point_and_command_of_the_image() {
    let stay = NODE.share();
    let wish = Wish::of(CONFIGURED).command(&["sh", "-c"]).args(&["echo $# $1", "zero", "one two"]);
    assert_eq!(said(&stay, "command", wish), "1 one two");
    let alone = Wish::of(CONFIGURED).command(&["echo", "only this"]);
    assert_eq!(said(&stay, "command-alone", alone), "only this");
}

#[test]
fn environment_of_a_pod_is_added_to_the_images_and_goes_before_it() {
    let script = "echo $GREETING; echo \"$EMPTY|$EQUALS|$MULTI\"; echo $PATH; echo $HOSTNAME";
    let wish = Wish::of(CONFIGURED).command(&["sh", "-c", script]).env("GREETING", "from the pod");
    let wish = wish.env("EMPTY", "").env("EQUALS", "a=b=c").env("MULTI", "one  'two' $three");
    let out = said(&NODE.share(), "environment", wish);
    assert_eq!(out, "from the pod\n|a=b=c|one  'two' $three\n/usr/local/bin:/usr/bin:/bin\nshared");
}

#[test]
fn working_directory_of_a_pod_is_made_where_it_is_not_there() {
    let wish = Wish::of(CONFIGURED).args(&["pwd"]).with(|config| config.working_dir = "/srv/new/dir".into());
    assert_eq!(said(&NODE.share(), "directory", wish), "/srv/new/dir");
}

#[test]
fn user_of_a_pod_goes_before_the_images_by_number_and_by_name() {
    let stay = NODE.share();
    let script = "id -u; id -g";
    let number = Wish::of(CONFIGURED).args(&[script]).security(|security| {
        security.run_as_user.mut_or_insert_default().value = 4711;
    });
    // A user that no file knows is of the group 0.
    assert_eq!(said(&stay, "number", number), "4711\n0");
    let name = Wish::sh(script).security(|security| security.run_as_username = "nobody".into());
    assert_eq!(said(&stay, "name", name), "65534\n65534");
}

#[test]
fn user_that_the_image_does_not_know_is_refused() {
    let stay = NODE.share();
    let pod = stay.pod();
    let wish = Wish::idle().security(|security| security.run_as_username = "nobody-knows".into());
    let refusal = pod.try_create("unknown", wish).unwrap_err();
    assert!(
        refusal.message.contains("nobody-knows") || refusal.message.contains("no users found"),
        "{refusal:?}"
    );
}

#[test]
fn group_and_further_groups_are_those_of_the_security_context() {
    let wish = Wish::sh("id -u; id -g; id -G").security(|security| {
        security.run_as_user.mut_or_insert_default().value = 1000;
        security.run_as_group.mut_or_insert_default().value = 3000;
        security.supplemental_groups = vec![4000, 5000];
    });
    assert_eq!(said(&NODE.share(), "groups", wish), "1000\n3000\n3000 4000 5000");
}

#[test]
fn words_and_variables_arrive_byte_for_byte() {
    let odd = "tab\there, \"quotes\", back\\slash, ümläut, 日本, $HOME, `date`, \u{1f41a}";
    let script = "printf '%s\\n' \"$1\" \"$ODD\"";
    let wish = Wish::sh("").command(&["sh", "-c", script, "zero", odd]).env("ODD", odd);
    assert_eq!(said(&NODE.share(), "bytes", wish), format!("{odd}\n{odd}"));
}

#[test]
fn long_command_and_many_variables_arrive() {
    let long = "x".repeat(100_000);
    let mut wish = Wish::sh("").command(&["sh", "-c", "echo ${#1}; env | grep -c ^VAR_", "zero", &long]);
    for number in 0..500 {
        wish = wish.env(&format!("VAR_{number}"), "service links of a large namespace");
    }
    assert_eq!(said(&NODE.share(), "long", wish), "100000\n500");
}
