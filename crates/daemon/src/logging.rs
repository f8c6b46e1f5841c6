//! Log lines: `tracing` to standard error. Owns the subscriber, which is the process's; refuses
//! files, which are the supervisor's business.

use crate::options::LogFormat;
use std::io::{self, IsTerminal, Write};
use std::os::linux::fs::MetadataExt;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

/// The logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggingError {
    /// The level is none.
    #[error(
        "cannot read the log level {level:?}; use error, warn, info, debug, trace or MODULE=LEVEL, with commas between"
    )]
    Level {
        /// As given.
        level: String,
        /// What the parser says.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something else of this process has a subscriber already.
    #[error("cannot set up logging")]
    Taken(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts logging for the whole process. `RUST_LOG` adds directives to `level`.
///
/// # Errors
/// A level that is none, or a second call.
pub(crate) fn init(format: LogFormat, level: &str) -> Result<(), LoggingError> {
    let directives = match std::env::var("RUST_LOG") {
        Ok(more) if !more.is_empty() => format!("{level},{more}"),
        _ => level.to_owned(),
    };
    let filter = EnvFilter::builder()
        .parse(&directives)
        .map_err(|source| LoggingError::Level { level: directives.clone(), source })?;
    if to_journal() {
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Journal);
        // It has the time already.
        match format {
            LogFormat::Human => {
                builder.with_ansi(false).with_target(false).without_time().finish().try_init()?;
            }
            LogFormat::Json => builder.json().flatten_event(true).finish().try_init()?,
        }
        return Ok(());
    }
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Human => {
            builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).finish().try_init()?;
        }
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}

/// Whether standard error is the journal: systemd says so by device and inode (systemd.exec(5),
/// `$JOURNAL_STREAM`).
fn to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/dev/stderr")
        .is_ok_and(|found| stream == format!("{}:{}", found.st_dev(), found.st_ino()))
}

/// Standard error with each line's priority before it, which the journal takes off (sd-daemon(3)).
struct Journal;

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Prefixed<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Prefixed { priority: priority(Level::INFO), to: io::stderr() }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        Prefixed { priority: priority(*meta.level()), to: io::stderr() }
    }
}

fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Writes one event, of one or more lines, at once.
struct Prefixed<W> {
    priority: u8,
    to: W,
}

impl<W: Write> Write for Prefixed<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut all = Vec::with_capacity(event.len() + 16);
        for line in event.split_inclusive(|byte| *byte == b'\n') {
            all.extend_from_slice(format!("<{}>", self.priority).as_bytes());
            all.extend_from_slice(line);
        }
        self.to.write_all(&all)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_an_event_has_its_priority_for_the_journal() {
        let mut written = Vec::new();
        for (level, text) in [(Level::ERROR, "the file is wrong:\n  line 3\n"), (Level::INFO, "up\n")] {
            Prefixed { priority: priority(level), to: &mut written }.write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(String::from_utf8(written).unwrap(), "<3>the file is wrong:\n<3>  line 3\n<6>up\n");
    }
}
