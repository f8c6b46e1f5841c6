//! Where entries go: a stack of open directories below the destination.
//!
//! This is the file the promise of the crate rests on. Every call here names one component, from
//! the descriptor of the directory it lies in, and never follows a symlink.

use crate::pax::Time;
use crate::{ArchiveError, MAX_DEPTH, to_path};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Prefix of names under which files are filled before they get their own.
const TEMPORARY: &str = ".enisle-part-";
/// Attempts at a free temporary name; an archive may hold such names too.
const ATTEMPTS: u32 = 1000;

/// Bits of a directory that has no entry of its own, less the umask.
const IMPLIED: Mode = Mode::from_raw_mode(0o755);

/// What a new file, directory or symlink is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) mtime: Time,
    pub(crate) owner: Option<(u32, u32)>,
}

/// An entry's name, taken apart and judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(Vec<CString>);

impl Name {
    /// Judges a name from an archive: relative, without `..`, not too deep. Empty for `./`.
    pub(crate) fn parse(name: &[u8]) -> Result<Self, ArchiveError> {
        let escapes = || ArchiveError::Escapes { name: to_path(name) };
        if name.starts_with(b"/") {
            return Err(escapes());
        }
        let mut components = Vec::new();
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(escapes()),
                component => components.push(CString::new(component).map_err(|_| escapes())?),
            }
        }
        if components.len() > MAX_DEPTH {
            return Err(ArchiveError::TooDeep { path: to_path(name) });
        }
        Ok(Self(components))
    }

    pub(crate) fn root(&self) -> Option<&CString> {
        self.0.first()
    }

    pub(crate) fn rename_root(&mut self, name: &CString) {
        if let Some(root) = self.0.first_mut() {
            root.clone_from(name);
        }
    }

    fn display(components: &[CString]) -> std::path::PathBuf {
        to_path(&components.iter().map(|component| component.to_bytes()).collect::<Vec<_>>().join(&b'/'))
    }

    pub(crate) fn path(&self) -> std::path::PathBuf {
        Self::display(&self.0)
    }
}

struct Level {
    name: CString,
    fd: OwnedFd,
    /// What the directory gets when it is left: its time would change with each file in it, and
    /// a read-only one could not be filled.
    at_end: Option<Attributes>,
}

/// The destination and the directories that are open below it.
pub(crate) struct Place {
    base: OwnedFd,
    levels: Vec<Level>,
    temporary: u32,
}

impl Place {
    pub(crate) fn new(base: OwnedFd) -> Self {
        Self { base, levels: Vec::new(), temporary: 0 }
    }

