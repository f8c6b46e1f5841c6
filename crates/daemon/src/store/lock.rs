//! One daemon at a time on a state directory.
//!
//! Owns: the lock file, and the state directory's existence. The kernel drops the lock when its
//! holder dies, however it dies. Refuses: breaking anybody's lock.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::StoreError;

const LOCK_FILE: &str = "lock";

/// Held as long as it lives.
#[derive(Debug)]
pub(super) struct StateLock {
    _file: File,
}

impl StateLock {
    /// Makes the directory where it is missing and takes its lock.
    pub(super) fn take(state_dir: &Path) -> Result<StateLock, StoreError> {
        // Unprivileged VMMs walk through it to their own files, but cannot list it.
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(state_dir)
            .map_err(|error| StoreError::io("make the directory", state_dir, error))?;
        let path = state_dir.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| StoreError::io("open", &path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(StoreError::Locked { state_dir: state_dir.to_owned(), owner: owner(&mut file) });
            }
            Err(error) => return Err(StoreError::io("lock", &path, error.into())),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(|error| StoreError::io("write", &path, error))?;
        Ok(StateLock { _file: file })
    }
}

/// The process that holds the lock of a state directory, or held it last; `None` when nobody ever did.
///
/// # Errors
/// When that may not be known.
pub(crate) fn lock_holder(state_dir: &Path) -> std::io::Result<Option<u32>> {
    match File::open(state_dir.join(LOCK_FILE)) {
        Ok(mut file) => Ok(owner(&mut file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who holds the lock. Only for messages: the number may be about to be written.
fn owner(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
