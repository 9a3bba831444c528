//! How much a layer may cost.

/// Limits of one conversion. The defaults admit any layer seen in practice and bound what a bomb can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerLimits {
    /// Bytes of the uncompressed stream.
    pub stream_bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of the blob, holes included.
    pub blob_bytes: u64,
    /// Size of one file, holes included.
    pub file_bytes: u64,
    /// Bytes of memory for names and directories. A million files with 20-byte names need about 60 MiB.
    pub metadata_bytes: u64,
    /// Bytes of the blob for tables of sparse files: 4 for each chunk of a file, whose size follows from where
    /// data and holes are. A terabyte with data at both ends has 2 MiB of them.
    pub sparse_table_bytes: u64,
    /// Bytes of an entry's path.
    pub path_bytes: usize,
    /// Bytes of one extended header or long name record.
    pub header_bytes: usize,
    /// Bytes of names and values of one entry's extended attributes.
    pub xattr_bytes: usize,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self {
            stream_bytes: 512 << 30,
            entries: 4 << 20,
            blob_bytes: 1 << 40,
            file_bytes: 16 << 40,
            metadata_bytes: 384 << 20,
            sparse_table_bytes: 256 << 20,
            path_bytes: 4096,
            // As in Go's archive/tar.
            header_bytes: 1 << 20,
            xattr_bytes: 128 << 10,
        }
    }
}
