//! Taking over slots of an earlier run whose VMs still live.
//!
//! Owns: which blocks the host's table keeps admitted from the first transaction on, and that a
//! slot is adopted whole or taken away. Refuses: finding the VMs (the daemon), judging whether
//! one should live on.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Engine, EngineConfig, MTU, look, own_links};
use crate::bridge;
use crate::error::{NetError, Step, StepError};
use crate::kernel::{KernelError, Linux};
use crate::limits::Limits;
use crate::plan::Block;
use crate::slot::{Slot, SlotSpec};

impl Engine {
    /// As [`Engine::open`], beside slots of an earlier run of this scope that are to be adopted:
    /// the host's table is replaced in one transaction with their rows in it, so their packets
    /// pass on. Each of `survivors` must be given to [`Engine::adopt`] afterwards; until then the
    /// earlier run's judge, which their interfaces hold, decides about their packets.
    ///
    /// # Errors
    /// As [`Engine::open`]; then the survivors are as they were, but for the host's table.
    pub fn open_beside(config: EngineConfig, survivors: &[(Block, Limits)]) -> Result<Engine, NetError> {
        let kernel = Linux::open().map_err(NetError::Open)?;
        Engine::open_on(Arc::new(kernel), config, survivors)
    }

    /// Takes over a living slot: `netns` is its VMM's network namespace. The judge of this engine,
    /// its maps complete, replaces the earlier one on each hook in one step: no packet passes
    /// unjudged, and none that both allow is lost. Counters begin again at 0.
    ///
    /// # Errors
    /// [`NetError::NotExpected`] for a block that was not among the survivors;
    /// [`NetError::Adopt`] with the step that failed: the slot is taken away then, whatever still
    /// runs in it, and the block stays taken only where that failed, too.
    pub fn adopt(&self, spec: &SlotSpec<'_>, netns: OwnedFd) -> Result<Slot, NetError> {
        let block = spec.block;
        if let Some((key, number)) = spec.limits.mistake() {
            return Err(NetError::Limit(key, number));
        }
        {
            let mut state = self.lock();
            if !state.expected.remove(&block) {
                return Err(NetError::NotExpected(block));
            }
            state.busy.insert(block);
        }
        let adopted = self.host_end(block).and_then(|()| self.fits(spec));
        let adopted = match adopted {
            Ok(()) => self.builder().adopt(spec, netns),
            Err(source) => {
                let unfinished = self.builder().take_away_survivor(block).err();
                Err((source, unfinished))
            }
        };
        match adopted {
            Ok(slot) => self.complete(slot),
            Err((source, unfinished)) => {
                let left = self.free(block, unfinished);
                Err(NetError::Adopt { vm_name: spec.vm_name.to_owned(), block, source, left })
            }
        }
    }

    /// The host's end of the veth, with the marks of this scope.
    fn host_end(&self, block: Block) -> Result<(), StepError> {
        let absent = |e| StepError { step: Step::Outside, source: e };
        let around = look(&*self.kernel).map_err(|e| match e {
            NetError::Host(_, source) | NetError::Open(source) => absent(source),
            other => absent(KernelError::new("RTM_GETLINK", std::io::Error::other(other.to_string()))),
        })?;
        // A slot of another mode would be judged by the wrong programs.
        let bridge = bridge::of(&self.placed(), block).map(|placed| placed.index);
        let ours = own_links(&around, self.scope)
            .any(|link| link.index == block.host_ifindex() && link.master == bridge);
        if ours {
            return Ok(());
        }
        let gone = std::io::Error::from_raw_os_error(libc::ENODEV);
        Err(absent(KernelError::new(format!("looking for {}", block.host_veth()), gone)))
    }

    fn fits(&self, spec: &SlotSpec<'_>) -> Result<(), StepError> {
        let known = self.ranges().iter().any(|range| range.contains(spec.block)) && MTU.contains(&spec.mtu);
        if known {
            return Ok(());
        }
        let source = KernelError::new(
            "a slot in this daemon's ranges",
            std::io::Error::from_raw_os_error(libc::EADDRNOTAVAIL),
        );
        Err(StepError { step: Step::Admit, source })
    }
}
