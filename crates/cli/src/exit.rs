//! Exit codes: the one place where they are decided. `docs/cli.md` repeats them for people.

use enisle_api::Code;
use enisle_api::stream::GuestFailure;
use enisle_client::{Error, ExitStatus};

/// Exit codes of every command but `vm exec` and `vm shell`, which pass on the process's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Success = 0,
    /// It failed; the message says why.
    Failed = 1,
    /// The command line, or a value in it, is wrong.
    Usage = 2,
    /// The daemon cannot be reached or does not answer.
    NoDaemon = 3,
    /// No such VM, group or file.
    NotFound = 4,
    /// The state does not allow it: name taken, VM not running, range exhausted.
    Conflict = 5,
    /// `vm exec`, `vm shell`, `--timeout`: it took too long.
    TimedOut = 124,
    /// `vm exec`, `vm shell`: Enisle itself failed; the process may not have run.
    ExecFailed = 125,
    /// `vm exec`: the program cannot be executed.
    NotExecutable = 126,
    /// `vm exec`: no such program, user or directory in the guest.
    NoProgram = 127,
    /// The reader of our output went away (128 + SIGPIPE).
    BrokenPipe = 141,
}

/// The text of `--help` about exit codes.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done
  1    failed; the message says why
  2    wrong usage
  3    the daemon cannot be reached, or does not take the token
  4    no such VM, group, file or background process
  5    the state does not allow it (name taken, VM not running, range full)
  124  timed out
  vm exec, shell, attach and wait pass on the exit code of the process (128+N after
  signal N), and 124 after --timeout, 125 when Enisle itself failed; vm exec and shell
  126 when the program cannot be executed, 127 when it was not found";

/// The exit code for an error of a command that runs no process.
pub(crate) fn of_error(error: &Error) -> ExitCode {
    match error {
        Error::NotRunning { .. }
        | Error::Denied { .. }
        | Error::Connect { .. }
        | Error::Unreachable { .. }
        | Error::Tls { .. }
        | Error::Http { .. }
        | Error::Protocol { .. }
        | Error::Broken { .. } => ExitCode::NoDaemon,
        Error::Guest { failure: GuestFailure::NotFound, .. } => ExitCode::NotFound,
        Error::Problem(problem) => of_code(problem.code),
        Error::Timeout { .. } => ExitCode::TimedOut,
        _ => ExitCode::Failed,
    }
}

fn of_code(code: Code) -> ExitCode {
    match code {
        Code::InvalidRequest | Code::TooLarge | Code::KeyReused => ExitCode::Usage,
        Code::NotFound | Code::Gone => ExitCode::NotFound,
        Code::NameTaken | Code::WrongState | Code::Changed | Code::Exhausted => ExitCode::Conflict,
        Code::Timeout => ExitCode::TimedOut,
        Code::ShuttingDown | Code::Unauthorized | Code::TooManyAttempts => ExitCode::NoDaemon,
        _ => ExitCode::Failed,
    }
}

/// The exit code for an error of `vm exec` and `vm shell`.
pub(crate) fn of_exec_error(error: &Error) -> ExitCode {
    match error {
        Error::Guest { failure: GuestFailure::NotFound, .. } => ExitCode::NoProgram,
        Error::Guest { failure: GuestFailure::Denied, .. } => ExitCode::NotExecutable,
        _ => ExitCode::ExecFailed,
    }
}

/// The exit code for the end of a process in the guest.
pub(crate) fn of_status(status: ExitStatus) -> u8 {
    if status.timed_out {
        return ExitCode::TimedOut as u8;
    }
    if let Some(signal) = status.signal {
        return of_signal(signal);
    }
    // Linux keeps eight bits of an exit status (exit(3)); anything else is a broken guest.
    u8::try_from(status.code).unwrap_or(u8::MAX)
}

/// 128 + signal, as shells do.
pub(crate) fn of_signal(signal: u8) -> u8 {
    128u8.saturating_add(signal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_api::Problem;

    fn status(code: i32, signal: Option<u8>, timed_out: bool) -> ExitStatus {
        ExitStatus { code, signal, timed_out }
    }

    #[test]
    fn the_status_of_a_process_is_passed_on() {
        for code in 0..=255 {
            assert_eq!(i32::from(of_status(status(code, None, false))), code);
        }
        assert_eq!(of_status(status(137, Some(9), false)), 137);
        assert_eq!(of_status(status(0, Some(15), false)), 143);
        assert_eq!(of_status(status(137, Some(9), true)), 124);
        assert_eq!(of_status(status(-1, None, false)), 255);
        assert_eq!(of_status(status(256, None, false)), 255, "never 0 by truncation");
        assert_eq!(of_status(status(0, Some(255), false)), 255);
    }

    #[test]
    fn a_missing_program_is_no_missing_vm() {
        let guest =
            |failure| Error::Guest { failure, problem: Box::new(Problem::new(Code::GuestFailed, "x")) };
        assert_eq!(of_exec_error(&guest(GuestFailure::NotFound)), ExitCode::NoProgram);
        assert_eq!(of_exec_error(&guest(GuestFailure::Denied)), ExitCode::NotExecutable);
        assert_eq!(of_exec_error(&guest(GuestFailure::Failed)), ExitCode::ExecFailed);
        let no_vm = Error::from(Problem::new(Code::NotFound, "no VM x"));
        assert_eq!(of_exec_error(&no_vm), ExitCode::ExecFailed);
        assert_eq!(of_error(&no_vm), ExitCode::NotFound);
        assert_eq!(of_error(&Problem::new(Code::NameTaken, "x").into()), ExitCode::Conflict);
        assert_eq!(of_error(&Problem::new(Code::StartFailed, "x").into()), ExitCode::Failed);
    }

    #[test]
    fn the_help_text_names_every_code() {
        let all = [
            ExitCode::Success,
            ExitCode::Failed,
            ExitCode::Usage,
            ExitCode::NoDaemon,
            ExitCode::NotFound,
            ExitCode::Conflict,
            ExitCode::TimedOut,
            ExitCode::ExecFailed,
            ExitCode::NotExecutable,
            ExitCode::NoProgram,
        ];
        for code in all {
            let number = (code as u8).to_string();
            let named = HELP.split(|c: char| !c.is_ascii_digit()).any(|word| word == number);
            assert!(named, "{code:?}");
        }
    }
}
