//! The engine of one daemon: its ranges, its host table, its slots.
//!
//! Owns: which blocks have slots, host-wide state and its restoring, pacing. Refuses: the steps of
//! one slot (`slot`), who decides about VMs (the daemon).

mod adopt;
mod bridges;
mod change;
mod departures;
mod explain;
mod leftovers;
mod measure;
mod ranges;
mod repair;
mod warm;

pub use leftovers::{NetLeftovers, leftovers};
pub use measure::Measured;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ipnet::Ipv4Net;

use crate::bridge::{Bridge, Placed};
use crate::error::{NetError, StepError};
use crate::host_table::{self, SetContents};
use crate::judge::SlotStats;
use crate::kernel::{Answer, Kernel, Lease, Linux, Place};
use crate::limits::Limits;
use crate::netlink::route::{Change, Link, LinkSettings};
use crate::nft::{Batch, Table};
use crate::plan::{Block, Range};
use crate::policies::Policies;
use crate::scope::Scope;
use crate::slot::{Builder, Parts, Slot, SlotSpec, Unfinished};
use crate::surroundings::Surroundings;

use departures::Departures;
pub(crate) use explain::refuser;
pub use explain::{Decider, HostFact, Judgement, Question, Refused, Refuser};

/// IPv4's smallest promise (RFC 791) and the largest packet.
const MTU: std::ops::RangeInclusive<u32> = 576..=65_535;

/// What an engine is opened with.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Marks everything this daemon makes.
    pub scope: Scope,
    /// Where slots' blocks come from.
    pub ranges: Vec<Range>,
}

/// The network of all microVMs of one daemon. Methods block for milliseconds and may be called
/// from any thread, also from several at once.
pub struct Engine {
    kernel: Arc<dyn Kernel>,
    scope: Scope,
    table: Table,
    /// Those of this moment; changed by `set_ranges` alone, under the lock of `state`.
    ranges: RwLock<Arc<[Range]>>,
    /// As configured, for as long as the engine is open.
    bridges: Vec<Bridge>,
    /// Those that stand.
    placed: RwLock<Arc<[Placed]>>,
    leases: Mutex<Vec<(Range, Lease)>>,
    looking: Mutex<()>,
    state: Mutex<State>,
    policies: Mutex<Policies>,
    departures: Departures,
}

/// What the engine's slots and host-wide changes are, as last written.
#[derive(Default)]
struct State {
    sets: SetContents,
    /// Slots that could not be taken away whole. Their blocks stay in `sets.slots`.
    unfinished: BTreeMap<Block, Parts>,
    /// Slots of an earlier run that are to be adopted. Their blocks are in `sets.slots`, too.
    expected: BTreeSet<Block>,
    /// The judge's map of what only this host knows.
    hosts: BTreeMap<Ipv4Net, u32>,
    /// The whole host was a router at the last look.
    router: bool,
    /// Blocks whose slots are being made or taken away.
    busy: BTreeSet<Block>,
    repairs: repair::Repairs,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("scope", &self.scope)
            .field("ranges", &self.ranges())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the engine in the calling thread's network namespace, which becomes "the host":
    /// leases the ranges, loads the judge, puts the host's table in place, switches forwarding on
    /// for the interfaces that carry slots' packets.
    ///
    /// # Errors
    /// [`NetError::Open`] where the host lacks something; [`NetError::RangeLeased`],
    /// [`NetError::RangeInUse`] and [`NetError::RangesOverlap`] for a range that cannot be had.
    /// Nothing is left behind.
    pub fn open(config: EngineConfig) -> Result<Engine, NetError> {
        Engine::open_beside(config, &[])
    }

    pub(crate) fn open_on(
        kernel: Arc<dyn Kernel>,
        config: EngineConfig,
        survivors: &[(Block, Limits)],
    ) -> Result<Engine, NetError> {
        Engine::open_among(kernel, config, Vec::new(), survivors)
    }

    pub(crate) fn open_among(
        kernel: Arc<dyn Kernel>,
        config: EngineConfig,
        bridges: Vec<Bridge>,
        survivors: &[(Block, Limits)],
    ) -> Result<Engine, NetError> {
        let EngineConfig { scope, ranges } = config;
        distinct(&ranges)?;
        let around = look(&*kernel)?;
        let leases = lease(&*kernel, &ranges, &around)?;
        let engine = Engine {
            table: scope.table(),
            kernel,
            scope,
            bridges,
            placed: RwLock::new(Arc::new([])),
            leases: Mutex::new(ranges.iter().copied().zip(leases).collect()),
            ranges: RwLock::new(ranges.into()),
            looking: Mutex::default(),
            state: Mutex::default(),
            policies: Mutex::default(),
            departures: Departures::default(),
        };
        engine.ranges_are_free(&around)?;
        {
            let mut state = engine.lock();
            state.expected.extend(survivors.iter().map(|(block, _)| block));
            state.sets.slots.extend(survivors.iter().copied());
        }
        engine.settle(&around)?;
        Ok(engine)
    }

