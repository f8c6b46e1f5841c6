//! Puts back what somebody else on the host took away.
//!
//! Owns: comparing the host with what the engine made, bounded repairs, the pairs in foreign chains.
//! Refuses: when to look (`Engine::refresh`), and losing isolation meanwhile: that is the judge's,
//! which nobody here can reach.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Engine, State};
use crate::bridge;
use crate::error::NetError;
use crate::foreign;
use crate::host_table;
use crate::join;
use crate::kernel::{Answer, KernelError, Place};
use crate::nft::{Batch, ChainSeen, Command, Element, RuleSeen, Table};
use crate::pace::{Pace, Turn};
use crate::plan::Block;
use crate::surroundings::Surroundings;

/// What is repaired, how it looked when it was right, and how often it had to be.
#[derive(Default)]
pub(super) struct Repairs {
    /// The host's table as it was read back after it was written.
    table: Option<(Vec<ChainSeen>, Vec<RuleSeen>)>,
    /// Our rules in foreign chains, by table and chain.
    pairs: BTreeMap<(Table, String), Vec<u64>>,
    /// Foreign chains that we may not change. Said once; tried again whenever something changes.
    refused: BTreeSet<(Table, String)>,
    /// Slots whose interface somebody deleted.
    lost: BTreeSet<Block>,
    pace: Pace,
}

impl Repairs {
    /// Whether `what` may be repaired now. Warns when somebody keeps undoing it.
    pub(super) fn turn(&mut self, what: &str) -> bool {
        match self.pace.turn(what, Instant::now()) {
            Turn::Now => true,
            Turn::Later { told: true } => false,
            Turn::Later { told: false } => {
                tracing::warn!(
                    "another program keeps undoing {what}; it is put back every few seconds only until \
                     that stops (`nft monitor` and `ip monitor` show who changes what)"
                );
                false
            }
        }
    }
}

impl Engine {
    /// How long until a repair that had to wait may be tried: call [`Engine::refresh`] then, even
    /// if nothing changes. `None` when nothing waits.
    #[must_use]
    pub fn postponed(&self) -> Option<Duration> {
        self.lock().repairs.pace.wait(Instant::now())
    }

    /// Writes the host's table and remembers what it looks like.
    pub(super) fn write_table(&self, state: &mut State) -> Answer<()> {
        let (ranges, bridges) = (self.ranges(), self.placed());
        let places = host_table::Places { ranges: &ranges, bridges: &bridges };
        let batch = host_table::render(self.scope, places, &state.sets);
        self.write_and_remember(state, &batch)
    }

    /// The same beside slots whose packets must pass on: over the table of an earlier run where it
    /// has the same shape, else in its place.
    pub(super) fn write_table_over(&self, state: &mut State) -> Answer<()> {
        let held = |set| Ok(self.kernel.elements(&self.table, set)?.into_iter().collect::<BTreeSet<_>>());
        let earlier = host_table::Earlier {
            chains: self.read_table()?.0.into_iter().map(|chain| chain.name).collect(),
            links: held(host_table::LINKS)?,
            all_links: held(host_table::ALL_LINKS)?,
            slots: held(host_table::SLOTS)?,
            opened: held(host_table::OPENED)?,
            bridges: held(bridge::BRIDGES)?,
            routed: held(bridge::ROUTED)?,
        };
        let (ranges, bridges) = (self.ranges(), self.placed());
        let places = host_table::Places { ranges: &ranges, bridges: &bridges };
        match host_table::render_over(self.scope, places, &state.sets, &earlier) {
            // The kernel may know better that the shape is another: sets are not compared here.
            Some(batch) => self.write_and_remember(state, &batch).or_else(|error| {
                tracing::debug!(%error, "the earlier table cannot be written over; it is replaced");
                self.write_table(state)
            }),
            None => self.write_table(state),
        }
    }

    fn write_and_remember(&self, state: &mut State, batch: &Batch) -> Answer<()> {
        state.repairs.table = None;
        self.write(batch)?;
        let seen = self.read_table()?;
        let count = |wanted: fn(&Command) -> bool| batch.0.iter().filter(|c| wanted(c)).count();
        let chains = count(|c| matches!(c, Command::AddChain(..)));
        let rules = count(|c| matches!(c, Command::AddRule(..)));
        // Somebody may have changed it before it was read: then it is not remembered as right.
        let whole = (seen.0.len(), seen.1.len()) == (chains, rules) || seen == (Vec::new(), Vec::new());
        state.repairs.table = whole.then_some(seen);
        Ok(())
    }

