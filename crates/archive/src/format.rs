//! Tar entries on the wire: ustar headers with pax records, GNU long names understood as well.
//!
//! Owns: the order of blocks, checksums, sizes and padding, with a bound on everything that is
//! held in memory. Refuses: what an entry means for a file system.

use crate::ArchiveError;
use crate::pax::{self, Records, Time};
use std::io::{self, Read, Write};
use tar::{EntryType, Header};

/// Unit of an archive in bytes.
const BLOCK: usize = 512;
/// Longest extended header or long name that is read, in bytes.
const MAX_EXTENSION: u64 = 64 << 10;
/// Longest name a ustar header holds by itself, in bytes.
const SHORT_NAME: usize = 100;
/// Where a header keeps its checksum.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File {
        size: u64,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    HardLink,
    /// A device, fifo, or the like.
    Special,
}

/// One entry's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits, set-id bits and the sticky bit.
    pub(crate) mode: u32,
    pub(crate) mtime: Time,
}

/// Reads entries one by one. Each entry's contents must be read to their end before the next.
pub(crate) struct Reader<R> {
    input: R,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input }
    }

    /// The next entry, `None` at the archive's own end. A stream that stops before is truncated.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut records = Records::default();
        loop {
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            if block == [0; BLOCK] {
                self.fill(&mut block)?;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            let size = header.entry_size().map_err(|_| ArchiveError::Malformed("a broken size"))?;
            match header.entry_type() {
                EntryType::XHeader => records.read(&self.extension(size)?)?,
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                EntryType::GNULongName => records.path = Some(until_nul(self.extension(size)?)),
                EntryType::GNULongLink => records.link = Some(until_nul(self.extension(size)?)),
                kind => return self.entry(header, kind, records).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, kind: EntryType, records: Records) -> Result<Entry, ArchiveError> {
        let broken = |_| ArchiveError::Malformed("a broken header field");
        let name = records.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let size = records.size.map_or_else(|| header.size().map_err(broken), Ok)?;
        let mode = header.mode().map_err(broken)? & 0o7777;
        let seconds = i64::try_from(header.mtime().map_err(broken)?).unwrap_or(0);
        let mtime = records.mtime.unwrap_or(Time { seconds, nanoseconds: 0 });
        let kind = match kind {
            // Archives older than POSIX mark directories by a slash alone.
            EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File { size },
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => {
                let target = records.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
                Kind::Symlink { target: target.unwrap_or_default() }
            }
            EntryType::Link => Kind::HardLink,
            EntryType::Char | EntryType::Block | EntryType::Fifo => Kind::Special,
            EntryType::GNUSparse => return Err(ArchiveError::Malformed("a sparse entry")),
            _ => return Err(ArchiveError::Malformed("an entry of unknown type")),
        };
        if !matches!(kind, Kind::File { .. }) {
            self.skip(size)?;
        }
        Ok(Entry { name, kind, mode, mtime })
    }

    /// Reads a piece of an entry's contents.
    pub(crate) fn contents(&mut self, piece: &mut [u8]) -> Result<(), ArchiveError> {
        self.fill(piece)
    }

    /// Reads the padding behind contents of `size` bytes.
    pub(crate) fn padding(&mut self, size: u64) -> Result<(), ArchiveError> {
        let mut block = [0; BLOCK];
        self.fill(&mut block[..padding(size)])
    }

    fn skip(&mut self, size: u64) -> Result<(), ArchiveError> {
        let whole = size.checked_add(padding(size) as u64).ok_or(ArchiveError::Malformed("a broken size"))?;
        let skipped =
            io::copy(&mut (&mut self.input).take(whole), &mut io::sink()).map_err(ArchiveError::Input)?;
        if skipped == whole { Ok(()) } else { Err(ArchiveError::Truncated) }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_EXTENSION {
            return Err(ArchiveError::Malformed("an extended header over 64 KiB"));
        }
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes)?;
        self.padding(size)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ArchiveError> {
        self.input.read_exact(bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
            _ => ArchiveError::Input(e),
        })
    }
}

fn check_sum(header: &Header) -> Result<(), ArchiveError> {
    let bytes = header.as_bytes();
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    let own: u32 = bytes[CHECKSUM].iter().map(|byte| u32::from(*byte)).sum();
    let expected = sum - own + 8 * u32::from(b' ');
    if header.cksum().ok() == Some(expected) {
        Ok(())
    } else {
        Err(ArchiveError::Malformed("a wrong checksum"))
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Bytes between contents of `size` bytes and the next block.
fn padding(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

/// Writes entries one by one.
pub(crate) struct Writer<W> {
    output: W,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output }
    }

    /// Writes an entry's head; a file's contents and [`Writer::padding`] follow.
    pub(crate) fn entry(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        let mut records = Vec::new();
        if entry.mtime.nanoseconds != 0 || entry.mtime.seconds < 0 {
            pax::append(&mut records, "mtime", &pax::time_value(entry.mtime));
        }
        if entry.name.len() > SHORT_NAME {
            pax::append(&mut records, "path", &entry.name);
        }
        let (kind, size, link) = match &entry.kind {
            Kind::File { size } => (EntryType::Regular, *size, [].as_slice()),
            Kind::Directory => (EntryType::Directory, 0, [].as_slice()),
            Kind::Symlink { target } => (EntryType::Symlink, 0, target.as_slice()),
            Kind::HardLink | Kind::Special => {
                return Err(ArchiveError::Malformed("an entry that is not written"));
            }
        };
        if link.len() > SHORT_NAME {
            pax::append(&mut records, "linkpath", link);
        }
        if !records.is_empty() {
            let mut header = header_of(b"pax", EntryType::XHeader, records.len() as u64);
            header.set_cksum();
            self.put(header.as_bytes())?;
            self.put(&records)?;
            self.padding(records.len() as u64)?;
        }
        let mut header = header_of(&entry.name, kind, size);
        header.set_mode(entry.mode);
        header.set_mtime(u64::try_from(entry.mtime.seconds).unwrap_or(0));
        if let Some(ustar) = header.as_ustar_mut() {
            copy_start(&mut ustar.linkname, link);
        }
        header.set_cksum();
        self.put(header.as_bytes())
    }

    /// Writes a piece of a file's contents.
    pub(crate) fn contents(&mut self, piece: &[u8]) -> Result<(), ArchiveError> {
        self.put(piece)
    }

    /// Fills up the last block of contents of `size` bytes.
    pub(crate) fn padding(&mut self, size: u64) -> Result<(), ArchiveError> {
        self.put(&[0; BLOCK][..padding(size)])
    }

    /// Writes the end of the archive.
    pub(crate) fn finish(mut self) -> Result<(), ArchiveError> {
        self.put(&[0; 2 * BLOCK])?;
        self.output.flush().map_err(ArchiveError::Output)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.output.write_all(bytes).map_err(ArchiveError::Output)
    }
}

fn header_of(name: &[u8], kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_ustar();
    if let Some(ustar) = header.as_ustar_mut() {
        copy_start(&mut ustar.name, name);
    }
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn copy_start(field: &mut [u8], value: &[u8]) {
    for (to, from) in field.iter_mut().zip(value) {
        *to = *from;
    }
}
