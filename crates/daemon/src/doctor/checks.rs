//! The judgements: pure functions from facts to findings, one for each thing that is checked.
//!
//! Owns: the order in which findings are told. Refuses: looking at the machine (`facts`).

mod firewall;
mod host;
mod machine;

use super::facts::Facts;
use super::finding::Finding;

/// Every finding; what is not asked for is left out.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let checks: [fn(&Facts) -> Vec<Finding>; 19] = [
        machine::privileges,
        host::configuration,
        machine::kernel,
        machine::hypervisor,
        machine::kvm,
        machine::boot_files,
        machine::images,
        host::ranges,
        host::bridges,
        host::uplinks,
        host::source_checks,
        host::conntrack,
        firewall::chains,
        firewall::programs,
        firewall::bridges,
        firewall::networkd,
        host::resolvers,
        machine::control_groups,
        machine::limits,
    ];
    checks.iter().flat_map(|check| check(facts)).collect()
}

/// microVMs that run at the same time as far as the file says; one without a file.
fn vms(facts: &Facts) -> u64 {
    match &facts.config {
        Some(Ok(config)) => config.groups.iter().map(|g| u64::from(g.count)).sum::<u64>().max(1),
        _ => 1,
    }
}
