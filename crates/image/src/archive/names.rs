//! Names of images that came from outside a registry.
//!
//! What the archive says counts. One that says nothing, or a bare tag (which is what most tools write into a layout),
//! becomes `localhost/NAME:TAG`, after the file or directory: `localhost` is no registry of anybody's, so such a name
//! is never mistaken for one of a registry's images, and `nacre run` finds it without asking anyone.

use std::path::Path;

use crate::reference::Reference;

/// Where an image without a name of its own belongs, as in Podman.
const DOMAIN: &str = "localhost";

const DEFAULT_TAG: &str = "latest";

/// Endings that say how an archive is packed, not what is in it.
const ENDINGS: [&str; 6] = [".gz", ".zst", ".tgz", ".tar", ".oci", ".docker"];

/// Longest name that is made of a path.
const MAX_NAME: usize = 128;

/// The names that an archive gives an image. What is no name is passed over: it is text from outside. So is one with a digest:
/// it says what the image is, which only the image itself can, and never what it shall be called.
pub(super) fn of_image<'a>(path: &Path, given: impl Iterator<Item = &'a str>) -> Vec<Reference> {
    let (full, bare): (Vec<_>, Vec<_>) = given.partition(|name| name.contains('/') || name.contains(':'));
    let named = full.into_iter().filter_map(|name| name.parse().ok());
    let mut names: Vec<Reference> = named.filter(|name: &Reference| name.digest().is_none()).collect();
    if names.is_empty() {
        names.extend(after(path, bare.first().copied()));
    }
    names.sort();
    names.dedup();
    names
}

fn after(path: &Path, tag: Option<&str>) -> Option<Reference> {
    let whole = path.canonicalize();
    let file = whole.as_deref().unwrap_or(path).file_name()?.to_string_lossy().to_lowercase();
    let name = repository(without_endings(&file));
    let called = |tag: &str| format!("{DOMAIN}/{name}:{tag}").parse().ok();
    tag.and_then(called).or_else(|| called(DEFAULT_TAG))
}

fn without_endings(mut file: &str) -> &str {
    while let Some(shorter) = ENDINGS.iter().find_map(|ending| file.strip_suffix(ending)) {
        if shorter.is_empty() {
            break;
        }
        file = shorter;
    }
    file
}

/// Text by the grammar of a repository: what does not fit becomes one `-`.
fn repository(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(MAX_NAME) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            out.push(c);
        } else if !out.is_empty() && out.ends_with(|last: char| last.is_ascii_alphanumeric()) {
            out.push(if matches!(c, '.' | '_') { c } else { '-' });
        }
    }
    let name = out.trim_end_matches(['.', '_', '-']);
    if name.is_empty() { "image".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(path: &str, given: &[&str]) -> Vec<String> {
        of_image(Path::new(path), given.iter().copied()).iter().map(Reference::familiar).collect()
    }

    #[test]
    fn names_of_the_archive_count() {
        assert_eq!(names("/x/a.tar", &["demo/app:2", "1.0"]), ["demo/app:2"]);
        assert_eq!(names("/x/a.tar", &["b:1", "a:1", "b:1"]), ["a:1", "b:1"]);
    }

    #[test]
    fn i_name_with_a_digest_is_not_the_archives_to_give() {
        let pinned = format!("alpine@sha256:{}", "a".repeat(64));
        assert_eq!(names("/x/evil.tar", &[&pinned, "debian:latest"]), ["debian:latest"]);
        assert_eq!(names("/x/evil.tar", &[&pinned]), ["localhost/evil:latest"]);
    }

    #[test]
    fn image_without_a_name_is_called_after_its_file() {
        assert_eq!(names("/no/such/layout", &["v1.2"]), ["localhost/layout:v1.2"]);
        assert_eq!(names("/no/such/My App_1.oci.tar.gz", &[]), ["localhost/my-app_1:latest"]);
        assert_eq!(names("/no/such/.tar", &["not a tag"]), ["localhost/tar:latest"]);
        assert_eq!(names("/no/such/___", &["UPPER/case:x"]), ["localhost/image:latest"]);
    }

    proptest! {
        #[test]
        fn every_path_and_annotation_gives_a_name(file in "[^/\0]{1,40}", tag in ".{0,20}") {
            prop_assume!(file != "." && file != "..");
            let given = of_image(&Path::new("/no/such").join(file), [tag.as_str()].into_iter());
            prop_assert_eq!(given.len(), 1);
        }
    }
}
