//! From errors to problem documents: the one table.

use crate::access::TokenError;
use crate::chain::Chain;
use crate::guest::printable;
use crate::guest::session::{OpenError, failure_class};
use crate::guest::wire::WireError;
use crate::parts::PartError;
use crate::store::StoreError;
use crate::vm::VmError;
use crate::vm::policy::PolicyError;
use axum::Extension;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use enisle_api::stream::FromDaemon;
use enisle_api::{Code, Problem};
use enisle_guest_proto::{Failure, FailureCode};

/// A problem as an answer.
#[derive(Debug)]
pub(crate) struct ApiError(Box<Problem>);

impl ApiError {
    pub(super) fn code(&self) -> Code {
        self.0.code
    }

    #[cfg(test)]
    pub(crate) fn problem(&self) -> &Problem {
        &self.0
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<VmError> for ApiError {
    fn from(error: VmError) -> Self {
        problem(&error).into()
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        let new = |code| Problem::new(code, Chain(&error).to_string());
        match &error {
            TokenError::Bad { field, .. } => new(Code::InvalidRequest).pointer(format!("/{field}")),
            TokenError::TooMany => new(Code::Exhausted),
            TokenError::Unknown(_) => new(Code::NotFound).hint("`enisle token list` shows those there are"),
            TokenError::NotKept { .. } => {
                new(Code::Internal).hint("make room for the state, then revoke it again")
            }
            TokenError::NoRandomness(_) | TokenError::Store(_) => new(Code::Internal),
        }
        .into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Text and numbers only: there is nothing in it that JSON could refuse.
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        // With the problem itself, for the layer that knows the request's id.
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Extension(*self.0), body)
            .into_response()
    }
}

/// The table.
pub(crate) fn problem(error: &VmError) -> Problem {
    let new = |code| Problem::new(code, Chain(error).to_string());
    match error {
        VmError::NoSuchVm { .. } => new(Code::NotFound).hint("`enisle vm list` shows the VMs there are"),
        VmError::NoSuchGroup { .. } => new(Code::NotFound).pointer("/group"),
        VmError::GroupNeeded { .. } => new(Code::InvalidRequest).pointer("/group"),
        VmError::OutOfRange { field, .. } => new(Code::InvalidRequest).pointer(format!("/{field}")),
        VmError::TooLarge(_) => new(Code::InvalidRequest).pointer("/ram_mb"),
        // RFC 6901 §3.
        VmError::BadLabel { key, .. } => new(Code::InvalidRequest)
            .pointer(format!("/labels/{}", key.replace('~', "~0").replace('/', "~1"))),
        VmError::BadKey => new(Code::InvalidRequest),
        VmError::KeyReused { .. } => {
            new(Code::KeyReused).hint("a key stands for one request; take a new one for another")
        }
        VmError::KeyGone { .. } => new(Code::Gone).hint("take a new key to make another VM"),
        VmError::Store(error) => store_problem(error),
        VmError::Policy(error) => policy_problem(error),
        VmError::Network(error) if matches!(**error, PartError::NotInMode { .. }) => {
            new(Code::WrongState).hint("docs/modes.md compares the modes")
        }
        VmError::Network(_) => {
            new(Code::Internal).hint("nothing was changed; the daemon's log may have more")
        }
        VmError::NoNetwork { .. } => new(Code::WrongState).hint("wait until it runs"),
        VmError::ShuttingDown => new(Code::ShuttingDown),
        VmError::Injected { .. } => new(Code::StartFailed),
        VmError::StartFailed { .. } => {
            new(Code::StartFailed).hint("it was removed again; the daemon's log has more")
        }
        VmError::Failed { name, .. } => new(Code::WrongState)
            .hint(format!("`enisle vm logs {name}` shows its console; `enisle vm delete {name}` removes it")),
        VmError::NotReady { name, .. } => {
            new(Code::Timeout).hint(format!("`enisle vm logs {name}` shows how far it came, while it exists"))
        }
        VmError::Stopping { .. } => new(Code::WrongState),
        VmError::Paused { name } => {
            new(Code::WrongState).hint(format!("`enisle vm resume {name}` lets it run on"))
        }
        VmError::NotRunning { name, .. } => {
            new(Code::WrongState).hint(format!("`enisle vm list` shows when {name} runs"))
        }
        VmError::NotHalted { .. } => new(Code::Internal).hint("it is as it was"),
        VmError::Stuck { name, .. } => {
            new(Code::Internal).hint(format!("`enisle vm delete {name}` tries again"))
        }
        VmError::TooManyStreams { .. } => new(Code::Exhausted).hint("end one of them"),
        VmError::Busy { .. } => new(Code::Timeout).hint("ask for less at a time, or give the VM more CPUs"),
        VmError::Log { .. } | VmError::Verify { .. } | VmError::NoRandomness => new(Code::Internal),
    }
}

fn policy_problem(error: &PolicyError) -> Problem {
    let (code, hint) = match error {
        PolicyError::BadEntry { .. } => (
            Code::InvalidRequest,
            "an entry is a network, an address, or address[/length]:port[-port][/tcp or /udp]",
        ),
        PolicyError::Unenforceable { .. } => (Code::InvalidRequest, "nothing was changed"),
        PolicyError::Changed { .. } => (Code::Changed, "read it again, then decide"),
        PolicyError::BadDestination(_) => {
            (Code::InvalidRequest, "write address, address:port or address:port/udp; names are not resolved")
        }
    };
    let problem = Problem::new(code, Chain(error).to_string()).hint(hint);
    match error.pointer() {
        Some(pointer) => problem.pointer(pointer),
        None => problem,
    }
}

fn store_problem(error: &StoreError) -> Problem {
    let code = match error {
        StoreError::NameTaken { .. } => Code::NameTaken,
        StoreError::BadName { .. } => Code::InvalidRequest,
        StoreError::RangeFull { .. } => Code::Exhausted,
        StoreError::NoSuchVm { .. } => Code::NotFound,
        _ => Code::Internal,
    };
    let problem = Problem::new(code, Chain(error).to_string());
    if matches!(code, Code::NameTaken | Code::InvalidRequest) { problem.pointer("/name") } else { problem }
}

/// A request that a guest refuses: what is missing or wrong there is so for the client too.
pub(crate) fn open_problem(error: &OpenError) -> Problem {
    let code = match error {
        OpenError::Refused { code, .. } => guest_code(*code),
        OpenError::TooLong => Code::InvalidRequest,
        OpenError::Connect(_) | OpenError::Wire(_) => Code::GuestFailed,
    };
    let problem = Problem::new(code, Chain(error).to_string());
    if matches!(error, OpenError::Wire(WireError::Closed)) {
        return problem
            .hint("an agent older than the daemon may not know this: `enisle image build`, and a new VM");
    }
    problem
}

/// An operation that failed in the guest after it had begun.
pub(crate) fn guest_problem(failure: &Failure) -> Problem {
    Problem::new(guest_code(failure.code), printable(&failure.message))
}

fn guest_code(code: FailureCode) -> Code {
    match code {
        FailureCode::NotFound => Code::NotFound,
        FailureCode::Invalid => Code::InvalidRequest,
        FailureCode::Exhausted => Code::Exhausted,
        FailureCode::Ended => Code::WrongState,
        _ => Code::GuestFailed,
    }
}

/// The last message of a stream that could not be opened.
pub(crate) fn open_failed(error: &OpenError) -> FromDaemon {
    let (guest, code) = match error {
        OpenError::Refused { code, .. } => (Some(failure_class(*code)), Code::GuestFailed),
        OpenError::TooLong => (None, Code::InvalidRequest),
        OpenError::Connect(_) | OpenError::Wire(_) => (None, Code::GuestFailed),
    };
    FromDaemon::Failed { guest, problem: Problem::new(code, Chain(error).to_string()) }
}