    /// The first look: takes over what an earlier run of this scope switched on, then writes the
    /// table and switches forwarding on. Undone when anything fails.
    fn settle(&self, around: &Surroundings) -> Result<(), NetError> {
        let earlier = self.kernel.elements(&self.table, host_table::OPENED);
        let earlier = earlier.map_err(|e| NetError::Host("read the host's table", e))?;
        {
            let mut state = self.lock();
            if !around.router {
                state.sets.opened = host_table::opened_from(&earlier);
            }
            state.router = around.router;
        }
        let seen = self.prepare_host(around).inspect_err(|_| self.unprepare_host(around))?;
        let around = seen.as_ref().unwrap_or(around);
        let mut state = self.lock();
        let written = match state.expected.is_empty() {
            true => self.write_table(&mut state),
            false => self.write_table_over(&mut state),
        };
        let written = written.map_err(|e| NetError::Host("write the host's table", e));
        let done = written
            .and_then(|()| self.forward(&mut state, around).map_err(cannot_forward))
            .and_then(|()| self.mend_foreign(&mut state));
        drop(state);
        done.inspect_err(|_| {
            // What could be written can be removed; the first error is the news.
            let _ = self.close();
        })
    }

    /// All that comes before the table: bridges, and what the judge is told. Answers with another look where that
    /// made one necessary.
    fn prepare_host(&self, around: &Surroundings) -> Result<Option<Surroundings>, NetError> {
        self.stand_bridges(around)?;
        let seen = if self.bridges.is_empty() { None } else { Some(look(&*self.kernel)?) };
        self.know(&mut self.lock(), seen.as_ref().unwrap_or(around))?;
        Ok(seen)
    }

    /// Takes that back. An earlier run's VMs that live on keep the table of that run, and with it its guard.
    fn unprepare_host(&self, before: &Surroundings) {
        let survivors = !self.lock().expected.is_empty();
        // The error that led here is the news.
        let _ = if survivors { self.remove_new_bridges(before) } else { self.close() };
    }

    /// Makes a slot: guarded, and the judge on its interfaces, before anything in it is up. No packet
    /// passes before the last step, which gives the judge the slot's row.
    ///
    /// # Errors
    /// [`NetError::ForeignBlock`], [`NetError::BlockTaken`], [`NetError::Mtu`], [`NetError::Limit`], or
    /// [`NetError::Create`] with the step that failed; then everything done before is undone.
    pub fn create(&self, spec: &SlotSpec<'_>) -> Result<Slot, NetError> {
        self.take(&spec.warm())?;
        match self.make(|| self.builder().create(spec))? {
            Ok(slot) => self.complete(slot),
            Err((source, unfinished)) => {
                let block = spec.block;
                let left = self.free(block, unfinished);
                Err(NetError::Create { vm_name: spec.vm_name.to_owned(), block, source, left })
            }
        }
    }

    /// The last step: the host forwards what the slot's policy opens, or the slot is taken away.
    fn complete(&self, slot: Slot) -> Result<Slot, NetError> {
        match self.follow_policy() {
            Ok(()) => {
                self.lock().busy.remove(&slot.block());
                Ok(slot)
            }
            Err(error) => {
                self.remove(slot)?;
                Err(error)
            }
        }
    }

    /// Frees a block whose slot is gone; keeps it, with what is left, where it is not.
    fn free(&self, block: Block, unfinished: Option<Box<Unfinished>>) -> Vec<StepError> {
        let mut state = self.lock();
        state.busy.remove(&block);
        match unfinished {
            None => {
                state.sets.slots.remove(&block);
                Vec::new()
            }
            Some(unfinished) => {
                let Unfinished { left, parts } = *unfinished;
                state.unfinished.insert(block, parts);
                left
            }
        }
    }

