//! Overlays of more layers than fit into a page of mount options by their full paths.

use std::ffi::CString;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::mount::{MountFlags, mount};
use rustix::process::chdir;

use crate::sys;

/// Mount options by paths relative to a directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Relative {
    dir: PathBuf,
    pub(super) data: String,
}

/// Shortens `lowerdir` by the directory that all of its layers have in common; `None` where it has none, or layers with escaped signs.
pub(super) fn relative(options: &[&str]) -> Option<Relative> {
    let lowers = options.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
    if lowers.contains('\\') {
        return None;
    }
    let lowers: Vec<&Path> = lowers.split(':').map(Path::new).collect();
    let mut dir = lowers.first()?.parent()?.to_owned();
    while !lowers.iter().all(|lower| lower.strip_prefix(&dir).is_ok_and(|rest| rest != Path::new(""))) {
        dir = dir.parent()?.to_owned();
    }
    // From a relative path or the root there is nothing to gain.
    if !dir.is_absolute() || dir.parent().is_none() {
        return None;
    }
    let names: Option<Vec<&str>> = lowers
        .iter()
        .map(|lower| {
            let rest = lower.strip_prefix(&dir).ok()?;
            // What `..` means depends on links.
            let is_plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
            rest.to_str().filter(|_| is_plain)
        })
        .collect();
    let short = format!("lowerdir={}", names?.join(":"));
    let data =
        options.iter().map(|option| if option.starts_with("lowerdir=") { short.as_str() } else { option });
    let data = data.collect::<Vec<_>>().join(",");
    Some(Relative { dir, data })
}

/// Mounts from a thread with a working directory of its own.
pub(super) fn mount_at(
    source: &str,
    point: &Path,
    kind: &str,
    flags: MountFlags,
    relative: &Relative,
) -> io::Result<()> {
    let data = CString::new(relative.data.as_str())?;
    std::thread::scope(|scope| {
        let mounted = || {
            sys::leave_working_directory()?;
            chdir(&relative.dir)?;
            Ok(mount(source, point, kind, flags, Some(data.as_c_str()))?)
        };
        let thread = std::thread::Builder::new().spawn_scoped(scope, mounted)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_from_what_they_have_in_common() {
        let options =
            ["index=off", "workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/8/fs:/s/7/fs:/s/70/fs"];
        let found = relative(&options).unwrap();
        assert_eq!(found.dir, Path::new("/s"));
        assert_eq!(found.data, "index=off,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=8/fs:7/fs:70/fs");
        assert_eq!(relative(&["lowerdir=/a/b/c"]).unwrap().data, "lowerdir=c");
        let nested = relative(&["lowerdir=/a/b:/a/b/c"]).unwrap();
        assert_eq!((nested.dir.as_path(), nested.data.as_str()), (Path::new("/a"), "lowerdir=b:b/c"));
    }

    #[test]
    fn layers_that_have_nothing_in_common_stay_as_they_are() {
        for options in [
            &["upperdir=/a"][..],
            &["lowerdir=/a:/b"],
            &["lowerdir=a/b:a/c"],
            &[r"lowerdir=/a/b\:c:/a/d"],
            &["lowerdir=/a/b:/a/../c"],
        ] {
            assert_eq!(relative(options), None, "{options:?}");
        }
    }
}
