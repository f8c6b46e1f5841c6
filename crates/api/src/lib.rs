//! Enisle's HTTP API as types.
//!
//! Owns: what goes over the wire between a client and the daemon: requests, responses, problem
//! codes, routes and the framing of streams. Refuses: any IO, any runtime, anything about how a
//! VM is made.
//!
//! To change the API: add a field as optional with a default, or a new type; never change the
//! meaning of a field. Requests refuse unknown fields; responses may grow.

pub mod event;
pub mod exec;
pub mod files;
pub mod openapi;
pub mod policy;
pub mod problem;
pub mod processes;
pub mod routes;
pub mod stream;
pub mod token;
pub mod verify;
pub mod vm;
pub mod watch;

pub use event::{Event, EventFilter, EventKind, FlowDirection};
pub use exec::*;
pub use files::*;
pub use policy::*;
pub use problem::{Code, Problem};
pub use processes::*;
pub use token::{Access, CreateToken, CreatedToken, Scope, TOKEN_PREFIX, Token};
pub use verify::{Verified, Verify, VerifyRow};
pub use vm::*;
pub use watch::WatchEvent;
