//! Builds tar archives, also ones that no archiver would write.

/// A header before it becomes 512 bytes.
pub(crate) struct Header {
    pub(crate) type_flag: u8,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) gnu: bool,
}

impl Header {
    pub(crate) fn new(type_flag: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            type_flag,
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            gnu: false,
        }
    }

    pub(crate) fn record(&self) -> [u8; 512] {
        let mut raw = [0; 512];
        let put =
            |raw: &mut [u8; 512], at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
        put(&mut raw, 0, &self.name);
        put(&mut raw, 100, format!("{:07o}", self.mode).as_bytes());
        put(&mut raw, 108, &number(self.uid, 8));
        put(&mut raw, 116, &number(self.gid, 8));
        put(&mut raw, 124, &number(self.size, 12));
        put(&mut raw, 136, &number(self.mtime, 12));
        raw[156] = self.type_flag;
        put(&mut raw, 157, &self.link);
        put(&mut raw, 257, if self.gnu { b"ustar  \0" } else { b"ustar\x0000" });
        put(&mut raw, 329, &number(self.device.0.into(), 8));
        put(&mut raw, 337, &number(self.device.1.into(), 8));
        seal(&mut raw);
        raw
    }
}

/// Puts the right checksum into a header.
pub(crate) fn seal(raw: &mut [u8; 512]) {
    raw[148..156].fill(b' ');
    let sum: u32 = raw.iter().map(|byte| u32::from(*byte)).sum();
    raw[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Octal where it fits, else GNU's base 256.
fn number(value: u64, width: usize) -> Vec<u8> {
    let octal = format!("{value:0digits$o}", digits = width - 1);
    if octal.len() < width {
        return octal.into_bytes();
    }
    let mut field = vec![0; width];
    field[width - 8..].copy_from_slice(&value.to_be_bytes());
    field[0] |= 0x80;
    field
}

/// An archive in the making.
#[derive(Default)]
pub(crate) struct Tarball(Vec<u8>);

impl Tarball {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn header(mut self, header: &Header) -> Self {
        self.0.extend_from_slice(&header.record());
        self
    }

    /// Bytes and the padding behind them.
    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: impl AsRef<[u8]>, data: &[u8]) -> Self {
        self.header(&Header { size: data.len() as u64, ..Header::new(b'0', name) }).data(data)
    }

    pub(crate) fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.header(&Header { mode: 0o755, ..Header::new(b'5', name) })
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.header(&Header { link: target.into(), mode: 0o777, ..Header::new(b'2', name) })
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.header(&Header { link: target.into(), ..Header::new(b'1', name) })
    }

    pub(crate) fn device(self, type_flag: u8, name: &str, major: u32, minor: u32) -> Self {
        self.header(&Header { device: (major, minor), ..Header::new(type_flag, name) })
    }

    pub(crate) fn fifo(self, name: &str) -> Self {
        self.header(&Header::new(b'6', name))
    }

    /// An extended header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> =
            records.iter().flat_map(|(key, value)| pax_record(key.as_bytes(), value)).collect();
        self.header(&Header { size: body.len() as u64, ..Header::new(b'x', "pax") }).data(&body)
    }

    /// The archive with its end mark.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }

    /// The archive as it is.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.0
    }
}

fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let len = (body..).find(|len| len.to_string().len() + body == *len).expect("lengths grow");
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}
