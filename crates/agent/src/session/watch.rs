//! Files of the guest watched: what changes in a directory is told as lines, by a worker as for archives.
//!
//! Owns: what the kernel's events mean, pairs of moves, and starting over when the kernel has lost some. The worker
//! writes to a pipe and waits while nobody reads it; meanwhile the kernel keeps events up to its own bound, says that
//! it lost the others, and that is told. Refuses: more than [`MAX_WATCHED`] directories, and any link below the root.

mod tree;

use super::Running;
use super::archive::absolute;
use super::failure::{class, failure, from_io};
use super::files::{about, with_output};
use enisle_guest_proto::{Failure, FailureCode, MAX_WATCHED, WatchLine};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::ReadFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::{BufWriter, PipeWriter, Write};
use std::path::Path;
use tree::{Found, Seen, Tree, limit};

/// The second half of a move follows the first at once, if at all (inotify(7)); it is waited for this long.
const PAIR_PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Begins to watch.
pub(super) fn begin(path: &str, recursive: bool) -> Result<Running, Failure> {
    begin_bounded(path, recursive, MAX_WATCHED)
}

fn begin_bounded(path: &str, recursive: bool, most: usize) -> Result<Running, Failure> {
    let path = absolute(path)?;
    let root = path.canonicalize().map_err(|e| about(&path, &e))?;
    let tree = Tree::new(root, recursive, most).map_err(|e| refused(&path, e))?;
    with_output(move |out| Watch { tree, out, queue: VecDeque::new() }.run())
}

fn refused(path: &Path, error: Errno) -> Failure {
    let why = format!("cannot watch {}: {}", path.display(), limit(error));
    failure(class(&error.into()), why)
}

struct Watch<'a> {
    tree: Tree,
    out: &'a mut BufWriter<PipeWriter>,
    /// Events that were read and not told yet, at most two buffers of them.
    queue: VecDeque<Seen>,
}

