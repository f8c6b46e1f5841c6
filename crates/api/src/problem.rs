//! Errors of the API: RFC 9457 problem details with a stable code.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Stable error codes. A program acts on these; people read the detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// The request is malformed or a value is out of range.
    InvalidRequest,
    /// No token, or none that is good.
    Unauthorized,
    /// The token may not do this.
    Forbidden,
    /// No such VM, group, route or file.
    NotFound,
    /// There is such a path, but not for this method; `Allow` has those there are.
    MethodNotAllowed,
    /// The name is taken.
    NameTaken,
    /// The VM is not in a state that allows this.
    WrongState,
    /// Somebody else changed it since it was read (`If-Match`).
    Changed,
    /// It was there and is no more.
    Gone,
    /// The body is larger than this route takes.
    TooLarge,
    /// The idempotency key was used for another request.
    KeyReused,
    /// The group's range has no free block, or another limit is reached.
    Exhausted,
    /// Too many tokens of this address were wrong; this one was not looked at.
    TooManyAttempts,
    /// Something did not happen within the asked time.
    Timeout,
    /// The VM could not be started.
    StartFailed,
    /// The guest refused or failed the operation.
    GuestFailed,
    /// The daemon is going down.
    ShuttingDown,
    /// A defect or a failure of the host; the daemon's log has more.
    Internal,
}

impl Code {
    /// Every code there is.
    pub const ALL: [Self; 18] = [
        Self::InvalidRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::NameTaken,
        Self::WrongState,
        Self::Changed,
        Self::Gone,
        Self::TooLarge,
        Self::KeyReused,
        Self::Exhausted,
        Self::TooManyAttempts,
        Self::Timeout,
        Self::StartFailed,
        Self::GuestFailed,
        Self::ShuttingDown,
        Self::Internal,
    ];

    /// The code as it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NameTaken => "name_taken",
            Self::WrongState => "wrong_state",
            Self::Changed => "changed",
            Self::Gone => "gone",
            Self::TooLarge => "too_large",
            Self::KeyReused => "key_reused",
            Self::Exhausted => "exhausted",
            Self::TooManyAttempts => "too_many_attempts",
            Self::Timeout => "timeout",
            Self::StartFailed => "start_failed",
            Self::GuestFailed => "guest_failed",
            Self::ShuttingDown => "shutting_down",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status that goes with this code. The only place where this is decided.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NameTaken | Self::WrongState => 409,
            Self::Gone => 410,
            Self::Changed => 412,
            Self::TooLarge => 413,
            Self::KeyReused | Self::Exhausted => 422,
            Self::TooManyAttempts => 429,
            Self::GuestFailed => 502,
            Self::ShuttingDown => 503,
            Self::Timeout => 504,
            Self::StartFailed | Self::Internal => 500,
        }
    }

    /// A short, constant title.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not found",
            Self::MethodNotAllowed => "method not allowed",
            Self::NameTaken => "name taken",
            Self::WrongState => "wrong state",
            Self::Gone => "gone",
            Self::TooLarge => "too large",
            Self::KeyReused => "idempotency key reused",
            Self::Changed => "changed meanwhile",
            Self::Exhausted => "exhausted",
            Self::TooManyAttempts => "too many attempts",
            Self::Timeout => "timed out",
            Self::StartFailed => "start failed",
            Self::GuestFailed => "guest failed",
            Self::ShuttingDown => "shutting down",
            Self::Internal => "internal error",
        }
    }
}

/// A problem document (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// `/docs#problem-CODE`: the daemon's own page about the code.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// A stable code.
    pub code: Code,
    /// A short, constant title of the code.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What failed, on which object, why.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// JSON pointer (RFC 6901) to the bad field of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// `urn:uuid:ID`, where ID is also the header `X-Request-Id` and the `id` of the request in the daemon's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

impl Problem {
    /// A problem of this code.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/docs#problem-{}", code.name()),
            code,
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            hint: None,
            pointer: None,
            instance: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the place in the request.
    #[must_use]
    pub fn pointer(mut self, pointer: impl Into<String>) -> Self {
        self.pointer = Some(pointer.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_they_are_named() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
            assert!((400..600).contains(&code.status()));
        }
    }
}
