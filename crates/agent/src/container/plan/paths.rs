//! Paths of a configuration.

use std::path::{Component, Path};

use super::InvalidSpec;

const PATH_MAX: usize = 4096;

/// Cleans an absolute path of the container: no `.`, no empty parts, `..` taken back lexically, `/` at least.
///
/// # Errors
/// [`InvalidSpec::Path`] where it is relative, too long, not UTF-8 or has a NUL.
pub(crate) fn clean(what: &'static str, path: &Path) -> Result<String, InvalidSpec> {
    let bad = || InvalidSpec::Path { what, path: path.to_string_lossy().into_owned() };
    let text = path.to_str().ok_or_else(bad)?;
    if !text.starts_with('/') || text.len() >= PATH_MAX || text.contains('\0') {
        return Err(bad());
    }
    let mut parts: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(bad)?),
            Component::ParentDir => {
                parts.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

pub(super) fn all_clean(what: &'static str, paths: Option<&[String]>) -> Result<Vec<String>, InvalidSpec> {
    paths.unwrap_or_default().iter().map(|path| clean(what, Path::new(path))).collect()
}
