//! What a single value may be: one type for each kind, with its words in the JSON schema.
//!
//! Owns: the grammar of values. Refuses: rules between values ([`super::check`]), looking at the
//! machine ([`super::Host`]).

mod link;
mod network;
mod number;
mod place;
mod ssh_key;
mod word;

pub(super) use link::{Flag, GatewayText, LinkName, Written};
pub(super) use network::{Address, HostAddress, RangeText, RuleText};
pub(super) use number::{Gigabytes, Megabytes, Size, Whole};
pub(super) use place::{ApiSocket, Directory, FilePath, StateDirectory};
pub use ssh_key::SshKey;
pub(super) use word::{GroupName, ImageName, Script};
pub use word::{Hypervisor, Mode};