    /// Chains and rules of the host's table.
    fn read_table(&self) -> Answer<(Vec<ChainSeen>, Vec<RuleSeen>)> {
        let mut chains = self.kernel.chains()?;
        chains.retain(|c| c.table == self.table);
        chains.sort();
        Ok((chains, self.kernel.rules(&self.table, None)?))
    }

    /// Puts the host's table back where it is gone, emptied or changed.
    pub(super) fn mend_table(&self, state: &mut State) -> Result<(), NetError> {
        let read = |e| NetError::Host("read the host's table", e);
        if self.table_is_whole(state).map_err(read)? || !state.repairs.turn("the host's nf_tables table") {
            return Ok(());
        }
        tracing::warn!(table = %self.table, "another program changed the host's table; it is put back");
        self.write_table(state).map_err(|e| NetError::Host("write the host's table", e))
    }

    fn table_is_whole(&self, state: &State) -> Answer<bool> {
        let elements = |set| self.kernel.elements(&self.table, set);
        // Every engine that has a range has links; one without has nothing to guard.
        let links = self.ranges().is_empty() || !elements(host_table::LINKS)?.is_empty();
        let all = !elements(host_table::ALL_LINKS)?.is_empty();
        if !links || !all || host_table::opened_from(&elements(host_table::OPENED)?) != state.sets.opened {
            return Ok(false);
        }
        let (bridges, routed) = bridge::elements(&self.placed());
        for (set, wanted) in [(bridge::BRIDGES, bridges), (bridge::ROUTED, routed)] {
            let wanted: BTreeSet<Element> = wanted.into_iter().collect();
            if !wanted.is_empty() && elements(set)?.into_iter().collect::<BTreeSet<_>>() != wanted {
                return Ok(false);
            }
        }
        let admitted: BTreeSet<Element> = elements(host_table::SLOTS)?.into_iter().collect();
        let guarded = self.settled(state).all(|block| admitted.contains(&host_table::slot(block)));
        Ok(guarded && Some(self.read_table()?) == state.repairs.table)
    }

    /// Slots that are neither being made, adopted nor taken away.
    fn settled(&self, state: &State) -> impl Iterator<Item = Block> {
        let going = |b: &Block| {
            state.busy.contains(b) || state.expected.contains(b) || state.unfinished.contains_key(b)
        };
        state.sets.slots.keys().filter(move |b| !going(b)).copied()
    }

    /// The same, for a look at the host that comes after.
    pub(super) fn settled_slots(&self) -> BTreeSet<Block> {
        let state = self.lock();
        self.settled(&state).collect()
    }

    /// Puts right what somebody did to slots' interfaces. `before`: the slots that were settled
    /// before `around` was looked at; of others it says nothing.
    pub(super) fn mend_links(&self, state: &mut State, around: &Surroundings, before: &BTreeSet<Block>) {
        let placed = self.placed();
        let blocks: Vec<Block> = self.settled(state).filter(|b| before.contains(b)).collect();
        state.repairs.lost.retain(|b| blocks.contains(b));
        for block in blocks {
            let Some(link) = around.links.get(&block.host_ifindex()) else {
                if state.repairs.lost.insert(block) {
                    tracing::error!(
                        interface = %block.host_veth(),
                        "another program deleted the interface of a microVM, which has no network any \
                         more; make the VM anew"
                    );
                }
                continue;
            };
            state.repairs.lost.remove(&block);
            let changes = join::of(&placed, block).mend(block, link, around);
            if changes.is_empty() || !state.repairs.turn(&format!("the interface {}", block.host_veth())) {
                continue;
            }
            tracing::warn!(
                interface = %block.host_veth(),
                "another program changed the interface of a microVM; it is put right"
            );
            for change in changes {
                match self.kernel.change(Place::Host, &change) {
                    Err(e) if !e.is_absent() => {
                        tracing::warn!(interface = %block.host_veth(), "cannot put it right: {e}");
                    }
                    _ => {}
                }
            }
        }
    }

