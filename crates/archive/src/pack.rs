//! Packing: a tree read as it is, from descriptors, never through a symlink below the root.

use crate::format::{Entry, Kind, Writer};
use crate::pax::Time;
use crate::{ArchiveError, MAX_DEPTH, PIECE, Progress, Summary, to_path};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Most bytes of a file that says it is empty: they are held in memory.
const MAX_UNSIZED: usize = 16 << 20;

/// How to pack.
#[derive(Default)]
pub struct PackOptions<'a> {
    /// Pack what is mounted below the root as empty directories.
    pub one_file_system: bool,
    /// Told of file contents as they are read.
    pub progress: Option<Progress<'a>>,
}

/// Packs the file or directory `source` as the single root of an archive.
///
/// `source` itself may be a symlink or lie behind some: the caller names it. The root is called
/// `root_name`, or as the last component of `source`.
///
/// # Errors
/// A file that cannot be read, or `out` that cannot be written. What is no file, directory or
/// symlink is left out with a warning, as is what vanishes meanwhile.
pub fn pack(
    source: &Path,
    root_name: Option<&OsStr>,
    out: impl Write,
    options: PackOptions<'_>,
) -> Result<Summary, ArchiveError> {
    let name = match root_name {
        Some(name) => name.as_bytes().to_vec(),
        None => name_of(source)?,
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let failed = |e| ArchiveError::file("open", source, e);
    let fd = rustix::fs::openat(CWD, source, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    let mut packer = Packer {
        writer: Writer::new(out),
        summary: Summary::default(),
        device: options.one_file_system.then_some(stat.st_dev),
        progress: options.progress,
        piece: vec![0; PIECE],
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_size == 0 => packer.file_without_size(&name, &fd, &stat)?,
        FileType::RegularFile => packer.file(&name, fd, &stat)?,
        FileType::Directory => packer.tree(name, fd, &stat)?,
        _ => {
            let source_error =
                std::io::Error::new(std::io::ErrorKind::InvalidInput, "neither a file nor a directory");
            return Err(ArchiveError::file("pack", source, source_error));
        }
    }
    packer.writer.finish()?;
    Ok(packer.summary)
}

/// The last component, also of `.`, `..` and `/`.
fn name_of(source: &Path) -> Result<Vec<u8>, ArchiveError> {
    if let Some(name) = source.file_name() {
        return Ok(name.as_bytes().to_vec());
    }
    let real = source.canonicalize().map_err(|e| ArchiveError::file("open", source, e))?;
    Ok(real.file_name().map_or_else(|| b"root".to_vec(), |name| name.as_bytes().to_vec()))
}

struct Packer<'a, W> {
    writer: Writer<W>,
    summary: Summary,
    /// With `one_file_system`: the root's.
    device: Option<u64>,
    progress: Option<Progress<'a>>,
    piece: Vec<u8>,
}

/// A directory whose entries are being packed.
struct Level {
    fd: OwnedFd,
    /// Its name in the archive.
    path: Vec<u8>,
    /// Names still to be packed.
    left: Vec<CString>,
}

impl<W: Write> Packer<'_, W> {
    fn tree(&mut self, name: Vec<u8>, fd: OwnedFd, stat: &Stat) -> Result<(), ArchiveError> {
        let mut levels = vec![self.directory(name, fd, stat)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.left.pop() else {
                levels.pop();
                continue;
            };
            let path = [level.path.as_slice(), b"/", name.to_bytes()].concat();
            let Some((fd, stat)) = self.open(&level.fd, &name, &path)? else { continue };
            match fd {
                None => {}
                Some(fd) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    if levels.len() >= MAX_DEPTH {
                        return Err(ArchiveError::TooDeep { path: to_path(&path) });
                    }
                    levels.push(self.directory(path, fd, &stat)?);
                }
                Some(fd) => self.file(&path, fd, &stat)?,
            }
        }
        Ok(())
    }

    /// Opens a file or directory. Symlinks are packed here; what is neither is passed over.
    fn open(
        &mut self,
        dir: &OwnedFd,
        name: &CStr,
        path: &[u8],
    ) -> Result<Option<(Option<OwnedFd>, Stat)>, ArchiveError> {
        let looked = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        let Some(stat) = self.unless_vanished(looked, path)? else { return Ok(None) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new());
                if let Some(target) = self.unless_vanished(target, path)? {
                    self.writer.entry(&entry(path, Kind::Symlink { target: target.into_bytes() }, &stat))?;
                    self.summary.symlinks += 1;
                }
                return Ok(Some((None, stat)));
            }
            _ => {
                self.summary.warn(to_path(path), "left out: neither a file, a directory nor a symlink");
                return Ok(None);
            }
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(dir, name, flags, Mode::empty());
        let Some(fd) = self.unless_vanished(opened, path)? else { return Ok(None) };
        // It may have been replaced since: only the descriptor says what is packed.
        let stat = rustix::fs::fstat(&fd).map_err(|e| ArchiveError::file("read", to_path(path), e))?;
        if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory) {
            self.summary.warn(to_path(path), "left out: replaced while it was read");
            return Ok(None);
        }
        Ok(Some((Some(fd), stat)))
    }

    fn unless_vanished<T>(
        &mut self,
        outcome: Result<T, Errno>,
        path: &[u8],
    ) -> Result<Option<T>, ArchiveError> {
        match outcome {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::LOOP) => {
                self.summary.warn(to_path(path), "left out: it vanished while the directory was read");
                Ok(None)
            }
            Err(e) => Err(ArchiveError::file("read", to_path(path), e)),
        }
    }

    fn directory(&mut self, path: Vec<u8>, fd: OwnedFd, stat: &Stat) -> Result<Level, ArchiveError> {
        let mut name = path.clone();
        name.push(b'/');
        self.writer.entry(&entry(&name, Kind::Directory, stat))?;
        self.summary.directories += 1;
        let left = if self.device.is_some_and(|device| device != stat.st_dev) {
            self.summary.warn(to_path(&path), "packed empty: another file system is mounted there");
            Vec::new()
        } else {
            names_in(&fd).map_err(|e| ArchiveError::file("read directory", to_path(&path), e))?
        };
        Ok(Level { fd, path, left })
    }

    /// Packs a file that says it is empty. Those of /proc and /sys say so and are not; only one
    /// that was named is asked, because among a whole tree of them some never end.
    fn file_without_size(&mut self, path: &[u8], fd: &OwnedFd, stat: &Stat) -> Result<(), ArchiveError> {
        let mut contents = Vec::new();
        loop {
            let got = match read(fd, &mut self.piece) {
                Ok(0) => break,
                Ok(got) => got,
                Err(e) => return Err(ArchiveError::file("read", to_path(path), e)),
            };
            contents.extend_from_slice(&self.piece[..got]);
            if contents.len() > MAX_UNSIZED {
                let endless = std::io::Error::from(std::io::ErrorKind::FileTooLarge);
                return Err(ArchiveError::file("pack", to_path(path), endless));
            }
        }
        let size = contents.len() as u64;
        self.writer.entry(&entry(path, Kind::File { size }, stat))?;
        self.writer.contents(&contents)?;
        if let Some(progress) = &mut self.progress {
            progress(size);
        }
        self.summary.files += 1;
        self.summary.bytes += size;
        self.writer.padding(size)
    }

    /// Packs as many bytes as the file had when it was opened.
    fn file(&mut self, path: &[u8], fd: OwnedFd, stat: &Stat) -> Result<(), ArchiveError> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.writer.entry(&entry(path, Kind::File { size }, stat))?;
        let mut left = size;
        let mut shrank = false;
        while left > 0 {
            let want = self.piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let piece = &mut self.piece[..want];
            let got = if shrank {
                0
            } else {
                read(&fd, piece).map_err(|e| ArchiveError::file("read", to_path(path), e))?
            };
            if got == 0 {
                piece.fill(0);
                shrank = true;
            }
            let length = if got == 0 { want } else { got };
            self.writer.contents(&piece[..length])?;
            left -= length as u64;
            if let Some(progress) = &mut self.progress {
                progress(length as u64);
            }
        }
        if shrank {
            self.summary.warn(to_path(path), "became shorter while it was read: the rest is zeros");
        }
        self.summary.files += 1;
        self.summary.bytes += size;
        self.writer.padding(size)
    }
}

fn read(fd: &OwnedFd, piece: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match rustix::io::read(fd, &mut *piece) {
            Err(Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

/// All names in a directory, in the order they will be taken from the end.
fn names_in(fd: impl AsFd) -> Result<Vec<CString>, Errno> {
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut directory = RawDir::new(fd, &mut buffer);
    let mut names = Vec::new();
    while let Some(found) = directory.next() {
        let found = found?;
        if !matches!(found.file_name().to_bytes(), b"." | b"..") {
            names.push(found.file_name().to_owned());
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

fn entry(name: &[u8], kind: Kind, stat: &Stat) -> Entry {
    Entry {
        name: name.to_vec(),
        kind,
        mode: stat.st_mode & 0o7777,
        mtime: Time { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) },
    }
}
