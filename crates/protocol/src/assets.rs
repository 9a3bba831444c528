//! Where kernel and agent image of guests lie on a host: `nacre check` looks where the shim does.

use std::path::{Path, PathBuf};

/// Environment variable with the directory of all assets.
pub const ASSETS_ENV: &str = "NACRE_ASSETS";

/// Where packages install the assets, here or in `guest`.
pub const SYSTEM_DIR: &str = "/usr/lib/nacre";

/// The directories to look in, for a program at `exe`: `first` (of `$NACRE_ASSETS` and the configuration), beside the program
/// (its directory, `guest`, `../guest` and `../lib/nacre` of it), then [`SYSTEM_DIR`] and its `guest`.
pub fn dirs(first: impl IntoIterator<Item = PathBuf>, exe: Option<&Path>) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = first.into_iter().collect();
    if let Some(bin) = exe.and_then(Path::parent) {
        dirs.extend([bin.to_owned(), bin.join("guest")]);
        dirs.extend(
            bin.parent().into_iter().flat_map(|prefix| [prefix.join("guest"), prefix.join("lib/nacre")]),
        );
    }
    dirs.extend([PathBuf::from(SYSTEM_DIR), Path::new(SYSTEM_DIR).join("guest")]);
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_comes_first_and_the_system_last() {
        let dirs = dirs([PathBuf::from("/mine")], Some(Path::new("/usr/bin/nacre")));
        let expected = [
            "/mine",
            "/usr/bin",
            "/usr/bin/guest",
            "/usr/guest",
            "/usr/lib/nacre",
            "/usr/lib/nacre",
            "/usr/lib/nacre/guest",
        ];
        assert_eq!(dirs, expected.map(PathBuf::from));
    }
}