    /// Sees to it that foreign chains that drop what they do not know have our pairs at their head,
    /// and that no others have them.
    pub(super) fn mend_foreign(&self, state: &mut State) -> Result<(), NetError> {
        let read = |e| NetError::Host("read other programs' firewall chains", e);
        let mark = foreign::mark(self.scope);
        let chains = self.kernel.chains().map_err(read)?;
        let mut pairs = BTreeMap::new();
        let mut locked = BTreeSet::new();
        for chain in chains.iter().filter(|c| foreign::is_foreign_forward(c)) {
            let rules = self.kernel.rules(&chain.table, Some(&chain.name)).map_err(read)?;
            let key = (chain.table.clone(), chain.name.clone());
            let known = state.repairs.pairs.remove(&key).unwrap_or_default();
            let wanted = !self.ranges().is_empty() && foreign::refuses(chain, &rules);
            let right = match wanted {
                true => !known.is_empty() && foreign::holds(&rules, &mark, &known),
                false => foreign::marked(&rules, &mark).is_empty(),
            };
            let what = format!("Enisle's rules in chain {} of {}", chain.name, chain.table);
            let refused = state.repairs.refused.remove(&key);
            if right || !(refused || state.repairs.turn(&what)) {
                pairs.insert(key, known);
                continue;
            }
            match self.put_pairs(chain, &rules, wanted) {
                Ok(now) => {
                    pairs.insert(key, now);
                }
                // A chain that its owner lets nobody change: the rest of the host goes on.
                Err(error) => {
                    if !refused {
                        self.tell_refused(chain, &error);
                    }
                    locked.insert(key);
                }
            }
        }
        pairs.retain(|_, handles| !handles.is_empty());
        state.repairs.pairs = pairs;
        state.repairs.refused = locked;
        Ok(())
    }

    fn tell_refused(&self, chain: &ChainSeen, error: &KernelError) {
        let ranges: Vec<String> = self.ranges().iter().map(ToString::to_string).collect();
        tracing::warn!(
            table = %chain.table,
            chain = chain.name,
            "it drops what it does not know and cannot be changed: {error}: {}; let through what comes from \
             and goes to {} there, or microVMs have no network",
            std::error::Error::source(error).map(ToString::to_string).unwrap_or_default(),
            ranges.join(", ")
        );
    }

    /// Writes or removes the pairs of one chain; the handles of what is there now.
    fn put_pairs(&self, chain: &ChainSeen, rules: &[RuleSeen], wanted: bool) -> Answer<Vec<u64>> {
        let mark = foreign::mark(self.scope);
        let old = foreign::marked(rules, &mark);
        let pairs = foreign::pairs(&self.ranges(), &self.placed());
        let put = |form| self.write(&foreign::put(chain, &old, &pairs, form, &mark));
        let done = match (wanted, foreign::form(chain)) {
            (false, _) => self.write(&foreign::remove(chain, &old)),
            // A kernel without iptables' matches has no iptables either.
            (true, foreign::Form::Iptables) => {
                put(foreign::Form::Iptables).or_else(|_| put(foreign::Form::Native))
            }
            (true, form) => put(form),
        };
        match done {
            // Gone meanwhile: its owner changed it, and the kernel tells of that.
            Err(e) if e.is_absent() => {}
            Err(e) => return Err(e),
            Ok(()) if wanted => tracing::info!(
                table = %chain.table,
                chain = chain.name,
                "it drops what it does not know; packets of microVMs are let through there"
            ),
            Ok(()) => {}
        }
        let now = self.kernel.rules(&chain.table, Some(&chain.name))?;
        Ok(foreign::marked(&now, &mark))
    }

    /// The pairs in foreign chains are for other ranges: they are written anew at the next look.
    pub(super) fn forget_pairs(&self, state: &mut State) {
        state.repairs.pairs.clear();
    }

    /// Takes our pairs out of every foreign chain.
    pub(super) fn leave_foreign(&self) -> Answer<()> {
        let mark = foreign::mark(self.scope);
        for chain in self.kernel.chains()?.iter().filter(|c| foreign::is_foreign_forward(c)) {
            let rules = self.kernel.rules(&chain.table, Some(&chain.name))?;
            let ours = foreign::marked(&rules, &mark);
            if ours.is_empty() {
                continue;
            }
            match self.write(&foreign::remove(chain, &ours)) {
                Err(e) if !e.is_absent() => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, batch: &Batch) -> Answer<()> {
        self.kernel.apply(Place::Host, batch)
    }
}
