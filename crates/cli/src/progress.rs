//! Progress of a copy. Owns counting bytes and the bar on standard error, which is there only
//! where a person looks at it.

use crate::terminal;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, Read, Write};
use std::path::Path;

/// Counts bytes and shows them. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar on a terminal, for `total` bytes where that is known.
    pub(crate) fn new(label: &str, total: Option<u64>, quiet: bool) -> Self {
        let target = if quiet || !terminal::stderr_is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let template = match total {
            Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{msg} {spinner} {bytes} {bytes_per_sec}",
        };
        // A template that does not parse would only cost its looks.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(total, target).with_style(style.progress_chars("=> "));
        bar.set_message(crate::table::visible(label));
        Self(bar)
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.0.inc(bytes as u64);
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.position()
    }

    /// Takes the bar off the screen.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

/// Counts what goes through, and remembers that the stream itself failed, as against what is done
/// with its bytes.
pub(crate) struct Counted<S> {
    inner: S,
    progress: Progress,
    pub(crate) failed: bool,
}

impl<S> Counted<S> {
    pub(crate) fn new(inner: S, progress: &Progress) -> Self {
        Self { inner, progress: progress.clone(), failed: false }
    }

    pub(crate) fn into_inner(self) -> S {
        self.inner
    }

    fn note(&mut self, result: io::Result<usize>) -> io::Result<usize> {
        match &result {
            Ok(bytes) => self.progress.add(*bytes),
            Err(error) => self.failed |= error.kind() != io::ErrorKind::Interrupted,
        }
        result
    }
}

impl<S: Read> Read for Counted<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buffer);
        self.note(result)
    }
}

impl<S: Write> Write for Counted<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.inner.write(bytes);
        self.note(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Bytes of a file or tree as an archive: contents and headers in blocks of 512, near enough for
/// a bar. What cannot be read counts nothing; the copy itself will say so.
pub(crate) fn archive_size(path: &Path) -> u64 {
    const BLOCK: u64 = 512;
    let mut total = 0;
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        total += BLOCK;
        if found.is_file() {
            total += found.len().next_multiple_of(BLOCK);
        } else if found.is_dir() {
            left.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    total
}
