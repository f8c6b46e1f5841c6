//! Judges a request for a VM against the configuration. Owns the ranges of its values; refuses
//! names and blocks, which the store gives.

use super::lifetime::now_ms;
use super::plan::GroupPlan;
use super::{VmError, labels, policy};
use crate::store::{Lifetime, NewVm};
use enisle_api::CreateVm;
use enisle_net::policy::compile_narrowed;
use std::ops::RangeInclusive;
use std::sync::Arc;

const VCPU: RangeInclusive<u8> = 1..=64;
const RAM_MIB: RangeInclusive<u32> = 64..=1_048_576;
/// A year, in milliseconds.
const LIFETIME_MS: RangeInclusive<u64> = 1..=365 * 24 * 3_600_000;
const MAX_USERDATA: usize = 256 * 1024;

/// A request that makes sense.
pub(super) struct Accepted {
    pub(super) group: Arc<GroupPlan>,
    pub(super) vm: NewVm,
    pub(super) userdata: Option<String>,
}

/// Completes a request from its group.
pub(super) fn accept(groups: &[Arc<GroupPlan>], create: &CreateVm) -> Result<Accepted, VmError> {
    let group = find_group(groups, create.group.as_deref())?;
    let config = &group.config;
    let vcpu = create.vcpu.unwrap_or(config.vcpu);
    if !VCPU.contains(&vcpu) {
        return Err(VmError::OutOfRange { field: "vcpu", rule: "must be 1 to 64" });
    }
    let ram_mib = create.ram_mb.unwrap_or(config.ram_mib);
    if !RAM_MIB.contains(&ram_mib) {
        return Err(VmError::OutOfRange { field: "ram_mb", rule: "must be 64 to 1048576" });
    }
    let userdata = create.userdata.clone().or_else(|| config.userdata.clone());
    if userdata.as_ref().is_some_and(|script| script.len() > MAX_USERDATA) {
        return Err(VmError::OutOfRange { field: "userdata", rule: "must be at most 256 KiB" });
    }
    labels::check(&create.labels)?;
    for (field, ms) in [("ttl_ms", create.ttl_ms), ("idle_timeout_ms", create.idle_timeout_ms)] {
        if ms.is_some_and(|ms| !LIFETIME_MS.contains(&ms)) {
            return Err(VmError::OutOfRange { field, rule: "must be 1 to 31536000000, which is a year" });
        }
    }
    let lists = policy::parse(&create.drop, &create.allow)?;
    if !lists.drop.is_empty() || !lists.allow.is_empty() {
        group.has_lists()?;
    }
    compile_narrowed(&group.lists(), &lists)
        .map_err(|source| policy::PolicyError::Unenforceable { vm: None, source })?;
    let vm = NewVm {
        name: create.name.clone(),
        group: config.name.clone(),
        range: config.network.range,
        vcpu,
        ram_mib,
        image: config.image.clone(),
        disk_bytes: config.disk_bytes,
        created_ms: now_ms(),
        lists,
        labels: create.labels.clone(),
        lifetime: Lifetime { ttl_ms: create.ttl_ms, idle_timeout_ms: create.idle_timeout_ms },
    };
    Ok(Accepted { group: Arc::clone(group), vm, userdata: userdata.filter(|script| !script.is_empty()) })
}

/// The group of this name, or the only one.
pub(super) fn find_group<'a>(
    groups: &'a [Arc<GroupPlan>],
    name: Option<&str>,
) -> Result<&'a Arc<GroupPlan>, VmError> {
    let known = || groups.iter().map(|group| group.config.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, groups) {
        (None, [only]) => Ok(only),
        (None, _) => Err(VmError::GroupNeeded { known: known() }),
        (Some(name), _) => groups
            .iter()
            .find(|group| group.config.name == name)
            .ok_or_else(|| VmError::NoSuchGroup { name: name.to_owned(), known: known() }),
    }
}
