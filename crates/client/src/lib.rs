//! Async client of the Enisle daemon's HTTP API over its unix socket.
//!
//! Owns: connections, time bounds, the flow control of streams, and turning what goes wrong into
//! typed errors. Refuses: terminals, files, signals and anything printed; those are the command
//! line's.
//!
//! ```no_run
//! # async fn example() -> Result<(), enisle_client::Error> {
//! use enisle_client::{Client, Endpoint, api};
//! let client = Client::new(Endpoint::default());
//! let vm = client.create_vm(&api::CreateVm { wait: true, ..Default::default() }).await?;
//! let exec = api::stream::Exec { argv: vec!["true".into()], ..Default::default() };
//! let status = client.exec(&vm.name, exec).await?.wait().await?;
//! assert_eq!(status.code, 0);
//! # Ok(()) }
//! ```

mod client;
mod connection;
mod endpoint;
mod error;
mod events;
mod files;
mod handles;
mod output;
mod policy;
mod session;

pub use client::{Client, LogStream};
pub use endpoint::{DEFAULT_SOCKET, Endpoint, ParseEndpointError};
/// The types of requests and responses.
pub use enisle_api as api;
pub use error::Error;
pub use events::EventStream;
pub use handles::{ArchiveIn, ArchiveOut, Connection, Exec};
pub use output::Output;
pub use session::{Controller, ExitStatus, Stdin};
