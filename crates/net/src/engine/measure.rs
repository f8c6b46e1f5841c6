//! What the judge has counted for a slot, in bounded time: for who asks every few seconds.
//!
//! Owns: reading. Refuses: sums over slots, and what is gone with a slot (the daemon).

use super::Engine;
use super::explain::refuser;
use crate::error::NetError;
use crate::host_table;
use crate::judge::COUNTERS;
use crate::kernel::KernelError;
use crate::reports::Reports;
use crate::slot::Slot;
use crate::{Refused, Refuser};

/// What became of a slot's packets since the slot was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured {
    /// Frames, in the order of [`crate::VERDICTS`].
    pub packets: [u64; COUNTERS],
    /// Their bytes, Ethernet header included; what the kernel cuts into segments later counts once.
    pub bytes: [u64; COUNTERS],
    /// As [`crate::SlotStats::flows_refused`].
    pub flows_refused: u64,
    /// Since its policy changed last; rules of a number beyond the limit together, as
    /// [`Refuser::OtherRules`].
    pub refused: Vec<Refused>,
}

impl Engine {
    /// Refused packets as they happen, for one reader while the engine lives.
    ///
    /// # Errors
    /// [`NetError::Host`] when there is a reader, or no descriptor.
    pub fn reports(&self) -> Result<Reports, NetError> {
        let failed = |e| NetError::Host("read the judge's reports", e);
        let ring = self.kernel.take_reports().map_err(failed)?;
        Reports::new(ring).map_err(|e| failed(KernelError::new("making an event descriptor", e)))
    }

    /// Packets of a slot's tenant that were refused without being told of.
    ///
    /// # Errors
    /// [`NetError::Host`] when that cannot be read.
    pub fn untold(&self, slot: &Slot) -> Result<u64, NetError> {
        let untold = self.kernel.untold(slot.block().id());
        untold.map_err(|e| NetError::Host("read a slot's count of refusals that were not told of", e))
    }

    /// Reads a slot's counters, with a count of its own for each of the first `rules` rules.
    ///
    /// # Errors
    /// [`NetError::Host`] when they cannot be read.
    pub fn measure(&self, slot: &Slot, rules: u32) -> Result<Measured, NetError> {
        let failed = |e| NetError::Host("read a slot's counters", e);
        let id = slot.block().id();
        let counters = self.kernel.counters(id).map_err(failed)?;
        let guest = host_table::guest(slot.block());
        let flows = self.kernel.count(&self.table, host_table::REFUSED_FLOWS, &guest).map_err(failed)?;
        let refused = self.kernel.refusals_below(id, rules).map_err(failed)?;
        let refused = refused.into_iter().map(|(by, packets)| Refused { by: refuser(by), packets });
        Ok(Measured {
            packets: counters.packets,
            bytes: counters.bytes,
            flows_refused: flows.unwrap_or(0),
            refused: refused
                .filter(|refused| refused.packets > 0 || refused.by != Refuser::OtherRules)
                .collect(),
        })
    }
}
