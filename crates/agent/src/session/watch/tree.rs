//! The watched directories: which inotify descriptor stands for which path.
//!
//! Owns: adding directories without following a symbolic link, their number, and their names when they move.
//! Refuses: what the events mean.

use enisle_guest_proto::Failure;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Bytes of events read at once; the kernel keeps the others, up to its own bound.
const BUFFER: usize = 16 << 10;

/// One event of the kernel's.
pub(super) struct Seen {
    pub(super) wd: i32,
    pub(super) what: ReadFlags,
    pub(super) cookie: u32,
    pub(super) name: Option<OsString>,
}

/// What was found while directories were added.
pub(super) enum Found<'a> {
    /// Something is there.
    Entry { path: &'a Path, directory: bool },
    /// A directory that is not watched, or not wholly.
    Unwatched { path: &'a Path, reason: &'a dyn Display },
}

/// What adding a directory came to.
enum Added {
    /// It is watched from now on.
    New(OwnedFd),
    /// It was already, under this path.
    Known(OwnedFd),
    /// There is nothing to be looked for in it: no directory, on another file system, or known by another path.
    Nothing,
}

/// Too many directories, or a limit of the kernel's that has another name than its error.
struct Reason(String);

impl Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) struct Tree {
    inotify: OwnedFd,
    /// Absolute, without a symbolic link.
    root: PathBuf,
    /// Device and inode of the root.
    identity: (u64, u64),
    root_wd: Option<i32>,
    directory: bool,
    recursive: bool,
    most: usize,
    /// Paths relative to the root by descriptor.
    watched: HashMap<i32, PathBuf>,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Tree {
    /// A tree of which nothing is watched yet. `root` has no symbolic link in it.
    pub(super) fn new(root: PathBuf, recursive: bool, most: usize) -> Result<Self, Errno> {
        let stat = look(&root)?;
        Ok(Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            identity: identity(&stat),
            root,
            root_wd: None,
            directory: is_directory(&stat),
            recursive,
            most,
            watched: HashMap::new(),
            buffer: vec![MaybeUninit::uninit(); BUFFER],
        })
    }

