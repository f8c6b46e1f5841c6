//! The network of this daemon's VMs: the engine, and its slots by block.
//!
//! Owns: which block has which slot. Refuses: anything the engine does itself. Methods block for
//! milliseconds.

mod metering;
mod policy;
mod tenants;
mod traffic;
mod warm;

pub(crate) use self::warm::Wanted;
use self::warm::Warm;
use super::names::Sockets;
use super::{PartError, SlotView};
use crate::chain::Chain;
use crate::vm::plan::{MTU, VmPlan, slot_of};
use enisle_net::plan::{Block, Range};
use enisle_net::policy::CompiledPolicy;
use enisle_net::{
    Bell, Bridge, Engine, EngineConfig, Limits, NetError, Scope, ScopeError, Slot, SlotSpec, WarmSlot,
    WarmSpec, Wires,
};
use enisle_vmm::Nic;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// Who hears that a slot is gone, or what is left of it.
pub(crate) type Told = UnboundedSender<Result<(), PartError>>;

/// The engine does not open or close.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The engine's own words.
    #[error(transparent)]
    Engine(#[from] NetError),
    /// The store's scope is none.
    #[error("the daemon's scope")]
    Scope(#[from] ScopeError),
}

/// The engine and its slots.
#[derive(Debug)]
pub(crate) struct Network {
    engine: Engine,
    slots: Mutex<Slots>,
    warm: Warm<WarmSlot>,
    /// Held while the host is followed: what follows last must not put back what was closed.
    closed: Mutex<bool>,
    /// Ends the reading of refused packets.
    bell: OnceLock<Bell>,
}

#[derive(Debug, Default)]
struct Slots {
    live: BTreeMap<Block, Slot>,
    /// Could not be removed. The engine keeps their blocks; the next start reclaims them.
    stuck: BTreeSet<Block>,
    metering: metering::Metering,
    tenants: tenants::Tenants,
}

impl Network {
    /// Opens the engine in the network namespace of this process, beside the slots of VMs that are
    /// to be adopted, and removes those of others, their flows included: the first VMs get blocks
    /// that others had.
    pub(crate) fn open(
        scope: &str,
        ranges: Vec<Range>,
        bridges: Vec<Bridge>,
        survivors: &[(Block, Limits)],
    ) -> Result<Self, NetworkError> {
        let config = EngineConfig { scope: scope.parse::<Scope>()?, ranges };
        let engine = Engine::open_with(config, bridges, survivors)?;
        let links = engine.reclaim()?;
        if links > 0 {
            tracing::debug!(links, "removed slots of VMs that do not live on");
        }
        Ok(Self {
            engine,
            slots: Mutex::default(),
            warm: Warm::default(),
            closed: Mutex::default(),
            bell: OnceLock::new(),
        })
    }

    /// Removes what a killed run of this scope left; its processes must be dead. Returns how many
    /// interfaces there were.
    pub(crate) fn reclaim(scope: &str) -> Result<usize, NetworkError> {
        Ok(enisle_net::reclaim(scope.parse()?)?)
    }

    /// Makes a VM's slot, or gives it one that was made ahead of time.
    pub(crate) fn make(&self, plan: &VmPlan) -> Result<(), PartError> {
        // Held until the slot can be found: a change of the group waits.
        let lists = plan.group.lists();
        let policy = plan.compile(&lists)?;
        let (_wanted, ready) = self.warm.want(plan.block());
        let ready = match ready {
            // It was made before the file was read anew.
            Some(warm) if warm.spec().limits != plan.group.config.network.limits => {
                self.engine.discard(warm).map_err(net)?;
                None
            }
            ready => ready,
        };
        let claimed = ready.is_some();
        let slot = match ready {
            Some(warm) => self.engine.claim(warm, plan.name(), &policy),
            None => self.engine.create(&spec(plan, &policy)),
        };
        let slot = slot.map_err(net)?;
        if claimed && let Err(error) = self.engine.name(&slot, plan.name()) {
            tracing::warn!(vm = plan.name(), "{}", Chain(&error));
        }
        self.slots().begin(plan, slot, &policy, metering::Given::of(claimed));
        drop(lists);
        Ok(())
    }

    /// Takes over the slot of a VM that lives in `netns`.
    pub(crate) fn adopt(&self, plan: &VmPlan, netns: OwnedFd) -> Result<(), PartError> {
        let lists = plan.group.lists();
        let policy = plan.compile(&lists)?;
        let adopted = self.engine.adopt(&spec(plan, &policy), netns);
        let slot = adopted.map_err(|error| {
            if !error.left().is_empty() {
                self.slots().stuck.insert(plan.block());
            }
            net(error)
        })?;
        self.slots().begin(plan, slot, &policy, metering::Given::Adopted);
        drop(lists);
        Ok(())
    }

    /// Blocks come from these ranges from now on. A range that is not among them is kept while it has a
    /// slot.
    pub(crate) fn set_ranges(&self, ranges: &[Range]) -> Result<(), PartError> {
        self.engine.set_ranges(ranges).map_err(net)
    }

    /// Opens the sockets of a name server on the gateway address, inside a VM's slot.
    pub(crate) fn open_name_server(&self, block: Block) -> Result<Sockets, PartError> {
        let netns = {
            let slots = self.slots();
            let slot = slots.live.get(&block).ok_or(PartError::NoSlot(block))?;
            slot.netns().try_clone_to_owned().map_err(PartError::io("duplicate", "a namespace"))?
        };
        Sockets::open(netns.as_fd(), block.gateway())
    }

    /// Opens packet sockets on a VM's slot.
    pub(crate) fn view(&self, block: Block) -> Result<SlotView, PartError> {
        let netns = {
            let slots = self.slots();
            let slot = slots.live.get(&block).ok_or(PartError::NoSlot(block))?;
            slot.netns().try_clone_to_owned().map_err(PartError::io("duplicate", "a namespace"))?
        };
        let wires = Wires::open(block, netns.as_fd());
        let wires = wires.map_err(PartError::io("open packet sockets on", format!("the slot of {block}")))?;
        Ok(SlotView { wires, addresses: self.engine.addresses().map_err(net)? })
    }

    /// Takes a VM's slot back for the next one, or hands it over to go; none is fine. Its guest is cut
    /// off when this returns; `told` hears when nothing of it can reach the block's next VM.
    pub(crate) fn give_back(self: &Arc<Self>, block: Block, told: Told) {
        let slot = {
            let mut slots = self.slots();
            if slots.stuck.contains(&block) {
                return tell(&told, Err(PartError::StuckSlot(block)));
            }
            slots.end(&self.engine, block)
        };
        let Some(slot) = slot else { return tell(&told, Ok(())) };
        let gone = {
            let (network, told) = (Arc::clone(self), told.clone());
            move |gone| tell(&told, network.gone(block, gone))
        };
        if !self.warm.has_room() {
            self.slots().metering.count_left(false);
            return self.engine.hand_over(slot, gone);
        }
        let recycled = self.engine.recycle(slot, gone);
        self.slots().metering.count_left(recycled.is_ok());
        match recycled {
            Ok(warm) => match self.warm.take_back(block, warm) {
                None => tell(&told, Ok(())),
                // It was closed meanwhile.
                Some(warm) => tell(&told, self.gone(block, self.engine.discard(warm))),
            },
            Err(why) => tracing::debug!("{}", Chain(&why)),
        }
    }

    fn gone(&self, block: Block, gone: Result<(), NetError>) -> Result<(), PartError> {
        gone.map_err(|error| {
            self.slots().stuck.insert(block);
            net(error)
        })
    }

    /// Takes away slots that were handed over; `false` when that is over. For a thread of its own.
    pub(crate) fn see_off(&self) -> bool {
        self.engine.see_off()
    }

    /// Blocks are free, or not any more: other slots may be the next to be wanted.
    pub(crate) fn nudge(&self) {
        self.warm.nudge();
    }

    /// Waits until slots may have to be made ahead of time; `false` when the network is closed.
    pub(crate) fn due(&self) -> bool {
        self.warm.due()
    }

    /// Makes slots ahead of time, and takes away others that were.
    pub(crate) fn fill(&self, wanted: &Wanted) -> Result<(), NetworkError> {
        Ok(self.warm.fill(&self.engine, wanted)?)
    }

    /// Makes no more slots ahead of time, and takes away those that wait. Nobody will want one.
    pub(crate) fn cool_down(&self) -> Result<(), NetworkError> {
        self.engine.hurry();
        Ok(self.warm.close(&self.engine)?)
    }

    /// What a VMM needs of its slot: the queue of its tap, and the namespace to run in.
    pub(crate) fn nic(&self, block: Block) -> Result<(Nic, OwnedFd), PartError> {
        let slots = self.slots();
        let slot = slots.live.get(&block).ok_or(PartError::NoSlot(block))?;
        let netns = slot.netns().try_clone_to_owned().map_err(PartError::io("duplicate", "a namespace"))?;
        let nic = Nic { tap: slot.open_tap().map_err(net)?, mac: block.guest_mac().octets(), mtu: MTU };
        Ok((nic, netns))
    }

    /// Follows what changed on the host: flushed tables, new addresses and uplinks.
    pub(crate) fn refresh(&self) -> Result<(), NetworkError> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed { Ok(()) } else { Ok(self.engine.refresh()?) }
    }

    /// How long until a repair that had to wait may be tried.
    pub(crate) fn postponed(&self) -> Option<Duration> {
        self.engine.postponed()
    }

    /// Whether [`Network::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the host's table and puts forwarding back.
    pub(crate) fn close(&self) -> Result<(), NetworkError> {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let cooled = self.cool_down();
        self.engine.stop_waiting();
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
        self.engine.close()?;
        cooled
    }

    /// A panic elsewhere leaves a map that is whole: every change of it is one call.
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spec<'a>(plan: &'a VmPlan, policy: &'a CompiledPolicy) -> SlotSpec<'a> {
    let WarmSpec { block, mtu, tap_owner, limits } = slot_of(&plan.group, plan.block());
    SlotSpec { block, vm_name: plan.name(), mtu, policy, tap_owner, limits }
}

/// Nobody listens any more only while the daemon ends.
fn tell(told: &Told, gone: Result<(), PartError>) {
    drop(told.send(gone));
}

fn net(error: NetError) -> PartError {
    PartError::Net(Box::new(error))
}
