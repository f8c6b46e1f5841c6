//! The ranges of an engine: which there are, and others in their place while slots live.
//!
//! Owns: that order, and that a change is made whole or taken back. Refuses: giving up a range that
//! still has a slot.

use std::sync::{Arc, PoisonError};

use ipnet::Ipv4Net;

use super::{Engine, State, cannot_forward, distinct, lease, look, own_links, with};
use crate::error::NetError;
use crate::plan::Range;
use crate::surroundings::Surroundings;

impl Engine {
    /// The ranges of this moment.
    pub(super) fn ranges(&self) -> Arc<[Range]> {
        Arc::clone(&self.ranges.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes other ranges. Slots that live are not touched; a packet of theirs that meets the table while it is replaced
    /// is dropped, and their counts of live flows and buckets of rates begin anew. A range that is not wanted any more is
    /// kept for as long as it has a slot, and let go by a later call; one that overlaps it is refused until then. Blocks
    /// for milliseconds.
    ///
    /// # Errors
    /// As of [`Engine::open`]; then the ranges are as before.
    pub fn set_ranges(&self, wanted: &[Range]) -> Result<(), NetError> {
        // Held to the end: one change at a time.
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let _looking = self.looking();
        let around = look(&*self.kernel)?;
        let mut state = self.lock();
        let old = self.ranges();
        let used = |range: &Range| state.sets.slots.keys().any(|block| range.contains(*block));
        let kept = old.iter().filter(|range| !wanted.contains(range) && used(range));
        let all: Vec<Range> = wanted.iter().chain(kept).copied().collect();
        distinct(&all)?;
        let new: Vec<Range> = all.iter().filter(|range| !old.contains(range)).copied().collect();
        let got = lease(&*self.kernel, &new, &around)?;
        let own = own_links(&around, self.scope).map(|link| link.index).collect();
        for range in &new {
            if let Some(object) = around.in_the_way(range.net(), &own) {
                let next = range.next_free(&with(&around, &all, None));
                return Err(NetError::RangeInUse { range: *range, object, next });
            }
        }
        if *all == *old {
            return Ok(());
        }
        if let Err(error) = self.put_ranges(&mut state, &around, &all, &new) {
            // What could be written before can be written again; the first error is the news.
            let _ = self.put_ranges(&mut state, &around, &old, &[]);
            return Err(error);
        }
        leases.extend(new.into_iter().zip(got));
        leases.retain(|(range, _)| all.contains(range));
        Ok(())
    }

    /// The judge first, so that nothing is open in between.
    fn put_ranges(
        &self,
        state: &mut State,
        around: &Surroundings,
        all: &[Range],
        new: &[Range],
    ) -> Result<(), NetError> {
        *self.ranges.write().unwrap_or_else(PoisonError::into_inner) = all.into();
        self.know(state, around)?;
        let nets: Vec<Ipv4Net> = new.iter().map(Range::net).collect();
        if !nets.is_empty() {
            // Whoever had the addresses before: an answer to it would find a block's first tenant.
            let live = state.sets.slots.keys().map(|block| block.guest()).collect();
            let forgotten = self.kernel.forget_strangers(&nets, &live);
            forgotten.map_err(|e| NetError::Host("forget flows of a new range", e))?;
        }
        self.write_table_over(state).map_err(|e| NetError::Host("write the host's table", e))?;
        self.forward(state, around).map_err(cannot_forward)?;
        self.forget_pairs(state);
        self.mend_foreign(state)
    }
}
