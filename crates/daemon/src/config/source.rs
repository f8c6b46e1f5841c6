//! The file: read with a limit, and offsets in it as line and column.
//!
//! Owns: what kind of file is read at all. Refuses: YAML.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::report::{ConfigErrors, Problem, Span};

/// Largest configuration read, in bytes. Scripts in `userdata` have room; a disk image given by
/// mistake does not end in memory.
pub(super) const MAX_BYTES: u64 = 1024 * 1024;

/// A position in the file, counted from 1; columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

/// The text of a configuration and its name for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: String,
    /// Offset of the first byte of each line.
    lines: Vec<usize>,
}

impl Source {
    pub(super) fn new(name: &str, text: &str) -> Source {
        let after_newline = text.match_indices('\n').map(|(at, _)| at + 1);
        Source {
            name: name.to_owned(),
            text: text.to_owned(),
            lines: std::iter::once(0).chain(after_newline).collect(),
        }
    }

    /// Where the byte `offset` stands.
    pub(super) fn place(&self, offset: usize) -> Place {
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines[line - 1];
        let before = self.text.get(start..offset).unwrap_or_default();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Place { line: number(line), column: number(before.chars().count() + 1) }
    }

    /// The text of a line, without its end. Lines count from 1.
    pub(super) fn line(&self, line: u32) -> &str {
        let index = line as usize;
        let start = self.lines.get(index - 1).copied().unwrap_or(self.text.len());
        let end = self.lines.get(index).copied().unwrap_or(self.text.len());
        self.text[start..end].trim_end_matches(['\n', '\r'])
    }
}

/// Reads the file. Blocks as long as the file system does.
///
/// # Errors
/// Why there is no text; with a snippet where only a part of it is none.
pub(super) fn read(path: &Path) -> Result<Source, ConfigErrors> {
    let name = path.display().to_string();
    let bytes = match read_bytes(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            return Err(ConfigErrors::one(Source::new(&name, ""), unreadable(&error, path)));
        }
    };
    if bytes.len() as u64 > MAX_BYTES {
        let problem = Problem::of_file(format!("the file is larger than {} KiB", MAX_BYTES / 1024))
            .help("is it a configuration at all? Put large scripts into the image");
        return Err(ConfigErrors::one(Source::new(&name, ""), problem));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source::new(&name, &text)),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let byte = error.as_bytes().get(at).copied().unwrap_or_default();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let problem = Problem::at(Span::new(at..at + 1, &text), "the file is not UTF-8 text")
                .label(format!("the byte 0x{byte:02x}"))
                .help("save it as UTF-8; `iconv -f latin1 -t utf-8` converts an old file");
            Err(ConfigErrors::one(Source::new(&name, &text), problem))
        }
    }
}

/// At most one byte more than is allowed, whatever the file says of its size.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(error: &io::Error, path: &Path) -> Problem {
    match error.kind() {
        io::ErrorKind::NotFound => Problem::of_file("there is no such file").help(format!(
            "write {} like this:\n\n{}",
            path.display(),
            super::MINIMAL
        )),
        io::ErrorKind::IsADirectory => Problem::of_file("this is a directory, not a file")
            .help(format!("name the file in it: {}", path.join("enisle.yaml").display())),
        io::ErrorKind::PermissionDenied => {
            Problem::of_file("no permission to read the file").help("run as root, or change its mode")
        }
        _ => Problem::of_file(format!("the file cannot be read: {error}")),
    }
}
