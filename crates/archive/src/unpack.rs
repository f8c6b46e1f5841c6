//! Unpacking: an archive nobody vouches for, into a directory.

use crate::format::{Entry, Kind, Reader};
use crate::place::{Attributes, Name, Place, in_the_way};
use crate::{ArchiveError, PIECE, Progress, Summary, to_path};
use rustix::fs::{CWD, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Who owns what is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owner {
    /// The user who unpacks.
    #[default]
    Caller,
    /// The owner and group of the destination directory; needs root.
    Destination,
}

/// How to unpack.
#[derive(Default)]
pub struct UnpackOptions<'a> {
    /// Keep set-user-ID and set-group-ID bits. Never on a machine that does not trust the archive.
    pub keep_set_id: bool,
    /// Who owns the result.
    pub owner: Owner,
    /// Told of file contents as they are written.
    pub progress: Option<Progress<'a>>,
}

/// Unpacks an archive at or below `destination`.
///
/// An existing directory takes the entries inside it. Otherwise the archive must have a single
/// root, which gets the last component of `destination` as its name, in an existing directory.
/// Files and symlinks that are there are replaced; directories are kept and filled.
///
/// # Errors
/// See [`ArchiveError`]. Files that were complete stay; the one that was not is removed.
pub fn unpack(
    input: impl Read,
    destination: &Path,
    options: UnpackOptions<'_>,
) -> Result<Summary, ArchiveError> {
    let (base, root) = open_destination(destination)?;
    let owner = owner_below(&base, options.owner, destination)?;
    let mut unpacker = Unpacker {
        reader: Reader::new(input),
        place: Place::new(base),
        root,
        first: None,
        must_be_directory: destination.as_os_str().as_bytes().ends_with(b"/"),
        mode_mask: if options.keep_set_id { 0o7777 } else { 0o1777 },
        owner,
        progress: options.progress,
        summary: Summary::default(),
        piece: vec![0; PIECE],
    };
    let outcome = unpacker.all();
    // Also after a failure: what has arrived is to be as usable as it can be.
    let finished = unpacker.place.finish();
    outcome.and(finished)?;
    Ok(unpacker.summary)
}

/// The directory to unpack in, and the name the root is to get there.
fn open_destination(destination: &Path) -> Result<(OwnedFd, Option<CString>), ArchiveError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, destination, flags, Mode::empty()) {
        Ok(fd) => Ok((fd, None)),
        Err(Errno::NOENT | Errno::NOTDIR) => {
            let name = file_name(destination)?;
            let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok((open_base(parent.unwrap_or(Path::new(".")))?, Some(name)))
        }
        Err(e) => Err(ArchiveError::file("open", destination, e)),
    }
}

pub(crate) fn open_base(directory: &Path) -> Result<OwnedFd, ArchiveError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, directory, flags, Mode::empty())
        .map_err(|e| ArchiveError::file("open directory", directory, e))
}

pub(crate) fn file_name(path: &Path) -> Result<CString, ArchiveError> {
    let name = path.file_name().and_then(|name| CString::new(name.as_bytes()).ok());
    name.ok_or_else(|| ArchiveError::file("open", path, Errno::NOENT))
}

pub(crate) fn owner_below(
    base: &OwnedFd,
    owner: Owner,
    destination: &Path,
) -> Result<Option<(u32, u32)>, ArchiveError> {
    match owner {
        Owner::Caller => Ok(None),
        Owner::Destination => {
            let stat: Stat =
                rustix::fs::fstat(base).map_err(|e| ArchiveError::file("open", destination, e))?;
            Ok(Some((stat.st_uid, stat.st_gid)))
        }
    }
}

struct Unpacker<'a, R> {
    reader: Reader<R>,
    place: Place,
    /// The name the archive's root gets, when the destination is a name and no directory.
    root: Option<CString>,
    /// The archive's own name of its root.
    first: Option<CString>,
    /// The destination was written with a slash behind it.
    must_be_directory: bool,
    mode_mask: u32,
    owner: Option<(u32, u32)>,
    progress: Option<Progress<'a>>,
    summary: Summary,
    piece: Vec<u8>,
}

impl<R: Read> Unpacker<'_, R> {
    fn all(&mut self) -> Result<(), ArchiveError> {
        while let Some(entry) = self.reader.next_entry()? {
            self.entry(entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), ArchiveError> {
        let mut name = Name::parse(&entry.name)?;
        self.rename(&mut name, &entry)?;
        let attributes =
            Attributes { mode: entry.mode & self.mode_mask, mtime: entry.mtime, owner: self.owner };
        match entry.kind {
            // `./`, the destination itself, keeps its attributes: it is the caller's.
            Kind::Directory if name.root().is_none() => {}
            Kind::Directory => {
                self.place.directory(&name, attributes)?;
                self.summary.directories += 1;
            }
            Kind::Symlink { target } => {
                self.place.symlink(&name, &target, attributes)?;
                self.summary.symlinks += 1;
            }
            Kind::File { size } => {
                self.file(&name, size, attributes)?;
                self.summary.files += 1;
            }
            Kind::HardLink => return Err(ArchiveError::HardLink { name: to_path(&entry.name) }),
            Kind::Special => self.summary.warn(to_path(&entry.name), "left out: a device, fifo or the like"),
        }
        Ok(())
    }

    /// Gives the archive's single root the destination's name.
    fn rename(&mut self, name: &mut Name, entry: &Entry) -> Result<(), ArchiveError> {
        let Some(wanted) = &self.root else { return Ok(()) };
        let Some(root) = name.root().cloned() else {
            return Err(ArchiveError::Malformed(
                "an entry without a name, for a destination that is no directory",
            ));
        };
        match &self.first {
            None if self.must_be_directory && entry.kind != Kind::Directory => {
                let wanted = to_path(wanted.to_bytes());
                return Err(ArchiveError::file("open directory", wanted, Errno::NOENT));
            }
            None => self.first = Some(root),
            Some(first) if *first != root => {
                let [first, other] = [first, &root].map(|name| to_path(name.to_bytes()));
                return Err(ArchiveError::SeveralRoots { first, other });
            }
            Some(_) => {}
        }
        name.rename_root(wanted);
        Ok(())
    }

    fn file(&mut self, name: &Name, size: u64, attributes: Attributes) -> Result<(), ArchiveError> {
        let part = self.place.begin_file(name)?;
        let mut left = size;
        while left > 0 {
            let want = self.piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let piece = &mut self.piece[..want];
            let moved = self.reader.contents(piece).and_then(|()| {
                write_all(part.as_fd(), piece).map_err(|e| ArchiveError::file("write", name.path(), e))
            });
            if let Err(e) = moved {
                self.place.discard(&part);
                return Err(e);
            }
            left -= want as u64;
            self.summary.bytes += want as u64;
            if let Some(progress) = &mut self.progress {
                progress(want as u64);
            }
        }
        self.place.finish_file(&part, attributes).map_err(|e| in_the_way(name, e))?;
        self.reader.padding(size)
    }
}

fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(&fd, bytes) {
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
