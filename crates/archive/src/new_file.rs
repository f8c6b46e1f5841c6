//! One regular file that gets its name only once all of it is there.
//!
//! Owns: where it lies until then, and taking it away again. Refuses: archives, and anything but a regular file in
//! its place.

use crate::pax::Time;
use crate::place::{Attributes, Name, Part, Place, in_the_way};
use crate::unpack::{file_name, open_base, owner_below};
use crate::{ArchiveError, Owner};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file that is being filled, by writing to its descriptor. Dropping it removes it, and what was there stays.
pub struct NewFile {
    path: PathBuf,
    name: Name,
    place: Place,
    owner: Option<(u32, u32)>,
    part: Part,
    /// Nothing is left to be removed: it has its name, or went because it could not get it.
    settled: bool,
}

impl NewFile {
    /// Begins the regular file `path`, which may be there.
    ///
    /// # Errors
    /// The directory does not exist, something else than a file is at `path`.
    pub fn begin(path: &Path, owner: Owner) -> Result<Self, ArchiveError> {
        // A link the caller names is followed, as by a shell's `>`.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        match path.symlink_metadata() {
            Ok(found) if found.is_file() => {}
            Ok(found) => {
                let is = if found.is_dir() { "a directory" } else { "no regular file" };
                return Err(ArchiveError::InTheWay { path, is, wants: "a file" });
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            // What cannot be looked at is not replaced either.
            Err(e) => return Err(ArchiveError::file("look at", path, e)),
        }
        let name = file_name(&path)?;
        let above = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let base = open_base(above.unwrap_or(Path::new(".")))?;
        let owner = owner_below(&base, owner, &path)?;
        let mut place = Place::new(base);
        let name = Name::parse(name.to_bytes())?;
        let part = place.begin_file(&name)?;
        Ok(Self { path, name, place, owner, part, settled: false })
    }

    /// What a failure to write to it means.
    #[must_use]
    pub fn failed(&self, error: std::io::Error) -> ArchiveError {
        ArchiveError::file("write", &self.path, error)
    }

    /// Gives it its name, mode 0644 and its owner, in place of what was there.
    ///
    /// # Errors
    /// Something else than a file is there by now, or the file system refuses.
    pub fn finish(mut self) -> Result<(), ArchiveError> {
        self.settled = true;
        let attributes = Attributes { mode: 0o644, mtime: now(), owner: self.owner };
        self.place.finish_file(&self.part, attributes).map_err(|e| in_the_way(&self.name, e))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.settled {
            self.place.discard(&self.part);
        }
    }
}

impl AsFd for NewFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.part.as_fd()
    }
}

fn now() -> Time {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    Time { seconds: now.as_secs().cast_signed(), nanoseconds: now.subsec_nanos() }
}
