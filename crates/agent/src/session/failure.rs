//! Failures as the protocol wants them: a class, and a bounded message.

use enisle_guest_proto::{Failure, FailureCode};
use rustix::io::Errno;
use std::error::Error;
use std::fmt::Write;
use std::io;

/// A failure's message in bytes (guest-proto: at most 4 KiB).
const MAX_MESSAGE: usize = 4096;

/// A failure with its message cut to what the protocol allows.
pub(super) fn failure(code: FailureCode, mut message: String) -> Failure {
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE - 3).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    Failure { code, message }
}

/// A failure from the kernel's answer about an object.
pub(super) fn from_io(what: &str, error: &io::Error) -> Failure {
    failure(class(error), format!("{what}: {error}"))
}

/// A failure with the whole chain of reasons.
pub(super) fn from_chain(code: FailureCode, error: &dyn Error) -> Failure {
    let mut message = error.to_string();
    let mut next = error.source();
    while let Some(reason) = next {
        // Writing to a string cannot fail.
        let _ = write!(message, ": {reason}");
        next = reason.source();
    }
    failure(code, message)
}

/// The class of the kernel's answer.
pub(super) fn class(error: &io::Error) -> FailureCode {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NOTDIR) => FailureCode::NotFound,
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => FailureCode::Denied,
        Some(Errno::NOSPC | Errno::DQUOT) => FailureCode::NoSpace,
        Some(
            Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::TIMEDOUT | Errno::CONNRESET,
        ) => FailureCode::Unreachable,
        Some(Errno::INVAL | Errno::NAMETOOLONG | Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
            FailureCode::Invalid
        }
        _ if error.kind() == io::ErrorKind::TimedOut => FailureCode::Unreachable,
        _ => FailureCode::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let cut = failure(FailureCode::Failed, "ä".repeat(5000)).message;
        assert!(cut.len() <= MAX_MESSAGE && cut.ends_with('…'), "{}", cut.len());
        assert_eq!(failure(FailureCode::Failed, "short".to_owned()).message, "short");
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        assert_eq!(class(&io::Error::from_raw_os_error(libc::EDQUOT)), FailureCode::NoSpace);
        assert_eq!(class(&io::Error::from_raw_os_error(libc::EIO)), FailureCode::Failed);
    }
}
