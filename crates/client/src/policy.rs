//! Policies of VMs and groups. Owns one method a route; refuses reading entries, which the daemon
//! does.

use crate::Error;
use crate::client::{Client, bounded, read_json};
use crate::connection::{self, Ask};
use enisle_api::{Policy, PolicyChange, PolicyLists, Why, routes};
use http::Method;
use std::time::Duration;

/// Bound of a change: thousands of entries for hundreds of VMs take seconds.
const CHANGE_LIMIT: Duration = Duration::from_secs(120);

impl Client {
    /// What a VM may reach, and what was counted. At most 30 s.
    ///
    /// # Errors
    /// `not_found` when there is none of this name; else see [`Error`].
    pub async fn vm_policy(&self, name: &str) -> Result<Policy, Error> {
        self.get(&routes::vm_policy(name)).await
    }

    /// What the VMs of a group may reach. At most 30 s.
    ///
    /// # Errors
    /// `not_found` when there is none of this name; else see [`Error`].
    pub async fn group_policy(&self, name: &str) -> Result<Policy, Error> {
        self.get(&routes::group_policy(name)).await
    }

    /// Replaces a VM's own lists, or with `dry_run` only says what that would change. At most 120 s.
    ///
    /// # Errors
    /// `invalid_request` with a pointer to the entry that is refused; else see [`Error`]. The old
    /// policy holds then.
    pub async fn set_vm_policy(
        &self,
        name: &str,
        lists: &PolicyLists,
        dry_run: bool,
    ) -> Result<PolicyChange, Error> {
        self.put(&routes::vm_policy(name), lists, dry_run).await
    }

    /// Replaces a group's lists for all its VMs, until the daemon stops, or with `dry_run` only says
    /// what that would change. At most 120 s.
    ///
    /// # Errors
    /// As [`Client::set_vm_policy`]; no VM is changed then.
    pub async fn set_group_policy(
        &self,
        name: &str,
        lists: &PolicyLists,
        dry_run: bool,
    ) -> Result<PolicyChange, Error> {
        self.put(&routes::group_policy(name), lists, dry_run).await
    }

    /// Whether a VM may talk to `address[:port][/tcp, udp or icmp]`, and why. At most 30 s.
    ///
    /// # Errors
    /// `invalid_request` when that is no destination; else see [`Error`].
    pub async fn why(&self, name: &str, dest: &str) -> Result<Why, Error> {
        self.get(&routes::vm_why(name, dest)).await
    }

    async fn put(&self, path: &str, lists: &PolicyLists, dry_run: bool) -> Result<PolicyChange, Error> {
        let path = format!("{path}?dry_run={dry_run}");
        let ask = Ask { method: &Method::PUT, path: &path };
        let json = serde_json::to_vec(lists).map_err(|e| ask.protocol(e.to_string()))?;
        bounded(ask, CHANGE_LIMIT, async {
            read_json(ask, connection::request(&self.endpoint, ask, Some(json)).await?).await
        })
        .await
    }
}
