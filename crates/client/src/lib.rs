//! Async client of the Enisle daemon's HTTP API over its unix socket or TLS.
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
//!
//! A daemon on another machine takes a token, and a pin of its key or an authority:
//!
//! ```no_run
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use enisle_client::{Client, Secret, Trust};
//! let pin = "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".parse()?;
//! let token = Secret::new(&std::fs::read_to_string("/run/secrets/enisle")?)?;
//! let client = Client::remote("https://box.lan:7443".parse()?, Trust::Key(pin), Some(token));
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
mod processes;
mod remote;
mod session;
mod tokens;
mod trust;
mod watch;

pub use client::{Client, LogStream};
pub use endpoint::{DEFAULT_PORT, DEFAULT_SOCKET, Endpoint, ParseEndpointError};
/// The types of requests and responses.
pub use enisle_api as api;
pub use error::Error;
pub use events::EventStream;
pub use handles::{ArchiveIn, ArchiveOut, Connection, Exec};
pub use output::Output;
pub use processes::Attached;
pub use remote::{NoToken, Secret};
pub use session::{Controller, ExitStatus, Stdin};
pub use trust::{ParsePinError, Pin, SYSTEM_ROOTS, Trust};
pub use watch::WatchStream;
