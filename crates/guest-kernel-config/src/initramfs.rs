//! The guest's initramfs: the agent as `/init`, the mount points that it needs, and two device nodes.
//!
//! | entry | for |
//! |---|---|
//! | `dev/console` | the kernel opens it as init's standard streams before it starts init |
//! | `dev/null` | the agent's standard streams where the guest has no console |
//! | `proc`, `sys`, `dev`, `run` | mount points: the agent makes its root read-only before it mounts |
//! | `init` | the agent, mode 0555 |
//!
//! Stored, not compressed: unpacking costs the guest far more than the host saves.

use crate::cpio::{Archive, CpioError};

/// Mount points of the agent.
const DIRECTORIES: [&str; 4] = ["dev", "proc", "run", "sys"];

/// The initramfs with this agent binary. Equal binaries make equal bytes.
///
/// # Errors
/// Where the binary is longer than an archive can hold (4 GiB).
pub fn build(agent: &[u8]) -> Result<Vec<u8>, CpioError> {
    let mut archive = Archive::new();
    for name in DIRECTORIES {
        archive.directory(name, 0o755)?;
    }
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.character_device("dev/null", 0o666, 1, 3)?;
    archive.file("init", 0o555, agent)?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_agents_make_equal_bytes() {
        assert_eq!(build(b"agent").unwrap(), build(b"agent").unwrap());
    }

    #[test]
    fn every_entry_is_there_with_parents_first() {
        let bytes = build(b"\x7fELF").unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let names = ["dev\0", "proc\0", "run\0", "sys\0", "dev/console\0", "dev/null\0", "init\0"];
        let places: Vec<_> = names.iter().map(|name| text.find(name).unwrap()).collect();
        assert!(places.is_sorted(), "{places:?}");
    }
}
