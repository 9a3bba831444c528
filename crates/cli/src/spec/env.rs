//! The environment of a process: the image's, then files, then options; the last value of a name wins.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::SpecError;

/// Docker's search path where the image has none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Largest environment file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Environment in the order in which names first appear.
pub(crate) fn environment(
    image: &[String],
    options: &[String],
    files: &[PathBuf],
    tty: bool,
    hostname: Option<&str>,
) -> Result<Vec<String>, SpecError> {
    let mut out = Vec::new();
    if !image.iter().any(|entry| name_of(entry) == "PATH") {
        set(&mut out, DEFAULT_PATH.to_owned());
    }
    if let Some(hostname) = hostname {
        set(&mut out, format!("HOSTNAME={hostname}"));
    }
    if tty {
        set(&mut out, "TERM=xterm".to_owned());
    }
    for entry in image {
        set(&mut out, entry.clone());
    }
    for file in files {
        for line in lines_of(file)? {
            apply(&mut out, &line, "--env-file")?;
        }
    }
    for option in options {
        apply(&mut out, option, "--env")?;
    }
    Ok(out)
}

/// `KEY=VALUE` sets; `KEY` takes the caller's value, or takes the name away where the caller has none.
fn apply(out: &mut Vec<String>, entry: &str, option: &'static str) -> Result<(), SpecError> {
    if name_of(entry).is_empty() || entry.contains('\0') {
        return Err(SpecError::option(option, entry, "a variable needs a name"));
    }
    if entry.contains('=') {
        set(out, entry.to_owned());
    } else if let Ok(value) = std::env::var(entry) {
        set(out, format!("{entry}={value}"));
    } else {
        out.retain(|known| name_of(known) != entry);
    }
    Ok(())
}

fn set(out: &mut Vec<String>, entry: String) {
    match out.iter_mut().find(|known| name_of(known) == name_of(&entry)) {
        Some(known) => *known = entry,
        None => out.push(entry),
    }
}

fn name_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

fn lines_of(path: &Path) -> Result<Vec<String>, SpecError> {
    let failed = |source| SpecError::File { path: path.to_owned(), source };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text))
        .map_err(failed)?;
    let wanted = |line: &&str| !line.is_empty() && !line.starts_with('#');
    Ok(text.lines().map(str::trim_start).filter(wanted).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn own(list: &[&str]) -> Vec<String> {
        list.iter().map(|&s| s.to_owned()).collect()
    }

    #[test]
    fn option_overrides_file_overrides_image() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# comment\nA=file\nB=file").unwrap();
        let env = environment(
            &own(&["PATH=/bin", "A=image"]),
            &own(&["B=option"]),
            &[file.path().into()],
            false,
            None,
        )
        .unwrap();
        assert_eq!(env, ["PATH=/bin", "A=file", "B=option"]);
    }

    #[test]
    fn path_and_term_have_defaults() {
        let env = environment(&[], &[], &[], true, Some("h")).unwrap();
        assert_eq!(env, [DEFAULT_PATH, "HOSTNAME=h", "TERM=xterm"]);
    }

    #[test]
    fn name_without_value_takes_the_callers_or_goes() {
        let image = own(&["PATH=/bin", "NACRE_SURELY_UNSET=1"]);
        let env = environment(&image, &own(&["NACRE_SURELY_UNSET"]), &[], false, None).unwrap();
        assert_eq!(env, ["PATH=/bin"]);
    }

    #[test]
    fn empty_name_is_refused() {
        assert!(environment(&[], &own(&["=x"]), &[], false, None).is_err());
    }
}
