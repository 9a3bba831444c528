//! critest: the validation suite of Kubernetes' cri-tools, which asks a CRI what a kubelet asks it.
//!
//! The same containerd runs it with nacre's and with runc's runtime handler, each in a machine of its own. It is the one
//! that `tools/conformance/containerd` pins: the lab's, 2.1, asks no runtime but runc for its features, and the suite
//! skips cases of features that a runtime is not known to have. Its images are made of Debian packages
//! (`tools/conformance/images.sh`), under the names that the suite pulls.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::report::Report;
use super::{Options, programs};
use crate::lab::{self, Job, Kind, Place};
use crate::process::{command, output, run as run_command, step};
use crate::project::Project;

/// Files of the suite with cases in them, the most telling first.
const FILES: &[&str] = &[
    "container",
    "streaming",
    "streaming_linux",
    "networking",
    "pod",
    "pod_linux",
    "multi_container_linux",
    "container_linux",
    "security_context_linux",
    "runtime_info",
    "idempotence",
    "image",
    "apparmor_linux",
    "selinux_linux",
];

/// Runtime handlers to compare: ours, and the one it is compared with.
const HANDLERS: [&str; 2] = ["nacre", "runc"];

/// Making the images.
const IMAGES_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Starting and ending of a machine and of what the suite needs.
const EXTRA: Duration = Duration::from_secs(10 * 60);

/// Where the table stands in the document.
const MARKS: [&str; 2] = ["<!-- critest: begin -->\n", "<!-- critest: end -->"];

/// Runs it; whether nacre passes every case that runc passes, or a cause is known.
pub(super) fn run(project: &Project, place: Place, options: &Options) -> Result<bool> {
    let files = chosen(&options.file)?;
    let dir = programs::directory(project);
    step("critest: build", || programs::critest(project))?;
    step("containerd: build", || programs::containerd(project))?;
    images(project, place)?;
    step("critest", || on_machines(project, place, &dir, &files, options))?;
    report(project, options.update)
}

/// Makes the images: packages come over the network, to this machine; everything else happens where KVM works.
pub(super) fn images(project: &Project, place: Place) -> Result<()> {
    let dir = programs::directory(project);
    step("programs of the images", || programs::of_images(project))?;
    step("packages of the images", || {
        run_command(command(script(project, "packages.sh"), [&dir]).current_dir(&project.root))
    })?;
    let job = Job::new([script(project, "images.sh"), dir.display().to_string()]).timeout(IMAGES_LIMIT);
    match step("images", || lab::execute(project, place, &job, &mut lab::forward))? {
        0 => Ok(()),
        status => bail!("making the images ended with status {status}"),
    }
}

fn script(project: &Project, name: &str) -> String {
    project.root.join("tools/conformance").join(name).display().to_string()
}

fn chosen(wanted: &[String]) -> Result<String> {
    if let Some(unknown) = wanted.iter().find(|name| !FILES.contains(&name.as_str())) {
        bail!("critest has no file {unknown}: it has {}", FILES.join(", "));
    }
    let is_chosen = |name: &&&str| wanted.is_empty() || wanted.iter().any(|wish| wish == **name);
    Ok(FILES.iter().filter(is_chosen).copied().collect::<Vec<_>>().join(" "))
}

fn on_machines(project: &Project, place: Place, dir: &Path, files: &str, options: &Options) -> Result<()> {
    let limit_s = options.limit;
    let on_one = |handler: &str| {
        let mut words = vec![
            script(project, "critest.sh"),
            dir.display().to_string(),
            handler.to_owned(),
            limit_s.to_string(),
            files.to_owned(),
        ];
        words.extend(options.case.iter().map(|case| format!("--ginkgo.focus={case}")));
        let job = Job { kind: Kind::Fresh, ..Job::new(words) }.timeout(Duration::from_secs(limit_s) + EXTRA);
        match lab::execute(project, place, &job, &mut lab::forward)? {
            0 => Ok(()),
            status => bail!("critest with {handler} ended with status {status}"),
        }
    };
    if place == Place::Direct {
        return HANDLERS.iter().try_for_each(|handler| on_one(handler));
    }
    thread::scope(|scope| {
        let machines = HANDLERS.map(|handler| scope.spawn(move || on_one(handler)));
        for machine in machines {
            machine.join().map_err(|_| anyhow::anyhow!("a machine's thread panicked"))??;
        }
        Ok(())
    })
}

