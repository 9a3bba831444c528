//! Where built things are kept between runs and between clones: never in the source tree.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// `$NACRE_CACHE`, else `/var/cache/nacre` for root, else `nacre` in the user's own cache directory.
///
/// `None` where neither the variable nor a home directory is known.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("NACRE_CACHE") {
        return Some(dir);
    }
    // The owner of /proc/self is the effective user, without a system call that needs `unsafe`.
    if std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0) {
        return Some(PathBuf::from("/var/cache/nacre"));
    }
    set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache"))).map(|dir| dir.join("nacre"))
}
