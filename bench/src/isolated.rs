//! Our side: an engine in a world, its slots.
//!
//! Owns: making, numbering and taking away slots through the engine's public interface. Refuses:
//! any short cut past it, and clocks.

use std::net::UdpSocket;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use enisle_net::plan::{Block, Range};
use enisle_net::policy::{CompiledPolicy, PolicySpec, compile};
use enisle_net::{Engine, EngineConfig, Limits, Slot, SlotSpec, WarmSlot, WarmSpec};
use enisle_testkit::tap::{Ident, TapGuest};
use enisle_testkit::world::SERVER;
use enisle_testkit::{World, frame};

/// How long a packet may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where slots come from, in every world.
pub(crate) const RANGE: &str = "10.99.0.0/16";

/// A host with an engine.
pub(crate) struct Isolated {
    pub(crate) engine: Engine,
    pub(crate) world: World,
    range: Range,
    policy: CompiledPolicy,
}

impl Isolated {
    /// A world and its engine; about 100 ms.
    pub(crate) fn new() -> Result<Isolated> {
        let world = World::new()?;
        let range: Range = RANGE.parse()?;
        let engine = world.host.run(|| Engine::open(config()))?;
        Ok(Isolated { engine, world, range, policy: compile(&PolicySpec::default())? })
    }

    /// The `i`th block.
    pub(crate) fn block(&self, i: usize) -> Result<Block> {
        let i = u32::try_from(i)?;
        self.range.block(i).with_context(|| format!("{} has no block {i}", self.range))
    }

    /// A slot as a VM without lists of its own gets it.
    pub(crate) fn create(&self, i: usize) -> Result<Slot> {
        self.create_with(i, &self.policy, Limits::default())
    }

    /// The same with a policy and limits.
    pub(crate) fn create_with(&self, i: usize, policy: &CompiledPolicy, limits: Limits) -> Result<Slot> {
        let block = self.block(i)?;
        let spec = SlotSpec { block, vm_name: "agents-1", mtu: 1500, policy, tap_owner: (0, 0), limits };
        Ok(self.engine.create(&spec)?)
    }

    /// A slot that is nobody's yet.
    pub(crate) fn prepare(&self, i: usize) -> Result<WarmSlot> {
        let spec =
            WarmSpec { block: self.block(i)?, mtu: 1500, tap_owner: (0, 0), limits: Limits::default() };
        Ok(self.engine.prepare(&spec)?)
    }

    /// It becomes a VM's.
    pub(crate) fn claim(&self, warm: WarmSlot) -> Result<Slot> {
        Ok(self.engine.claim(warm, "agents-1", &self.policy)?)
    }

    /// Its guest sends a datagram to a server of the Internet, which arrives; then it is gone.
    pub(crate) fn converse(&self, slot: &Slot) -> Result<()> {
        let guest = TapGuest::new(slot.open_tap()?, ident(slot.block()))?;
        let server = self.world.internet.run(|| UdpSocket::bind((SERVER, 0)))?;
        server.set_read_timeout(Some(PATIENCE))?;
        guest.send(&frame::udp(guest.to(SERVER), 41_000, server.local_addr()?.port(), b"a question"))?;
        server.recv_from(&mut [0; 64]).context("a guest's datagram did not arrive")?;
        Ok(())
    }

    /// It is nobody's again.
    pub(crate) fn recycle(&self, slot: Slot) -> Result<WarmSlot> {
        Ok(self.engine.recycle(slot, drop)?)
    }

    /// Slots `from` to `to`, less `to` itself.
    pub(crate) fn create_many(&self, from: usize, to: usize) -> Result<Vec<Slot>> {
        (from..to).map(|i| self.create(i)).collect()
    }

    /// Takes slots away as a daemon does whose VMs were deleted at once: the engine sets the pace.
    /// Returns when all are gone.
    pub(crate) fn remove_all(&self, slots: Vec<Slot>) -> Result<()> {
        let (tell, told) = mpsc::channel();
        let count = slots.len();
        for slot in slots {
            let tell = tell.clone();
            // Nobody listens any more only when this function has panicked.
            self.engine.hand_over(slot, move |gone| drop(tell.send(gone)));
        }
        for _ in 0..count {
            let gone = loop {
                match told.try_recv() {
                    Ok(gone) => break gone,
                    Err(_) => self.engine.see_off(),
                };
            };
            gone?;
        }
        Ok(())
    }
}

/// Who a block's guest is, to one that is made of frames.
pub(crate) fn ident(block: Block) -> Ident {
    Ident {
        mac: block.guest_mac().octets(),
        ip: block.guest(),
        gateway_mac: block.host_mac().octets(),
        gateway: block.gateway(),
    }
}

/// Generous limits: the path is measured, not the limit.
pub(crate) fn unlimited() -> Limits {
    Limits { flows: Limits::MAX_FLOWS, new_flows_per_s: Limits::MAX_NEW_FLOWS_PER_S, ..Limits::default() }
}

/// What every engine of the benchmark is opened with; each is alone in its world.
pub(crate) fn config() -> EngineConfig {
    #[expect(clippy::unwrap_used, reason = "two constants that parse")]
    EngineConfig { scope: "00be4c00".parse().unwrap(), ranges: vec![RANGE.parse().unwrap()] }
}
