//! A writer of cpio archives in the form that the kernel unpacks as an initramfs ("newc").
//!
//! The kernel's `Documentation/driver-api/early-userspace/buffer-format.rst` has the format: a header of
//! thirteen 8-digit hexadecimal fields behind the magic, the name with its NUL, the data, each padded to 4 bytes.
//! Owner, inode numbers and times are fixed, so the same entries make the same bytes.

/// Type bits of `mode` (`inode(7)`).
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFLNK: u32 = 0o120_000;

/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An entry that cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    /// The kernel unpacks a name as it stands, so it must be relative, and no component may be empty or `..`.
    #[error("{0:?} is no path for an initramfs")]
    BadName(String),
    /// The length does not fit its field.
    #[error("{name} has {length} bytes, which a cpio archive cannot hold")]
    TooLong {
        /// Entry.
        name: String,
        /// Its length.
        length: usize,
    },
}

/// An archive that grows entry by entry; parents come before what is in them.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An archive with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// Where `name` is no relative path.
    pub fn directory(&mut self, name: &str, mode: u32) -> Result<(), CpioError> {
        self.entry(name, S_IFDIR | mode, (0, 0), &[])
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// Where `name` is no relative path, or the data is too long.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<(), CpioError> {
        self.entry(name, S_IFREG | mode, (0, 0), data)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// Where `name` is no relative path.
    pub fn symlink(&mut self, name: &str, target: &str) -> Result<(), CpioError> {
        self.entry(name, S_IFLNK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// Where `name` is no relative path.
    pub fn character_device(
        &mut self,
        name: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), CpioError> {
        self.entry(name, S_IFCHR | mode, (major, minor), &[])
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// Never for an archive that took its entries; the trailer is an entry like them.
    pub fn finish(mut self) -> Result<Vec<u8>, CpioError> {
        self.write(TRAILER, 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<(), CpioError> {
        let good = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if name == TRAILER || !name.split('/').all(good) {
            return Err(CpioError::BadName(name.to_owned()));
        }
        self.write(name, mode, device, data)
    }

    fn write(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<(), CpioError> {
        let too_long = || CpioError::TooLong { name: name.to_owned(), length: data.len() };
        let length = u32::try_from(data.len()).map_err(|_| too_long())?;
        let name_length = u32::try_from(name.len() + 1).map_err(|_| too_long())?;
        self.entries += 1;
        let links = if mode & 0o170_000 == S_IFDIR { 2 } else { 1 };
        // ino, mode, uid, gid, nlink, mtime, filesize, dev major and minor, rdev major and minor, namesize, check
        let fields = [self.entries, mode, 0, 0, links, 0, length, 0, 0, device.0, device.1, name_length, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A reader of our own: (name, mode, data) of each entry up to the trailer.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            assert_eq!(&bytes[..6], b"070701");
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let data = (110 + name_size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(bytes.len(), data);
                return entries;
            }
            entries.push((name, mode as u32, bytes[data..data + size].to_vec()));
            bytes = &bytes[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn entries_read_back_with_type_and_mode() {
        let mut archive = Archive::new();
        archive.directory("dev", 0o755).unwrap();
        archive.character_device("dev/console", 0o600, 5, 1).unwrap();
        archive.file("init", 0o755, b"#!").unwrap();
        archive.symlink("bin", "usr/bin").unwrap();
        let entries = read(&archive.finish().unwrap());
        let types: Vec<_> = entries.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
        assert_eq!(
            types,
            [("dev", 0o040_755), ("dev/console", 0o020_600), ("init", 0o100_755), ("bin", 0o120_777)]
        );
    }

    #[test]
    fn names_that_leave_the_root_are_refused() {
        for bad in ["", "/init", "../init", "a//b", "a/./b", "a\0b", TRAILER] {
            assert_eq!(Archive::new().file(bad, 0o644, b""), Err(CpioError::BadName(bad.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn any_data_reads_back(files in proptest::collection::vec(("[a-z]{1,20}", any::<Vec<u8>>()), 0..8)) {
            let mut archive = Archive::new();
            for (name, data) in &files {
                archive.file(name, 0o644, data).unwrap();
            }
            let back: Vec<_> = read(&archive.finish().unwrap()).into_iter().map(|(n, _, d)| (n, d)).collect();
            prop_assert_eq!(back, files);
        }
    }
}
