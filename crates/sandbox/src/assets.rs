//! The files that a VM is made from: guest kernel, initramfs, and the two programs beside the shim.
//!
//! Looked for, in this order: the path in the configuration, `$NACRE_ASSETS`, the configuration's directory,
//! beside the shim itself (its directory, `guest`, `../guest` and `../lib/nacre` of it), `/usr/lib/nacre` and its
//! `guest`. The first that exists is taken and must be sound: a damaged file is an error, not a reason to go on looking.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use nacre_protocol::assets;
pub use nacre_protocol::assets::ASSETS_ENV;

use crate::config::AssetSettings;

const KERNEL: &str = "vmlinux";
const INITRAMFS: &str = "initramfs.cpio";
const VMM: &str = "nacre-vmm";
const FS: &str = "nacre-fs";

/// First bytes of an ELF file.
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// First bytes of an uncompressed newc cpio archive.
const CPIO_MAGIC: &[u8] = b"070701";

/// An asset that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// None of the places has it.
    #[error("{what} {name} is in none of {places}; {remedy}")]
    Missing {
        /// What it is.
        what: &'static str,
        /// Its file name.
        name: &'static str,
        /// Where it was looked for.
        places: String,
        /// What to do.
        remedy: &'static str,
    },
    /// It is there and cannot be opened.
    #[error("cannot open {what} {path}")]
    Open {
        /// What it is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{what} {path} is not {form}; {remedy}")]
    Corrupt {
        /// What it is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What it should be.
        form: &'static str,
        /// What to do.
        remedy: &'static str,
    },
}

/// One kind of asset.
struct Kind {
    what: &'static str,
    name: &'static str,
    magic: &'static [u8],
    form: &'static str,
    remedy: &'static str,
}

const KERNEL_KIND: Kind = Kind {
    what: "guest kernel",
    name: KERNEL,
    magic: ELF_MAGIC,
    form: "an ELF file",
    remedy: "run `cargo xtask guest`, or set assets.kernel in /etc/nacre/config.toml",
};

const INITRAMFS_KIND: Kind = Kind {
    what: "agent image",
    name: INITRAMFS,
    magic: CPIO_MAGIC,
    form: "an uncompressed newc cpio archive",
    remedy: "run `cargo xtask guest`, or set assets.initramfs in /etc/nacre/config.toml",
};

const VMM_KIND: Kind = Kind {
    what: "program",
    name: VMM,
    magic: ELF_MAGIC,
    form: "an ELF file",
    remedy: "install it beside the shim",
};

const FS_KIND: Kind = Kind {
    what: "program",
    name: FS,
    magic: ELF_MAGIC,
    form: "an ELF file",
    remedy: "install it beside the shim",
};

/// Finds the files.
#[derive(Debug, Clone)]
pub struct Assets {
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    dirs: Vec<PathBuf>,
}

impl Assets {
    /// The places of this host.
    pub fn new(settings: &AssetSettings) -> Self {
        let first = std::env::var_os(ASSETS_ENV).map(PathBuf::from).into_iter().chain(settings.dir.clone());
        let dirs = assets::dirs(first, std::env::current_exe().ok().as_deref());
        Self { kernel: settings.kernel.clone(), initramfs: settings.initramfs.clone(), dirs }
    }

    /// Opens the guest kernel.
    ///
    /// # Errors
    /// See [`AssetError`].
    pub fn open_kernel(&self) -> Result<File, AssetError> {
        Ok(self.open(&KERNEL_KIND, self.kernel.as_deref())?.1)
    }

    /// Opens the initial ramdisk.
    ///
    /// # Errors
    /// See [`AssetError`].
    pub fn open_initramfs(&self) -> Result<File, AssetError> {
        Ok(self.open(&INITRAMFS_KIND, self.initramfs.as_deref())?.1)
    }

    /// Path of the VMM.
    ///
    /// # Errors
    /// See [`AssetError`].
    pub fn vmm(&self) -> Result<PathBuf, AssetError> {
        Ok(self.open(&VMM_KIND, None)?.0)
    }

    /// Path of the file server.
    ///
    /// # Errors
    /// See [`AssetError`].
    pub fn fs(&self) -> Result<PathBuf, AssetError> {
        Ok(self.open(&FS_KIND, None)?.0)
    }

    fn open(&self, kind: &Kind, fixed: Option<&Path>) -> Result<(PathBuf, File), AssetError> {
        let candidates: Vec<PathBuf> = match fixed {
            Some(path) => vec![path.to_owned()],
            None => self.dirs.iter().map(|dir| dir.join(kind.name)).collect(),
        };
        for path in &candidates {
            match File::open(path) {
                Ok(mut file) => {
                    check(&mut file, kind, path)?;
                    return Ok((path.clone(), file));
                }
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(source) => return Err(AssetError::Open { what: kind.what, path: path.clone(), source }),
            }
        }
        let places: Vec<_> = candidates.iter().filter_map(|path| path.parent()?.to_str()).collect();
        let places = places.join(", ");
        Err(AssetError::Missing { what: kind.what, name: kind.name, places, remedy: kind.remedy })
    }
}

fn check(file: &mut File, kind: &Kind, path: &Path) -> Result<(), AssetError> {
    let mut start = vec![0; kind.magic.len()];
    let read = file.read_exact(&mut start).and_then(|()| std::io::Seek::rewind(file));
    match read {
        Ok(()) if start == kind.magic => Ok(()),
        Err(source) if source.kind() != ErrorKind::UnexpectedEof => {
            Err(AssetError::Open { what: kind.what, path: path.to_owned(), source })
        }
        _ => Err(AssetError::Corrupt {
            what: kind.what,
            path: path.to_owned(),
            form: kind.form,
            remedy: kind.remedy,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assets(dirs: &[&Path]) -> Assets {
        Assets { kernel: None, initramfs: None, dirs: dirs.iter().map(|dir| (*dir).to_owned()).collect() }
    }

    #[test]
    fn first_place_that_has_the_kernel_wins() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(two.path().join("vmlinux"), b"\x7fELF two").unwrap();
        let mut text = String::new();
        assets(&[one.path(), two.path()]).open_kernel().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "\x7fELF two");
    }

    #[test]
    fn missing_kernel_is_named_with_its_places_and_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let message = assets(&[dir.path()]).open_kernel().unwrap_err().to_string();
        assert!(message.contains("guest kernel vmlinux is in none of"), "{message}");
        assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
        assert!(message.contains("cargo xtask guest"), "{message}");
    }

    #[test]
    fn corrupt_kernel_is_an_error_even_when_a_later_place_has_a_good_one() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(one.path().join("vmlinux"), b"MZ").unwrap();
        std::fs::write(two.path().join("vmlinux"), b"\x7fELF").unwrap();
        let message = assets(&[one.path(), two.path()]).open_kernel().unwrap_err().to_string();
        assert!(message.contains("is not an ELF file; run `cargo xtask guest`"), "{message}");
    }

    #[test]
    fn compressed_initramfs_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("initramfs.cpio"), b"\x1f\x8b\x08\0\0\0\0").unwrap();
        assert!(matches!(assets(&[dir.path()]).open_initramfs(), Err(AssetError::Corrupt { .. })));
    }

    #[test]
    fn path_of_the_configuration_is_the_only_place() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vmlinux"), b"\x7fELF").unwrap();
        let mut assets = assets(&[dir.path()]);
        assets.kernel = Some(dir.path().join("other"));
        assert!(matches!(assets.open_kernel(), Err(AssetError::Missing { .. })));
    }
}
