//! Programs that a build or an overlay needs, run to their end.

use crate::ImageError;
use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};

/// Characters of a program's complaint that are kept.
const TAIL: usize = 800;

/// Runs a program; its standard output. `package` has it on Debian and Ubuntu.
///
/// # Errors
/// When it is not installed or fails; with the end of what it said on standard error.
pub(crate) fn run<S: AsRef<OsStr>>(
    program: &str,
    package: &'static str,
    args: &[S],
) -> Result<Vec<u8>, ImageError> {
    let mut command = Command::new(program);
    // One language for what is parsed, and no question that nobody will answer.
    command.args(args).env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    let output = command.output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ImageError::NoProgram { program: program.to_owned(), package },
        _ => ImageError::Io { what: "run", path: program.into(), source },
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim_end();
    let from = text.char_indices().rev().nth(TAIL).map_or(0, |(at, _)| at);
    Err(ImageError::Program {
        program: program.to_owned(),
        status: output.status,
        stderr: text[from..].to_owned(),
    })
}

/// The same as text.
pub(crate) fn text<S: AsRef<OsStr>>(
    program: &str,
    package: &'static str,
    args: &[S],
) -> Result<String, ImageError> {
    run(program, package, args).map(|out| String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package_and_a_failing_one_its_words() {
        let missing = run("no-such-program-here", "some-package", &[""; 0]).unwrap_err().to_string();
        assert!(missing.contains("no-such-program-here") && missing.contains("some-package"), "{missing}");
        let failed = run("sh", "dash", &["-c", "echo too bad >&2; exit 3"]).unwrap_err().to_string();
        assert!(failed.contains("too bad") && failed.contains('3'), "{failed}");
    }
}