    /// What the judge did with a slot's packets, and the flows the host's table refused it.
    ///
    /// # Errors
    /// [`NetError::Host`] when the map cannot be read.
    pub fn stats(&self, slot: &Slot) -> Result<SlotStats, NetError> {
        let failed = |e| NetError::Host("read a slot's counters", e);
        let judged = self.kernel.counters(slot.block().id()).map_err(failed)?;
        let guest = host_table::guest(slot.block());
        let refused = self.kernel.count(&self.table, host_table::REFUSED_FLOWS, &guest);
        Ok(SlotStats { flows_refused: refused.map_err(failed)?.unwrap_or(0), ..SlotStats::from(judged) })
    }

    /// This host's own addresses, each with its subnet, in no order.
    ///
    /// # Errors
    /// [`NetError::Host`] when they cannot be read.
    pub fn addresses(&self) -> Result<Vec<Ipv4Net>, NetError> {
        let found = self.kernel.addresses().map_err(|e| NetError::Host("read the host's addresses", e))?;
        Ok(found.into_iter().map(|address| address.net).collect())
    }

    /// Looks at the host again: puts back what somebody took away (the table, slots' interfaces,
    /// the pairs in foreign chains), follows on-link networks, uplinks and their forwarding. Call it
    /// when [`crate::Monitor`] says so, and when [`Engine::postponed`] is over.
    ///
    /// # Errors
    /// [`NetError::Host`]; what could be followed is.
    pub fn refresh(&self) -> Result<(), NetError> {
        let settled = self.settled_slots();
        let _looking = self.looking();
        let around = look(&*self.kernel)?;
        let mut state = self.lock();
        self.know(&mut state, &around)?;
        let failed = |e| NetError::Host("write the host's table", e);
        if around.router && !state.router {
            // Somebody made the host a router meanwhile: what we switched on is theirs now, and
            // not ours to guard or to switch off.
            self.write(&host_table::set_opened(&self.table, &BTreeSet::new())).map_err(failed)?;
            state.sets.opened.clear();
        }
        state.router = around.router;
        self.mend_bridges(&mut state, &around)?;
        self.mend_table(&mut state)?;
        self.forward(&mut state, &around).map_err(cannot_forward)?;
        self.mend_links(&mut state, &around, &settled);
        self.mend_foreign(&mut state)
    }

