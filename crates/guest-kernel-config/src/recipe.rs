//! What a kernel build is made of, and the key under which its result is kept.
//!
//! Same inputs, same bytes: time stamp, user, host and build number are fixed, the environment is empty but for
//! `PATH`, and no path of the machine reaches the image (the kernel's makefile maps the source's away).

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::config::{ConfigError, Merged};
use crate::fragments::{Mitigations, OVERRIDES, fragments};

/// Debian's package with the kernel's source.
pub const SOURCE_PACKAGE: &str = "linux-source-6.12";

/// Where that package puts it.
pub const SOURCE_TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";

/// Raised whenever the steps of [`crate::kernel`] change in a way that changes the result.
pub const RECIPE_VERSION: u32 = 1;

/// Debian packages that a build needs; `gcc` and `make` are what the kernel calls its host and target compiler.
pub const BUILD_PACKAGES: &[&str] =
    &[SOURCE_PACKAGE, "gcc", "make", "flex", "bison", "bc", "libelf-dev", "xz-utils", "binutils", "perl"];

/// Environment of every step, besides `PATH`.
pub const ENVIRONMENT: &[(&str, &str)] = &[
    ("LC_ALL", "C"),
    ("KBUILD_BUILD_TIMESTAMP", "1970-01-01"),
    ("KBUILD_BUILD_USER", "nacre"),
    ("KBUILD_BUILD_HOST", "nacre"),
    ("KBUILD_BUILD_VERSION", "1"),
];

/// A recipe whose inputs cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The fragments do not make a configuration.
    #[error("guest kernel fragments")]
    Config(#[from] ConfigError),
    /// A tool that names an input does not run.
    #[error("cannot run {tool}")]
    Tool {
        /// Program.
        tool: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The source package is not installed.
    #[error("package {SOURCE_PACKAGE} is not installed: apt-get install {SOURCE_PACKAGE}")]
    NoSource,
    /// The compiler does not tell its version.
    #[error("gcc does not tell its version")]
    NoCompilerVersion,
}

/// The inputs of one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Merged configuration.
    pub config: Merged,
    /// Version of [`SOURCE_PACKAGE`].
    pub source_version: String,
    /// Full version of the compiler, its distribution's revision included.
    pub compiler: String,
    /// The source.
    pub tarball: PathBuf,
}

impl Recipe {
    /// Reads the inputs from this machine.
    ///
    /// # Errors
    /// Where the source package or the compiler is missing, or the fragments contradict each other.
    pub fn detect(mitigations: Mitigations) -> Result<Self, RecipeError> {
        let config = Merged::new(&fragments(mitigations), OVERRIDES)?;
        let version = output("dpkg-query", &["-W", "-f", "${Version}", SOURCE_PACKAGE])?;
        let tarball = Path::new(SOURCE_TARBALL);
        let source_version =
            version.filter(|v| !v.is_empty() && tarball.exists()).ok_or(RecipeError::NoSource)?;
        let compiler = output("gcc", &["--version"])?
            .and_then(|text| text.lines().next().map(str::to_owned))
            .ok_or(RecipeError::NoCompilerVersion)?;
        Ok(Self { config, source_version, compiler, tarball: tarball.to_owned() })
    }

    /// The cache key: 64 hexadecimal digits that change when any input does.
    pub fn key(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.config.text(), &self.source_version, &self.compiler, &RECIPE_VERSION.to_string()] {
            // The length in front keeps two inputs from running into each other.
            hash.update(part.len().to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Standard output of a command that ended well; `None` where it ended otherwise.
fn output(tool: &'static str, arguments: &[&str]) -> Result<Option<String>, RecipeError> {
    let out = Command::new(tool).args(arguments).env("LC_ALL", "C").output();
    let out = out.map_err(|source| RecipeError::Tool { tool, source })?;
    Ok(out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragments::FRAGMENTS;

    fn recipe() -> Recipe {
        Recipe {
            config: Merged::new(FRAGMENTS, OVERRIDES).unwrap(),
            source_version: "6.12.1-1".into(),
            compiler: "gcc 12".into(),
            tarball: PathBuf::from(SOURCE_TARBALL),
        }
    }

    #[test]
    fn key_is_the_same_for_the_same_inputs() {
        assert_eq!(recipe().key(), recipe().key());
        assert_eq!(recipe().key().len(), 64);
    }

    #[test]
    fn key_changes_with_each_input() {
        let base = recipe().key();
        assert_ne!(Recipe { source_version: "6.12.1-2".into(), ..recipe() }.key(), base);
        assert_ne!(Recipe { compiler: "gcc 13".into(), ..recipe() }.key(), base);
        let config = Merged::new(&FRAGMENTS[..FRAGMENTS.len() - 1], &[]).unwrap();
        assert_ne!(Recipe { config, ..recipe() }.key(), base);
    }

    #[test]
    fn key_does_not_mix_neighbouring_inputs() {
        let one = Recipe { source_version: "1".into(), compiler: "23".into(), ..recipe() };
        let two = Recipe { source_version: "12".into(), compiler: "3".into(), ..recipe() };
        assert_ne!(one.key(), two.key());
    }
}