impl Watch<'_> {
    /// Tells what happens until it is gone or nobody listens.
    fn run(mut self) -> Result<(), Failure> {
        let root = self.tree.root().to_owned();
        let there = self.tree.grow_root(&mut |found| match found {
            Found::Entry { .. } => Ok(()),
            Found::Unwatched { path, reason } => {
                let what = root.join(path);
                Err(failure(FailureCode::Invalid, format!("cannot watch {}: {reason}", what.display())))
            }
        })?;
        if !there {
            return Err(about(&root, &Errno::NOENT.into()));
        }
        self.say(&WatchLine::Watching {})?;
        loop {
            self.out.flush().map_err(|e| from_io("answer", &e))?;
            if !self.wait()? {
                return Ok(());
            }
            self.read()?;
            while let Some(seen) = self.queue.pop_front() {
                if !self.tell(&seen)? {
                    return Ok(());
                }
            }
        }
    }

    /// Waits for events. False when nobody listens any more.
    fn wait(&self) -> Result<bool, Failure> {
        let mut polled = [
            PollFd::new(&self.tree, PollFlags::IN),
            // A pipe without a reader says so unasked.
            PollFd::new(self.out.get_ref(), PollFlags::empty()),
        ];
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => Ok(polled[1].revents().is_empty()),
            Err(error) => Err(from_io("wait for changes", &error.into())),
        }
    }

    fn read(&mut self) -> Result<(), Failure> {
        self.tree.read(&mut self.queue).map_err(|e| from_io("read changes", &e.into()))
    }

    /// Tells of one event. False when what is watched is gone.
    fn tell(&mut self, seen: &Seen) -> Result<bool, Failure> {
        if seen.what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.start_over();
        }
        let Some(above) = self.tree.path(seen.wd) else { return Ok(true) };
        let root = self.tree.is_root(seen.wd);
        if seen.what.contains(ReadFlags::IGNORED) {
            self.tree.ended(seen.wd);
            return Ok(!root);
        }
        let Some(name) = &seen.name else {
            if root && seen.what.contains(ReadFlags::CLOSE_WRITE) {
                let (path, lossy) = shown(above);
                self.say(&WatchLine::Modified { path, lossy, directory: false })?;
            }
            let gone = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT;
            let moved = seen.what.contains(ReadFlags::ATTRIB) && !self.tree.root_is_there();
            return Ok(!(root && (moved || seen.what.intersects(gone))));
        };
        let path = above.join(name);
        let directory = seen.what.contains(ReadFlags::ISDIR);
        if seen.what.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            return self.created(&path, directory);
        } else if seen.what.contains(ReadFlags::CLOSE_WRITE) {
            let (path, lossy) = shown(&path);
            self.say(&WatchLine::Modified { path, lossy, directory })?;
        } else if seen.what.contains(ReadFlags::DELETE) {
            self.removed(&path, directory)?;
        } else if seen.what.contains(ReadFlags::MOVED_FROM) {
            return self.moved(&path, directory, seen.cookie);
        }
        Ok(true)
    }

    /// False when what is watched is gone, as for the next one.
    fn created(&mut self, at: &Path, directory: bool) -> Result<bool, Failure> {
        let (path, lossy) = shown(at);
        self.say(&WatchLine::Created { path, lossy, directory })?;
        if directory { self.grow(at) } else { Ok(true) }
    }

    fn removed(&mut self, at: &Path, directory: bool) -> Result<(), Failure> {
        if directory {
            self.tree.forget(at);
        }
        let (path, lossy) = shown(at);
        self.say(&WatchLine::Removed { path, lossy, directory })
    }

    fn moved(&mut self, from: &Path, directory: bool, cookie: u32) -> Result<bool, Failure> {
        let other = self.other_half(cookie)?;
        let to = other.and_then(|to| Some(self.tree.path(to.wd)?.join(to.name?)));
        let Some(to) = to else {
            self.removed(from, directory)?;
            return Ok(true);
        };
        let ((shown_from, lossy_from), (shown_to, lossy_to)) = (shown(from), shown(&to));
        let lossy = lossy_from || lossy_to;
        self.say(&WatchLine::Moved { from: shown_from, to: shown_to, lossy, directory })?;
        if directory {
            self.tree.rename(from, &to);
            // It may have been moved before its own watch stood.
            return self.grow(&to);
        }
        Ok(true)
    }

    /// Where something was moved to, when that is watched.
    fn other_half(&mut self, cookie: u32) -> Result<Option<Seen>, Failure> {
        if self.queue.is_empty() {
            // Failing to wait is no loss: it is told as removed and created then.
            let _ = poll(&mut [PollFd::new(&self.tree, PollFlags::IN)], Some(&PAIR_PATIENCE));
            self.read()?;
        }
        let other = |seen: &Seen| seen.cookie == cookie && seen.what.contains(ReadFlags::MOVED_TO);
        let at = self.queue.iter().position(other);
        Ok(at.and_then(|at| self.queue.remove(at)))
    }

    /// Watches a new directory, and tells what is in it already. False when what is watched is not where it was, a
    /// directory above it being moved: nothing new would be found.
    fn grow(&mut self, at: &Path) -> Result<bool, Failure> {
        if !self.tree.recursive() {
            return Ok(true);
        }
        let Self { tree, out, .. } = self;
        tree.grow(at.to_owned(), &mut |found| match found {
            Found::Entry { path, directory } => {
                let (path, lossy) = shown(path);
                write_line(out, &WatchLine::Created { path, lossy, directory })
            }
            Found::Unwatched { path, reason } => write_line(out, &unwatched(path, reason.to_string())),
        })?;
        Ok(self.tree.root_is_there())
    }

    /// Events were lost, of new directories too: all are watched anew, and then the loss is told.
    fn start_over(&mut self) -> Result<bool, Failure> {
        self.queue.clear();
        self.tree.reset().map_err(|e| refused(self.tree.root(), e))?;
        let Self { tree, out, .. } = self;
        let there = tree.grow_root(&mut |found| match found {
            Found::Entry { .. } => Ok(()),
            Found::Unwatched { path, reason } => write_line(out, &unwatched(path, reason.to_string())),
        })?;
        self.say(&WatchLine::Dropped {})?;
        Ok(there)
    }

    fn say(&mut self, line: &WatchLine) -> Result<(), Failure> {
        write_line(self.out, line)
    }
}

fn unwatched(path: &Path, reason: String) -> WatchLine {
    let (path, lossy) = shown(path);
    WatchLine::Unwatched { path, lossy, reason }
}

fn write_line(out: &mut impl Write, line: &WatchLine) -> Result<(), Failure> {
    let written =
        serde_json::to_writer(&mut *out, line).map_err(Into::into).and_then(|()| out.write_all(b"\n"));
    written.map_err(|e| from_io("answer", &e))
}

/// A path as text, and whether that is not all of it.
fn shown(path: &Path) -> (String, bool) {
    (path.to_string_lossy().into_owned(), path.to_str().is_none())
}

#[cfg(test)]
mod tests;
