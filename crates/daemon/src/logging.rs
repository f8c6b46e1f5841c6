//! Log lines: `tracing` to standard error. Owns the subscriber, which is the process's; refuses
//! files, which are the supervisor's business.

use crate::options::LogFormat;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
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
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Human => {
            builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).finish().try_init()?;
        }
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}
