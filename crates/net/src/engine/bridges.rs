//! The bridges of an engine: found or made before anything is joined to them, put back, removed at the end.
//!
//! Owns: whose a bridge is, which its link group says from the moment it is made, and that one of somebody else's gets nothing
//! but ports. Refuses: the ports (`join`), and what passes (`bridge`).

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use super::{Engine, EngineConfig, State, look};
use crate::bridge::{self, Bridge, Placed};
use crate::error::NetError;
use crate::kernel::{Answer, Linux, Place};
use crate::limits::Limits;
use crate::netlink::route::{Change, Link, LinkSettings, NewBridge};
use crate::plan::Block;
use crate::scope::Scope;
use crate::surroundings::Surroundings;

impl Engine {
    /// As [`Engine::open_beside`], with bridges. Their ranges are among those of `config`.
    ///
    /// # Errors
    /// As [`Engine::open`], and [`NetError::Bridge`].
    pub fn open_with(
        config: EngineConfig,
        bridges: Vec<Bridge>,
        survivors: &[(Block, Limits)],
    ) -> Result<Engine, NetError> {
        let kernel = Linux::open().map_err(NetError::Open)?;
        Engine::open_among(Arc::new(kernel), config, bridges, survivors)
    }

    /// The bridges that stand.
    pub(super) fn placed(&self) -> Arc<[Placed]> {
        Arc::clone(&self.placed.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the bridges that are missing, and says which numbers they all have. Blocks for milliseconds.
    pub(super) fn stand_bridges(&self, around: &Surroundings) -> Result<(), NetError> {
        if self.bridges.is_empty() {
            return Ok(());
        }
        for bridge in self.bridges.iter().filter(|bridge| named(around, &bridge.name).is_none()) {
            self.make_bridge(bridge)?;
        }
        let around = look(&*self.kernel)?;
        let placed: Result<Vec<Placed>, NetError> =
            self.bridges.iter().map(|bridge| self.furnish(bridge, &around)).collect();
        self.place(placed?);
        Ok(())
    }

    fn make_bridge(&self, bridge: &Bridge) -> Result<(), NetError> {
        let spec =
            NewBridge { name: bridge.name.clone(), group: self.scope.bridge_group(), mac: bridge.mac() };
        self.kernel.change(Place::Host, &Change::Bridge(spec)).map_err(|e| failed(bridge, &e))
    }

    fn place(&self, placed: Vec<Placed>) {
        *self.placed.write().unwrap_or_else(PoisonError::into_inner) = placed.into();
    }

    /// Removes the bridges that were not there before.
    pub(super) fn remove_new_bridges(&self, before: &Surroundings) -> Result<(), NetError> {
        let now = look(&*self.kernel)?;
        let new = own_bridges(&now, self.scope).filter(|link| !before.links.contains_key(&link.index));
        for link in new {
            let gone = self.kernel.change(Place::Host, &Change::DeleteLink(link.index));
            gone.map_err(|e| NetError::Host("remove its bridges", e))?;
        }
        Ok(())
    }

    /// A bridge of ours gets its address and its uplink and is up; of somebody else's nothing is changed.
    fn furnish(&self, bridge: &Bridge, around: &Surroundings) -> Result<Placed, NetError> {
        let unusable = |why: String| NetError::Bridge { name: bridge.name.clone(), why };
        let link = named(around, &bridge.name).ok_or_else(|| unusable("it is gone again".to_owned()))?;
        if !link.is_bridge {
            return Err(unusable("an interface of another kind has this name; choose another".to_owned()));
        }
        let ours = bridge::is_own(link, self.scope);
        let uplink =
            bridge.uplink.as_ref().map(|uplink| uplink_of(bridge, uplink, link.index, around)).transpose()?;
        if !ours {
            if let (Some(name), Some(Some(_))) = (&bridge.uplink, uplink) {
                return Err(unusable(format!(
                    "it is not Enisle's, so {name} is not added to it; add it yourself, or take `uplink` out"
                )));
            }
            if !link.forwarding && around.addresses.iter().any(|a| a.net.addr() == bridge.gateway.addr()) {
                tracing::warn!(
                    bridge = bridge.name,
                    "this bridge has the gateway's address and is not Enisle's, and forwarding is off on it: its microVMs \
                     reach this host and each other only (`sysctl net.ipv4.conf.{}.forwarding=1`)",
                    bridge.name
                );
            }
            return Ok(Placed { bridge: bridge.clone(), index: link.index, ours });
        }
        for change in own_changes(self.scope, bridge, link, around) {
            self.kernel.change(Place::Host, &change).map_err(|e| failed(bridge, &e))?;
        }
        if let Some(Some(port)) = uplink {
            let joined = [Change::Master(port, link.index), Change::Up(port)];
            self.kernel.change_all(Place::Host, &joined).map_err(|e| failed(bridge, &e))?;
        }
        Ok(Placed { bridge: bridge.clone(), index: link.index, ours })
    }

    /// Puts bridges back that somebody took away or down. What cannot be is in the log.
    pub(super) fn mend_bridges(&self, state: &mut State, around: &Surroundings) -> Result<(), NetError> {
        let right = |placed: &Placed| {
            let link = around.links.get(&placed.index).filter(|link| link.name == placed.bridge.name);
            let joined = placed.bridge.uplink.as_ref().is_none_or(|uplink| {
                named(around, uplink).is_none_or(|port| port.master == Some(placed.index))
            });
            link.is_some_and(|link| {
                !placed.ours || own_changes(self.scope, &placed.bridge, link, around).is_empty() && joined
            })
        };
        let placed = self.placed();
        if placed.iter().all(right) || !state.repairs.turn("a bridge of microVMs") {
            return Ok(());
        }
        tracing::warn!("another program changed a bridge of microVMs; it is put right");
        let right: Vec<Placed> = placed.iter().map(|placed| self.put_right(placed, around)).collect();
        if right != *placed {
            self.place(right);
            self.write_table_over(state).map_err(|e| NetError::Host("write the host's table", e))?;
        }
        Ok(())
    }

    /// One of ours is made anew where it is missing; somebody else's is waited for. What cannot be is in the log, and as it
    /// was.
    fn put_right(&self, placed: &Placed, around: &Surroundings) -> Placed {
        let bridge = &placed.bridge;
        let missing = named(around, &bridge.name).is_none();
        let made = if missing && placed.ours { self.make_bridge(bridge) } else { Ok(()) };
        let seen = made.and_then(|()| look(&*self.kernel));
        seen.and_then(|around| self.furnish(bridge, &around)).unwrap_or_else(|error| {
            tracing::warn!("a bridge of microVMs cannot be put right: {}", crate::error::chain(&error));
            placed.clone()
        })
    }

    /// Removes bridges of this scope that none of its groups has. How many that were.
    pub(super) fn remove_bridges(&self, around: &Surroundings, all: bool) -> Answer<usize> {
        let wanted = |link: &Link| !all && self.bridges.iter().any(|bridge| bridge.name == link.name);
        let own = own_bridges(around, self.scope);
        let gone: Vec<u32> = own.filter(|link| !wanted(link)).map(|link| link.index).collect();
        for index in &gone {
            match self.kernel.change(Place::Host, &Change::DeleteLink(*index)) {
                Err(e) if !e.is_absent() => return Err(e),
                _ => {}
            }
        }
        Ok(gone.len())
    }

    /// VMs on a bridge are reached by routing, whoever routes. A bridge that is somebody else's is not changed,
    /// unless it carries isolated VMs' packets as any uplink does.
    pub(super) fn carriers_of_bridges(&self, placed: &[Placed], around: &Surroundings) -> BTreeSet<u32> {
        let (ours, theirs): (Vec<&Placed>, Vec<&Placed>) = placed.iter().partition(|placed| placed.ours);
        let mut all = around.carriers(std::iter::once(ipnet::Ipv4Net::default()));
        all.extend(ours.iter().map(|placed| placed.index));
        for placed in theirs {
            all.remove(&placed.index);
        }
        if bridge::isolated(&self.ranges(), placed).next().is_some() {
            all.extend(around.carriers(self.policies().opened()));
        }
        all
    }

    /// The interfaces that may have addresses in the ranges and subnets of bridges: the bridges.
    pub(super) fn bridge_links(&self, around: &Surroundings) -> BTreeSet<u32> {
        self.bridges.iter().filter_map(|bridge| named(around, &bridge.name)).map(|link| link.index).collect()
    }

    /// Nothing else has addresses in a bridge's subnet.
    pub(super) fn subnets_are_free(
        &self,
        around: &Surroundings,
        own: &BTreeSet<u32>,
    ) -> Result<(), NetError> {
        for bridge in &self.bridges {
            let subnet = bridge.gateway.trunc();
            if let Some(object) = around.in_the_way(subnet, own) {
                let why = format!("its subnet {subnet} is in use: {object}; choose another `gateway`");
                return Err(NetError::Bridge { name: bridge.name.clone(), why });
            }
        }
        Ok(())
    }
}

/// The uplink's number where it is to be made a port; nothing where it is one.
fn uplink_of(
    bridge: &Bridge,
    uplink: &str,
    index: u32,
    around: &Surroundings,
) -> Result<Option<u32>, NetError> {
    let unusable = |why: String| NetError::Bridge { name: bridge.name.clone(), why };
    let port = named(around, uplink)
        .ok_or_else(|| unusable(format!("its uplink {uplink} is no interface of this host")))?;
    match port.master {
        Some(master) if master == index => return Ok(None),
        Some(_) => {
            return Err(unusable(format!(
                "its uplink {uplink} is a port of another bridge; take it out there"
            )));
        }
        None => {}
    }
    if let Some(address) = around.addresses.iter().find(|address| address.index == port.index) {
        let address = address.net;
        return Err(unusable(format!(
            "its uplink {uplink} has the address {address}, which a port of a bridge cannot use; move it away first"
        )));
    }
    Ok(Some(port.index))
}

/// What is missing of a bridge of ours.
fn own_changes(scope: Scope, bridge: &Bridge, link: &Link, around: &Surroundings) -> Vec<Change> {
    let mut changes = Vec::new();
    let alias = scope.alias("(bridge)");
    if link.alias != alias || !link.no_ipv6_address {
        let settings = LinkSettings { alias: Some(alias), no_ipv6_address: true, ..LinkSettings::default() };
        changes.push(Change::Settings(link.index, settings));
    }
    if !around.addresses.iter().any(|a| a.index == link.index && a.net == bridge.gateway) {
        changes.push(Change::Address(link.index, bridge.gateway));
    }
    if !link.up {
        changes.push(Change::Up(link.index));
    }
    changes
}

fn named<'a>(around: &'a Surroundings, name: &str) -> Option<&'a Link> {
    around.links.values().find(|link| link.name == name)
}

/// Bridges that an engine of this scope made.
pub(super) fn own_bridges(around: &Surroundings, scope: Scope) -> impl Iterator<Item = &Link> {
    around.links.values().filter(move |link| bridge::is_own(link, scope))
}

fn failed(bridge: &Bridge, error: &crate::kernel::KernelError) -> NetError {
    NetError::Bridge { name: bridge.name.clone(), why: crate::error::chain(error) }
}
