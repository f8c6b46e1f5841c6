//! Which policies are in the judge's maps, and how many slots use each.
//!
//! Owns: policy numbers, sharing of equal policies, adding and removing rows. Refuses: which slot
//! has which policy.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::judge::{PolicyId, address_entries, port_rows};
use crate::kernel::{Answer, Kernel};
use crate::policy::CompiledPolicy;

/// A policy in the maps.
struct Live {
    policy: Arc<CompiledPolicy>,
    users: usize,
}

/// All policies in the maps.
#[derive(Default)]
pub(crate) struct Policies {
    last: u32,
    by_content: HashMap<Arc<CompiledPolicy>, PolicyId>,
    live: HashMap<PolicyId, Live>,
}

impl Policies {
    /// The number of an equal policy, or of this one once all its rows are in. Nothing is left
    /// behind when a row is refused.
    pub(crate) fn acquire(&mut self, kernel: &dyn Kernel, policy: &CompiledPolicy) -> Answer<PolicyId> {
        if let Some(id) = self.by_content.get(policy).copied()
            && let Some(live) = self.live.get_mut(&id)
        {
            live.users += 1;
            return Ok(id);
        }
        let id = self.unused();
        if let Err(e) = add_rows(kernel, id, policy) {
            // The rows that went in are removed; those that did not are absent, which is fine.
            let _ = remove_rows(kernel, id, policy);
            return Err(e);
        }
        let policy = Arc::new(policy.clone());
        self.by_content.insert(Arc::clone(&policy), id);
        self.live.insert(id, Live { policy, users: 1 });
        Ok(id)
    }

    /// Gives one use up; the last one takes the rows away.
    pub(crate) fn release(&mut self, kernel: &dyn Kernel, id: PolicyId) -> Answer<()> {
        let Some(live) = self.live.get_mut(&id) else {
            return Ok(());
        };
        live.users -= 1;
        if live.users > 0 {
            return Ok(());
        }
        let policy = Arc::clone(&live.policy);
        self.live.remove(&id);
        self.by_content.remove(&policy);
        remove_rows(kernel, id, &policy)
    }

    /// Every network some policy opens by an operator's `allow`.
    pub(crate) fn opened(&self) -> impl Iterator<Item = Ipv4Net> {
        self.live.values().flat_map(|live| {
            let by_port = live.policy.port_entries();
            let ports_open = |table| {
                by_port.iter().any(|p| Some(p.ports) == table && p.verdict == crate::policy::Verdict::Allow)
            };
            address_entries(&live.policy)
                .zip(live.policy.entries())
                .filter(move |(row, entry)| {
                    row.verdict.opens > 0 && row.verdict.allow || ports_open(entry.ports)
                })
                .map(|(row, _)| row.net)
                .collect::<Vec<_>>()
        })
    }

    /// Numbers go round; 0 is never used, nor is one that a slot still refers to.
    fn unused(&mut self) -> PolicyId {
        loop {
            self.last = self.last.wrapping_add(1).max(1);
            if !self.live.contains_key(&PolicyId(self.last)) {
                return PolicyId(self.last);
            }
        }
    }
}

fn add_rows(kernel: &dyn Kernel, id: PolicyId, policy: &CompiledPolicy) -> Answer<()> {
    // Ports first: an entry never names a table that is not complete.
    for row in port_rows(policy) {
        kernel.add_ports(id, &row)?;
    }
    for entry in address_entries(policy) {
        kernel.add_address(id, &entry)?;
    }
    Ok(())
}

/// Removes what is there; the first refusal is the answer, but all are tried.
fn remove_rows(kernel: &dyn Kernel, id: PolicyId, policy: &CompiledPolicy) -> Answer<()> {
    let addresses = address_entries(policy).map(|e| kernel.remove_address(id, &e));
    let ports = port_rows(policy).map(|r| kernel.remove_ports(id, &r));
    let all: Vec<Answer<()>> = addresses.chain(ports).collect();
    all.into_iter().collect()
}
