//! How a command fails: what is printed and which exit code it has. Owns `error:` and `hint:`
//! and their JSON form; refuses to decide exit codes, which `exit` does.

use crate::exit::{self, ExitCode};
use crate::table::visible;
use enisle_api::Problem;
use enisle_client::Error;
use serde::Serialize;
use std::io::{self, Write};

/// A failed command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Stable code: the API's, or `daemon_unreachable`, `usage`, `io`, `interrupted`.
    code: String,
    /// Exit code of the program.
    exit_code: u8,
    /// What failed, on which object, why.
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// JSON pointer to the bad field of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<String>,
    /// Ends without a word: the reader of our output is gone, or it was all said.
    #[serde(skip)]
    quiet: bool,
}

impl Failure {
    /// A failure with a stable code.
    #[must_use]
    pub fn new(code: &str, exit: ExitCode, detail: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            exit_code: exit as u8,
            detail: detail.into(),
            hint: None,
            pointer: None,
            quiet: false,
        }
    }

    /// A wrong value on the command line.
    #[must_use]
    pub fn usage(detail: impl Into<String>) -> Self {
        Self::new("usage", ExitCode::Usage, detail)
    }

    /// A local failure. A broken pipe on output is not reported, only returned as exit code 141.
    #[must_use]
    pub fn io(what: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::quiet(ExitCode::BrokenPipe as u8);
        }
        let exit = match error.kind() {
            io::ErrorKind::NotFound => ExitCode::NotFound,
            _ => ExitCode::Failed,
        };
        Self::new("io", exit, format!("{what}: {error}"))
    }

    /// Only an exit code.
    #[must_use]
    pub fn quiet(exit_code: u8) -> Self {
        Self { exit_code, quiet: true, ..Self::new("reported", ExitCode::Failed, "") }
    }

    /// Ended by a signal to this program.
    #[must_use]
    pub fn interrupted(signal: u8) -> Self {
        let detail = format!("interrupted by signal {signal}");
        Self { exit_code: exit::of_signal(signal), ..Self::new("interrupted", ExitCode::Failed, detail) }
    }

    /// An error of a command that runs a process in the guest.
    #[must_use]
    pub fn of_exec(error: &Error) -> Self {
        Self { exit_code: exit::of_exec_error(error) as u8, ..Self::from(error) }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with another exit code.
    #[must_use]
    pub fn exit(mut self, exit: ExitCode) -> Self {
        if !self.quiet {
            self.exit_code = exit as u8;
        }
        self
    }

    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// Prints it to stderr, as text or as one JSON object on one line, and returns the exit code.
    pub fn report(&self, json: bool) -> u8 {
        if !self.quiet {
            // Nothing is left to be done when stderr is gone; the exit code still says it.
            let _ = io::stderr().write_all(self.render(json).as_bytes());
        }
        self.exit_code
    }

    fn render(&self, json: bool) -> String {
        if json && let Ok(line) = serde_json::to_string(self) {
            return format!("{line}\n");
        }
        let mut text = String::new();
        for (label, value) in [("error", Some(&self.detail)), ("hint", self.hint.as_ref())] {
            let Some(value) = value else { continue };
            let lines: Vec<String> = value.lines().map(visible).collect();
            text.push_str(&format!("{label}: {}\n", lines.join("\n  ")));
        }
        text
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let mut detail = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            detail.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        let code = match error {
            Error::Problem(problem) | Error::Guest { problem, .. } => problem.code.name().to_owned(),
            Error::Timeout { .. } => "timeout".to_owned(),
            _ => "daemon_unreachable".to_owned(),
        };
        let pointer = match error {
            Error::Problem(problem) => problem.pointer.clone(),
            _ => None,
        };
        Self { hint: error.hint(), pointer, ..Self::new(&code, exit::of_error(error), detail) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::from(Error::from(problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_api::Code;

    #[test]
    fn a_problem_keeps_its_code_hint_and_place() {
        let problem = Problem::new(Code::Exhausted, "the range of `agents` is full")
            .hint("delete one")
            .pointer("/group");
        let failure = Failure::from(problem);
        assert_eq!(failure.render(false), "error: the range of `agents` is full\nhint: delete one\n");
        let json: serde_json::Value = serde_json::from_str(&failure.render(true)).unwrap();
        assert_eq!(json["code"], "exhausted");
        assert_eq!(json["exit_code"], 5);
        assert_eq!(json["pointer"], "/group");
        assert_eq!(json["hint"], "delete one");
    }

    #[test]
    fn a_guest_cannot_write_escape_sequences_to_the_terminal() {
        let text = Failure::from(Problem::new(Code::GuestFailed, "bad\x1b]0;owned\x07 file")).render(false);
        assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text:?}");
    }

    #[test]
    fn a_reader_that_went_away_is_not_reported() {
        let failure = Failure::io("cannot write", &io::ErrorKind::BrokenPipe.into());
        assert!(failure.quiet);
        assert_eq!(failure.exit_code(), 141);
        assert_eq!(failure.exit(ExitCode::ExecFailed).exit_code(), 141);
    }
}