/// Makes the table out of all results that are there.
pub(super) fn report(project: &Project, update: bool) -> Result<bool> {
    let dir = programs::directory(project);
    let causes = project.root.join("tools/conformance/causes");
    let causes = fs::read_to_string(&causes).with_context(|| format!("cannot read {}", causes.display()))?;
    let results = dir.join("results");
    let mut report = Report::new(&causes)?;
    report.expect(&list(&dir)?)?;
    for (side, path) in result_files(&results)? {
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        report.add(side, &text).with_context(|| format!("cannot read {}", path.display()))?;
    }
    let versions = versions(&results)?;
    let suite = programs::version(project, "critest", "sigs.k8s.io/cri-tools")?;
    let text = format!("cri-tools {suite}; {versions}.\n\n{}", report.markdown());
    let path = dir.join("report.md");
    fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    if update {
        put_into(&project.root.join("docs/conformance.md"), &text)?;
    }
    println!("{}\nEvery case: {}", report.summary(), path.display());
    for line in report.unexplained() {
        eprintln!("without a cause: {line}");
    }
    for line in report.stale() {
        eprintln!("a cause for nothing: {line}");
    }
    Ok(report.unexplained().is_empty())
}

/// What the suite says of its own cases, without running any.
fn list(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join("cases.json");
    let mut critest = command(dir.join("bin/critest"), ["--ginkgo.dry-run"]);
    critest.arg(format!("--ginkgo.json-report={}", path.display()));
    output(&mut critest)?;
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// What the results were made with.
fn versions(results: &Path) -> Result<String> {
    let of = |handler: &str| {
        let path = results.join(format!("{handler}.versions"));
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (ours, theirs) = (of(HANDLERS[0])?, of(HANDLERS[1])?);
    if ours != theirs {
        bail!("the results of {} are of other versions than those of {}", HANDLERS[0], HANDLERS[1]);
    }
    let words: Vec<&str> = ours.lines().map(str::trim).collect();
    Ok(words.join("; "))
}

/// Reports with the side that each is of, the oldest first.
fn result_files(dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
        let Some((rest, time)) = stem.and_then(|stem| stem.rsplit_once('-')) else { continue };
        let side = HANDLERS.iter().position(|handler| rest.starts_with(&format!("{handler}-")));
        if let (Some(side), Ok(time)) = (side, time.parse::<u64>()) {
            found.push((time, side, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, side, path)| (side, path)).collect())
}

fn put_into(path: &Path, table: &str) -> Result<()> {
    let old = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let new = between(&old, table).with_context(|| format!("{} has no marks", path.display()))?;
    fs::write(path, new).with_context(|| format!("cannot write {}", path.display()))
}

/// The text with what stands between the marks replaced.
fn between(text: &str, table: &str) -> Option<String> {
    let (head, rest) = text.split_once(MARKS[0])?;
    let (_, tail) = rest.split_once(MARKS[1])?;
    Some(format!("{head}{}{table}{}{tail}", MARKS[0], MARKS[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_takes_the_place_between_the_marks() {
        let text = format!("before\n{}old\n{}\nafter\n", MARKS[0], MARKS[1]);
        let new = between(&text, "new\n").unwrap();
        assert_eq!(new, text.replace("old", "new"));
        assert_eq!(between("no marks", "new"), None);
    }

    #[test]
    fn results_are_read_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["runc-pod-20.json", "nacre-pod-9.json", "nacre-pod-9.log", "nacre-pod.json", "nacre.versions"]
        {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let found = result_files(dir.path()).unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(found, [(0, at("nacre-pod-9.json")), (1, at("runc-pod-20.json"))]);
    }

    #[test]
    fn results_of_different_versions_are_no_table() {
        let dir = tempfile::tempdir().unwrap();
        assert!(versions(dir.path()).is_err());
        fs::write(dir.path().join("nacre.versions"), "6.12\ncontainerd 2.3 \n").unwrap();
        fs::write(dir.path().join("runc.versions"), "6.12\ncontainerd 2.3 \n").unwrap();
        assert_eq!(versions(dir.path()).unwrap(), "6.12; containerd 2.3");
        fs::write(dir.path().join("runc.versions"), "6.12\ncontainerd 2.1 \n").unwrap();
        assert!(versions(dir.path()).is_err());
    }

    #[test]
    fn only_files_of_the_suite_can_be_chosen() {
        assert_eq!(chosen(&["pod".into(), "container".into()]).unwrap(), "container pod");
        assert_eq!(chosen(&[]).unwrap().split(' ').count(), FILES.len());
        assert!(chosen(&["pods".into()]).is_err());
    }
}