    fn top(&self) -> BorrowedFd<'_> {
        self.levels.last().map_or(self.base.as_fd(), |level| level.fd.as_fd())
    }

    /// Makes `name` a directory, if it is not one, that gets `attributes` when all is in it.
    pub(crate) fn directory(&mut self, name: &Name, attributes: Attributes) -> Result<(), ArchiveError> {
        // Its own bits come when it is left; until then nobody else is to look into it.
        self.enter(&name.0, Mode::RWXU)?;
        if let Some(level) = self.levels.last_mut() {
            level.at_end = Some(attributes);
        }
        Ok(())
    }

    /// Makes `components` the open directories, leaving those that are not among them. A last one
    /// that is new is made with `mode`.
    fn enter(&mut self, components: &[CString], mode: Mode) -> Result<(), ArchiveError> {
        let common =
            self.levels.iter().zip(components).take_while(|(level, name)| level.name == **name).count();
        self.leave(common)?;
        for depth in common..components.len() {
            let (name, path) = (&components[depth], || Name::display(&components[..=depth]));
            let mode = if depth + 1 == components.len() { mode } else { IMPLIED };
            let fd = match open_directory(self.top(), name) {
                Err(Errno::NOENT) => {
                    let made = rustix::fs::mkdirat(self.top(), name, mode);
                    made.map_err(|e| ArchiveError::file("make directory", path(), e))?;
                    open_directory(self.top(), name)
                }
                outcome => outcome,
            };
            let fd = fd.map_err(|e| self.obstacle(name, path(), e))?;
            self.levels.push(Level { name: name.clone(), fd, at_end: None });
        }
        Ok(())
    }

    /// Why a directory could not be entered: what is there under its name?
    fn obstacle(&self, name: &CString, path: std::path::PathBuf, error: Errno) -> ArchiveError {
        if !matches!(error, Errno::LOOP | Errno::NOTDIR) {
            return ArchiveError::file("enter directory", path, error);
        }
        let is_symlink = rustix::fs::statat(self.top(), name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Symlink
        });
        if is_symlink {
            ArchiveError::Symlink { path }
        } else {
            ArchiveError::InTheWay { path, is: "no directory", wants: "a directory" }
        }
    }

    /// Leaves all directories beyond the first `keep`, giving each its attributes.
    fn leave(&mut self, keep: usize) -> Result<(), ArchiveError> {
        while self.levels.len() > keep {
            let Some(level) = self.levels.pop() else { break };
            if let Some(attributes) = level.at_end {
                apply(&level.fd, attributes).map_err(|e| {
                    ArchiveError::file("set the mode of directory", to_path(level.name.to_bytes()), e)
                })?;
            }
        }
        Ok(())
    }

    /// Gives the directories that are still open their attributes.
    pub(crate) fn finish(&mut self) -> Result<(), ArchiveError> {
        self.leave(0)
    }

    /// Begins a file that will be called `name`.
    pub(crate) fn begin_file(&mut self, name: &Name) -> Result<Part, ArchiveError> {
        let (last, above) = name.0.split_last().ok_or(ArchiveError::Malformed("a file without a name"))?;
        self.enter(above, IMPLIED)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (fd, temporary) = self
            .under_free_name(|top, name| rustix::fs::openat(top, name, flags, Mode::RUSR | Mode::WUSR))
            .map_err(|e| ArchiveError::file("make", name.path(), e))?;
        Ok(Part { fd, temporary, name: last.clone() })
    }

    /// Gives a filled file its attributes and its name.
    pub(crate) fn finish_file(&self, part: &Part, attributes: Attributes) -> Result<(), Errno> {
        let outcome = apply(&part.fd, attributes).and_then(|()| self.rename(&part.temporary, &part.name));
        if outcome.is_err() {
            self.discard(part);
        }
        outcome
    }

    /// Removes what was filled so far.
    pub(crate) fn discard(&self, part: &Part) {
        // There is nothing more to try for a name that cannot be removed.
        let _ = rustix::fs::unlinkat(self.top(), &part.temporary, AtFlags::empty());
    }

    /// Makes `name` a symlink to `target`, in place of what is there.
    pub(crate) fn symlink(
        &mut self,
        name: &Name,
        target: &[u8],
        attributes: Attributes,
    ) -> Result<(), ArchiveError> {
        let (last, above) = name.0.split_last().ok_or(ArchiveError::Malformed("a symlink without a name"))?;
        self.enter(above, IMPLIED)?;
        let failed = |e| ArchiveError::file("make symlink", name.path(), e);
        let ((), temporary) =
            self.under_free_name(|top, name| rustix::fs::symlinkat(target, top, name)).map_err(failed)?;
        let top = self.top();
        let owned = attributes.owner.map_or(Ok(()), |(uid, gid)| {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(top, &temporary, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        });
        let times = times_of(attributes.mtime);
        let outcome = owned
            .and_then(|()| rustix::fs::utimensat(top, &temporary, &times, AtFlags::SYMLINK_NOFOLLOW))
            .and_then(|()| self.rename(&temporary, last));
        outcome.map_err(|e| {
            // As in `discard`.
            let _ = rustix::fs::unlinkat(top, &temporary, AtFlags::empty());
            in_the_way(name, e)
        })
    }

    fn rename(&self, from: &CString, to: &CString) -> Result<(), Errno> {
        rustix::fs::renameat(self.top(), from, self.top(), to)
    }

    fn under_free_name<T>(
        &mut self,
        make: impl Fn(BorrowedFd<'_>, &CString) -> Result<T, Errno>,
    ) -> Result<(T, CString), Errno> {
        for _ in 0..ATTEMPTS {
            self.temporary = self.temporary.wrapping_add(1);
            let name = format!("{TEMPORARY}{:x}-{:x}", std::process::id(), self.temporary);
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            match make(self.top(), &name) {
                Err(Errno::EXIST) => {}
                outcome => return outcome.map(|made| (made, name)),
            }
        }
        Err(Errno::EXIST)
    }
}

/// What a failed rename onto a name means.
pub(crate) fn in_the_way(name: &Name, error: Errno) -> ArchiveError {
    match error {
        Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST => {
            ArchiveError::InTheWay { path: name.path(), is: "a directory", wants: "none" }
        }
        e => ArchiveError::file("put in place", name.path(), e),
    }
}

/// A file that is being filled.
pub(crate) struct Part {
    fd: OwnedFd,
    temporary: CString,
    name: CString,
}

impl AsFd for Part {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Owner first: changing it clears the set-id bits (chown(2)).
fn apply(fd: &OwnedFd, attributes: Attributes) -> Result<(), Errno> {
    if let Some((uid, gid)) = attributes.owner {
        rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode))?;
    rustix::fs::futimens(fd, &times_of(attributes.mtime))
}

fn times_of(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: i64::from(mtime.nanoseconds) },
    }
}
