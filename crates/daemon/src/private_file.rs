//! Files that are whole or not there.
//!
//! Owns: writing one under another name first, with its mode from the beginning, and on the disk before anybody is told of
//! it. Refuses: choosing names and modes.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes the file, in place of one that is there, and never more open than `mode`. Blocks for the disk.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let hidden = path.with_extension("new");
    match fs::remove_file(&hidden) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&hidden)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&hidden, path)?;
    // The name, too: a key that users have seen must not be another after a power cut.
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