    pub(super) const fn recursive(&self) -> bool {
        self.recursive
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn path(&self, wd: i32) -> Option<&Path> {
        self.watched.get(&wd).map(PathBuf::as_path)
    }

    pub(super) fn is_root(&self, wd: i32) -> bool {
        self.root_wd == Some(wd)
    }

    /// Whether the root is still where it was.
    pub(super) fn root_is_there(&self) -> bool {
        look(&self.root).is_ok_and(|stat| identity(&stat) == self.identity)
    }

    /// Forgets every descriptor and event, for a tree of which events were lost.
    pub(super) fn reset(&mut self) -> Result<(), Errno> {
        self.watched.clear();
        self.root_wd = None;
        self.inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(())
    }

    /// Watches the root, and what is below it where that is wanted. False when it is gone.
    pub(super) fn grow_root(
        &mut self,
        say: &mut impl FnMut(Found<'_>) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        self.grow(PathBuf::new(), say)?;
        Ok(self.root_wd.is_some() && self.root_is_there())
    }

    /// Watches the directory `from` and, of a recursive watch, those below it, and tells what is in those that are new.
    /// Those that are known are looked through as well: one that was made in them just before they moved had another
    /// path when its turn came.
    pub(super) fn grow(
        &mut self,
        from: PathBuf,
        say: &mut impl FnMut(Found<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut waiting = vec![from];
        while let Some(path) = waiting.pop() {
            if self.watched.len() >= self.most && !self.watched.values().any(|known| *known == path) {
                say(Found::Unwatched { path: &path, reason: &self.full() })?;
                continue;
            }
            match self.add(&path) {
                Ok(Added::New(directory)) if self.recursive => {
                    self.list(&path, &directory, &mut waiting, say)?;
                }
                Ok(Added::Known(directory)) if self.recursive => {
                    let told = &mut |found: Found<'_>| match found {
                        Found::Entry { .. } => Ok(()),
                        unwatched @ Found::Unwatched { .. } => say(unwatched),
                    };
                    self.list(&path, &directory, &mut waiting, told)?;
                }
                Ok(_) => {}
                // It went, or is something else by now: an event says so.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => say(Found::Unwatched { path: &path, reason: &limit(error) })?,
            }
        }
        Ok(())
    }

    fn list(
        &self,
        path: &Path,
        directory: &OwnedFd,
        waiting: &mut Vec<PathBuf>,
        say: &mut impl FnMut(Found<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let entries = match Dir::read_from(directory) {
            Ok(entries) => entries,
            Err(error) => return say(Found::Unwatched { path, reason: &limit(error) }),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return say(Found::Unwatched { path, reason: &limit(error) }),
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let name = OsStr::from_bytes(name);
            let below = path.join(name);
            let is_directory = match entry.file_type() {
                FileType::Unknown => rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| is_directory(&stat)),
                kind => kind == FileType::Directory,
            };
            say(Found::Entry { path: &below, directory: is_directory })?;
            if is_directory && self.watched.len() + waiting.len() < self.most {
                waiting.push(below);
            } else if is_directory {
                say(Found::Unwatched { path: &below, reason: &self.full() })?;
            }
        }
        Ok(())
    }

    fn full(&self) -> Reason {
        Reason(format!("a watch has at most {} directories", self.most))
    }

    /// Watches one directory, or the root whatever it is.
    fn add(&mut self, path: &Path) -> Result<Added, Errno> {
        let is_root = path.as_os_str().is_empty();
        let flags = if is_root && !self.directory {
            OFlags::PATH
        } else {
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK
        };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat2(CWD, self.full_path(path), flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        let stat = rustix::fs::fstat(&fd)?;
        if identity(&stat).0 != self.identity.0 {
            return Ok(Added::Nothing);
        }
        // Through the descriptor: what the path means may have changed by now.
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let wd = inotify::add_watch(&self.inotify, name, self.mask(is_root))?;
        if is_root {
            self.root_wd = Some(wd);
        }
        match self.watched.get(&wd) {
            Some(known) if known == path => return Ok(Added::Known(fd)),
            Some(known)
                if look(&self.full_path(known)).is_ok_and(|other| identity(&other) == identity(&stat)) =>
            {
                return Ok(Added::Nothing);
            }
            _ => {}
        }
        self.watched.insert(wd, path.to_owned());
        Ok(if is_directory(&stat) { Added::New(fd) } else { Added::Nothing })
    }

    const fn mask(&self, is_root: bool) -> WatchFlags {
        let own = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);
        let below = WatchFlags::CREATE
            .union(WatchFlags::CLOSE_WRITE)
            .union(WatchFlags::DELETE)
            .union(WatchFlags::MOVE)
            .union(WatchFlags::EXCL_UNLINK);
        match (is_root, self.directory) {
            (true, true) => own.union(below),
            // A file's last name may go while somebody has it open.
            (true, false) => own.union(WatchFlags::CLOSE_WRITE).union(WatchFlags::ATTRIB),
            (false, _) => below,
        }
    }

    fn full_path(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    /// The kernel has ended a descriptor.
    pub(super) fn ended(&mut self, wd: i32) {
        self.watched.remove(&wd);
    }

    /// Ends watching what was at `path` and below it.
    pub(super) fn forget(&mut self, path: &Path) {
        let inotify = &self.inotify;
        self.watched.retain(|wd, known| {
            let goes = known.starts_with(path);
            if goes {
                // The kernel has ended that of a directory that is gone.
                let _ = inotify::remove_watch(inotify, *wd);
            }
            !goes
        });
    }

    /// What was at `from` is at `to`.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) {
        for known in self.watched.values_mut() {
            if let Ok(rest) = known.strip_prefix(from) {
                *known = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            }
        }
    }

    /// Takes what the kernel has at hand, at most a buffer; without waiting.
    pub(super) fn read(&mut self, into: &mut VecDeque<Seen>) -> Result<(), Errno> {
        let mut reader = inotify::Reader::new(&self.inotify, &mut self.buffer);
        loop {
            match reader.next() {
                Ok(event) => into.push_back(Seen {
                    wd: event.wd(),
                    what: event.events(),
                    cookie: event.cookie(),
                    name: event.file_name().map(|name| OsString::from_vec(name.to_bytes().to_vec())),
                }),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            }
            if reader.is_buffer_empty() {
                return Ok(());
            }
        }
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn look(path: &Path) -> Result<Stat, Errno> {
    rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
}

const fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

const fn is_directory(stat: &Stat) -> bool {
    matches!(FileType::from_raw_mode(stat.st_mode), FileType::Directory)
}

/// The kernel's answer, with the name of the limit where it is one.
pub(super) fn limit(error: Errno) -> impl Display {
    Reason(match error {
        Errno::NOSPC => "the guest's fs.inotify.max_user_watches is used up".to_owned(),
        Errno::MFILE => {
            "the guest's fs.inotify.max_user_instances is used up, or the agent has no descriptor left"
                .to_owned()
        }
        error => std::io::Error::from(error).to_string(),
    })
}