    /// Finishes what could not be taken away before, and removes interfaces of this scope that no
    /// live slot of this engine has: those of an earlier run, whose VMMs must be dead. Forgets the
    /// flows of everybody in the ranges who has no live slot. Answers how many slots that were.
    ///
    /// # Errors
    /// [`NetError::Remove`] and [`NetError::Host`]; calling it again tries again.
    pub fn reclaim(&self) -> Result<usize, NetError> {
        let unfinished = std::mem::take(&mut self.lock().unfinished);
        let count = unfinished.len();
        let mut failed = None;
        for (block, parts) in unfinished {
            let left = self.free(block, self.builder().take_away(block, parts).err());
            if !left.is_empty() {
                failed = Some(NetError::Remove { block, left });
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let around = look(&*self.kernel)?;
        let live: BTreeSet<u32> = self.lock().sets.slots.keys().map(|b| b.host_ifindex()).collect();
        let dead: Vec<&Link> = own_links(&around, self.scope).filter(|l| !live.contains(&l.index)).collect();
        delete_links(&*self.kernel, &around, self.scope, &dead)?;
        let bridges = self.remove_bridges(&around, false);
        let bridges = bridges.map_err(|e| NetError::Host("delete an earlier run's bridges", e))?;
        // Also of slots that went by themselves, with whoever held them: an answer that is still on its
        // way would find the block's next tenant.
        let mut nets: Vec<Ipv4Net> = self.ranges().iter().map(Range::net).collect();
        nets.extend(dead.iter().filter_map(|l| block_of(l)).map(Block::net));
        let live = self.lock().sets.slots.keys().map(|b| b.guest()).collect();
        if !nets.is_empty() {
            let forgotten = self.kernel.forget_strangers(&nets, &live);
            forgotten.map_err(|e| NetError::Host("forget an earlier run's flows", e))?;
        }
        Ok(count + dead.len() + bridges)
    }

    /// Removes the host's table and restores forwarding. Slots that were not removed lose their
    /// connection; they stay judged.
    ///
    /// # Errors
    /// [`NetError::Host`]; calling it again tries again.
    pub fn close(&self) -> Result<(), NetError> {
        let mut state = self.lock();
        let opened = std::mem::take(&mut state.sets.opened);
        for index in &opened {
            if let Err(e) = self.set_forwarding(*index, false) {
                state.sets.opened = opened;
                return Err(NetError::Host("switch forwarding off again", e));
            }
        }
        self.leave_foreign().map_err(|e| NetError::Host("take rules out of other programs' chains", e))?;
        self.write(&Batch::removing(&self.table))
            .map_err(|e| NetError::Host("remove the host's table", e))?;
        // Those of VMs that live on stay: their ports are on them.
        if self.bridges.is_empty() || !state.expected.is_empty() {
            return Ok(());
        }
        let removed = self.remove_bridges(&look(&*self.kernel)?, true);
        removed.map(drop).map_err(|e| NetError::Host("remove its bridges", e))
    }

    fn builder(&self) -> Builder<'_> {
        Builder {
            kernel: &self.kernel,
            policies: &self.policies,
            scope: self.scope,
            table: &self.table,
            bridges: self.placed(),
        }
    }

    /// A policy may open a network that leaves by an interface nothing left by before.
    fn follow_policy(&self) -> Result<(), NetError> {
        if self.policies().opened().next().is_none() {
            return Ok(());
        }
        let around = look(&*self.kernel)?;
        self.forward(&mut self.lock(), &around).map_err(cannot_forward)
    }

    /// Switches forwarding on where slots' packets come and go, guard first, and off where they no
    /// longer do, guard last. What forwarded before us is left alone.
    fn forward(&self, state: &mut State, around: &Surroundings) -> Answer<()> {
        let placed = self.placed();
        let carriers = match (self.ranges().is_empty(), placed.is_empty()) {
            (true, _) => BTreeSet::new(),
            (false, true) => around.carriers(self.policies().opened()),
            (false, false) => self.carriers_of_bridges(&placed, around),
        };
        let on = |i: &u32| around.links.get(i).is_some_and(|l| l.forwarding);
        let open: Vec<u32> = carriers.iter().copied().filter(|i| !on(i)).collect();
        let keep = |i: &&u32| carriers.contains(i) && around.links.contains_key(i);
        let mut opened: BTreeSet<u32> = state.sets.opened.iter().filter(keep).copied().collect();
        let closed: Vec<u32> = state.sets.opened.difference(&opened).copied().collect();
        opened.extend(&open);
        let guarded: BTreeSet<u32> = opened.union(&state.sets.opened).copied().collect();
        if guarded != state.sets.opened {
            self.write(&host_table::set_opened(&self.table, &guarded))?;
            state.sets.opened = guarded;
        }
        for index in open {
            self.set_forwarding(index, true)?;
        }
        for index in closed {
            self.set_forwarding(index, false)?;
        }
        if opened != state.sets.opened {
            self.write(&host_table::set_opened(&self.table, &opened))?;
            state.sets.opened = opened;
        }
        Ok(())
    }

    /// No error when the interface is gone.
    fn set_forwarding(&self, index: u32, on: bool) -> Answer<()> {
        let settings = LinkSettings { forwarding: Some(on), ..LinkSettings::default() };
        let change = Change::Settings(index, settings);
        match self.kernel.change(Place::Host, &change) {
            Err(e) if e.is_absent() => Ok(()),
            done => done,
        }
    }

    /// Brings the judge's map of the host up to date: what is new first, so that nothing is open
    /// in between.
    fn know(&self, state: &mut State, around: &Surroundings) -> Result<(), NetError> {
        let hosts = around.hosts(&self.ranges());
        let failed = |e| NetError::Host("tell the judge about this host", e);
        for (net, needed) in &hosts {
            if state.hosts.get(net) != Some(needed) {
                self.kernel.set_host(*net, *needed).map_err(failed)?;
                state.hosts.insert(*net, *needed);
            }
        }
        let gone: Vec<Ipv4Net> = state.hosts.keys().filter(|n| !hosts.contains_key(n)).copied().collect();
        for net in gone {
            self.kernel.remove_host(net).map_err(failed)?;
            state.hosts.remove(&net);
        }
        Ok(())
    }

    /// Nothing else on the host has addresses in the ranges and in the subnets of bridges.
    fn ranges_are_free(&self, around: &Surroundings) -> Result<(), NetError> {
        let ranges = self.ranges();
        // With bridges of an earlier run, which go when nobody wants them: `reclaim`.
        let own = own_links(around, self.scope).chain(bridges::own_bridges(around, self.scope));
        let own: BTreeSet<u32> = own.map(|link| link.index).collect();
        let bridges: BTreeSet<u32> = self.bridge_links(around).union(&own).copied().collect();
        for range in ranges.iter() {
            let own = if self.bridges.iter().any(|b| b.range == *range) { &bridges } else { &own };
            if let Some(object) = around.in_the_way(range.net(), own) {
                let next = range.next_free(&with(around, &ranges, None));
                return Err(NetError::RangeInUse { range: *range, object, next });
            }
        }
        self.subnets_are_free(around, &bridges)
    }

    /// Held from a look at the host to what is made of it: of two looks the later one has the last word.
    fn looking(&self) -> MutexGuard<'_, ()> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn policies(&self) -> MutexGuard<'_, Policies> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes everything of a scope from the calling thread's namespace: for a daemon that is not to
/// run again, or whose configuration is gone. Its processes must be dead.
///
/// # Errors
/// [`NetError::Open`] and [`NetError::Host`].
pub fn reclaim(scope: Scope) -> Result<usize, NetError> {
    let kernel = Linux::open().map_err(NetError::Open)?;
    let engine = Engine::open_on(Arc::new(kernel), EngineConfig { scope, ranges: Vec::new() }, &[])?;
    let links = engine.reclaim()?;
    engine.close()?;
    Ok(links)
}

fn cannot_forward(e: crate::kernel::KernelError) -> NetError {
    NetError::Host("switch forwarding on", e)
}

fn look(kernel: &dyn Kernel) -> Result<Surroundings, NetError> {
    let failed = |e| NetError::Host("read the host's interfaces and routes", e);
    let links = kernel.links().map_err(failed)?;
    Ok(Surroundings {
        links: links.into_iter().map(|l| (l.index, l)).collect::<BTreeMap<_, _>>(),
        addresses: kernel.addresses().map_err(failed)?,
        routes: kernel.routes().map_err(failed)?,
        neighbours: kernel.neighbours().map_err(failed)?,
        router: kernel.routes_for_all().map_err(failed)?,
    })
}

fn distinct(ranges: &[Range]) -> Result<(), NetError> {
    for (i, a) in ranges.iter().enumerate() {
        if let Some(b) = ranges[i + 1..].iter().find(|b| a.overlaps(b)) {
            return Err(NetError::RangesOverlap(*a, *b));
        }
    }
    Ok(())
}

fn lease(kernel: &dyn Kernel, ranges: &[Range], around: &Surroundings) -> Result<Vec<Lease>, NetError> {
    let mut leases = Vec::new();
    for range in ranges {
        match kernel.lease(range).map_err(NetError::Open)? {
            Ok(lease) => leases.push(lease),
            Err(by) => {
                let next = range.next_free(&with(around, ranges, Some(by)));
                return Err(NetError::RangeLeased { range: *range, by, next });
            }
        }
    }
    Ok(leases)
}

/// What a proposed range must keep clear of.
fn with(around: &Surroundings, ranges: &[Range], by: Option<Range>) -> Vec<Ipv4Net> {
    let mut taken = around.taken();
    taken.extend(ranges.iter().chain(&by).map(Range::net));
    taken
}

/// Interfaces that carry this scope's marks, both of them.
fn own_links(around: &Surroundings, scope: Scope) -> impl Iterator<Item = &Link> {
    let prefix = scope.alias_prefix();
    around.links.values().filter(move |l| {
        l.group == scope.group()
            && (l.alias.starts_with(&prefix) || l.alias.is_empty())
            && l.name.starts_with("en-")
    })
}

/// By its name, which no two daemons share and which needs no ranges.
fn block_of(link: &Link) -> Option<Block> {
    let guest = u32::from_str_radix(link.name.strip_prefix("en-")?, 16).ok()?;
    let block = Block::from_guest(guest.into());
    (block.host_ifindex() == link.index).then_some(block)
}

/// By group where the whole group is dead: one wait for all instead of one for each.
fn delete_links(
    kernel: &dyn Kernel,
    around: &Surroundings,
    scope: Scope,
    dead: &[&Link],
) -> Result<(), NetError> {
    let group = scope.group();
    let members = around.links.values().filter(|l| l.group == group).count();
    let changes = if dead.is_empty() {
        Vec::new()
    } else if members == dead.len() {
        vec![Change::DeleteGroup(group)]
    } else {
        dead.iter().map(|l| Change::DeleteLink(l.index)).collect()
    };
    for change in changes {
        match kernel.change(Place::Host, &change) {
            Err(e) if !e.is_absent() => {
                return Err(NetError::Host("delete an earlier run's interfaces", e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The steps that are left, for callers that only log.
impl NetError {
    /// Every step that could not be undone.
    #[must_use]
    pub fn left(&self) -> &[StepError] {
        match self {
            NetError::Create { left, .. }
            | NetError::Prepare { left, .. }
            | NetError::Adopt { left, .. }
            | NetError::Remove { left, .. } => left,
            _ => &[],
        }
    }
}
