//! Who may do what.
//!
//! ```text
//! connection ─▶ Peer ──(unix socket)────────────────────────▶ Caller: everything
//!                └────(TCP)── Authorization ─▶ Tokens::judge ─▶ Caller: the token's scopes
//!                                  └ wrong: Attempts (slow, few at a time an address)
//! Caller ─▶ the route's Need (http::access) ─▶ view: the registry shows only the caller's groups
//! ```
//!
//! Owns: callers, tokens, wrong attempts, and the view. Refuses: HTTP ([`crate::http`]) and rows
//! ([`crate::store`]).

pub(crate) mod attempts;
pub(crate) mod caller;
pub(crate) mod secret;
pub(crate) mod tokens;
pub(crate) mod view;

pub(crate) use caller::{Caller, Peer};
pub(crate) use tokens::{TokenError, Tokens, Wrong};
