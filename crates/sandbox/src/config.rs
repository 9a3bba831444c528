//! The host's settings: `/etc/nacre/config.toml`, and two environment variables over it.
//!
//! Only the owner of the host writes these; nothing of a container reaches them (B5 in `docs/threat-model.md`).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// Where the settings stand.
pub const CONFIG_PATH: &str = "/etc/nacre/config.toml";

/// Environment variable with the milliseconds that a guest may take for its boot, and for each request.
pub const TIMEOUT_ENV: &str = "NACRE_TIMEOUT_MS";

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there and cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key that does not exist.
    #[error("{path} is not a valid configuration")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// The environment variable is no number.
    #[error("{TIMEOUT_ENV} is {0:?}, and must be a number of milliseconds above 0")]
    Timeout(String),
}

/// Settings of the host; every key has a default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size of VMs.
    pub vm: VmSettings,
    /// Files that a VM is made from.
    pub assets: AssetSettings,
    /// How long to wait.
    pub timeouts: TimeoutSettings,
}

/// Size of VMs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmSettings {
    /// vCPUs of a container without a CPU limit.
    pub default_vcpus: u8,
    /// Guest memory of a container without a memory limit.
    pub default_memory_mib: u32,
    /// Guest memory beyond a container's memory limit, for the guest's kernel and agent.
    pub guest_overhead_mib: u32,
    /// Host memory beyond the guest's, for the VMM.
    pub vmm_overhead_mib: u32,
}

impl Default for VmSettings {
    fn default() -> Self {
        Self { default_vcpus: 1, default_memory_mib: 512, guest_overhead_mib: 64, vmm_overhead_mib: 32 }
    }
}

/// Files that a VM is made from; what is not set is looked for (module [`crate::assets`]).
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AssetSettings {
    /// Directory with all of them.
    pub dir: Option<PathBuf>,
    /// The guest kernel.
    pub kernel: Option<PathBuf>,
    /// The guest's initial ramdisk.
    pub initramfs: Option<PathBuf>,
}

/// How long to wait.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutSettings {
    /// From the start of a VM to its agent's first answer.
    pub boot_ms: u64,
    /// For each request to the agent.
    pub agent_ms: u64,
    /// From SIGKILL for a container, or the end of its sandbox, to the end of its VM by force.
    pub kill_ms: u64,
}

impl Default for TimeoutSettings {
    fn default() -> Self {
        // Emulated machines are twenty times slower than hardware, where both take well under a second.
        Self { boot_ms: 60_000, agent_ms: 60_000, kill_ms: 15_000 }
    }
}

impl TimeoutSettings {
    /// [`Self::boot_ms`] as a duration.
    pub fn boot(&self) -> Duration {
        Duration::from_millis(self.boot_ms)
    }

    /// [`Self::kill_ms`] as a duration.
    pub fn kill(&self) -> Duration {
        Duration::from_millis(self.kill_ms)
    }

    /// [`Self::agent_ms`] as a duration.
    pub fn agent(&self) -> Duration {
        Duration::from_millis(self.agent_ms)
    }
}

impl Config {
    /// Reads the settings of this host.
    ///
    /// # Errors
    /// See [`ConfigError`]. A missing file is none.
    pub fn load() -> Result<Self, ConfigError> {
        Self::read(Path::new(CONFIG_PATH))?.with_timeout(std::env::var(TIMEOUT_ENV).ok().as_deref())
    }

    /// Reads one file.
    ///
    /// # Errors
    /// See [`ConfigError`]. A missing file is none.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    fn with_timeout(mut self, value: Option<&str>) -> Result<Self, ConfigError> {
        let Some(text) = value else { return Ok(self) };
        let millis = text.parse().ok().filter(|millis| *millis > 0);
        let millis: u64 = millis.ok_or_else(|| ConfigError::Timeout(text.to_owned()))?;
        self.timeouts = TimeoutSettings { boot_ms: millis, agent_ms: millis, kill_ms: millis };
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn missing_file_means_defaults() {
        assert_eq!(Config::read(Path::new("/nonexistent/config.toml")).unwrap(), Config::default());
    }

    #[test]
    fn one_key_leaves_the_others_at_their_defaults() {
        let config = parse("[vm]\ndefault_memory_mib = 256\n").unwrap();
        assert_eq!(config.vm.default_memory_mib, 256);
        assert_eq!(config.vm.default_vcpus, 1);
    }

    #[test]
    fn misspelt_key_is_an_error_that_names_the_file() {
        let error = parse("[vm]\ndefault_vcpu = 2\n").unwrap_err();
        assert!(error.to_string().contains("config.toml"), "{error}");
    }

    #[test]
    fn timeout_of_the_environment_wins() {
        let config = Config::default().with_timeout(Some("1500")).unwrap();
        assert_eq!(config.timeouts.boot(), Duration::from_millis(1500));
    }

    #[test]
    fn timeout_that_is_no_number_is_an_error() {
        for bad in ["", "0", "-1", "1s"] {
            assert!(Config::default().with_timeout(Some(bad)).is_err(), "{bad:?}");
        }
    }
}
