//! The two ways from a tap to the Internet: ours, and a plain bridge with masquerade.
//!
//! Owns: making either, with the same kind of tap (`IFF_VNET_HDR`, one queue). Refuses: making the
//! plain one slower than it has to be: one rule, in a host without any other.

use std::fs::File;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use enisle_net::Slot;
use enisle_net::policy::CompiledPolicy;
use enisle_testkit::World;
use enisle_testkit::queue::persistent_tap;
use enisle_testkit::tap::Ident;

use crate::isolated::{Isolated, ident, unlimited};

const GUEST_MAC: [u8; 6] = [0x02, 0xbe, 0, 0, 0, 2];
const BRIDGE_MAC: [u8; 6] = [0x02, 0xbe, 0, 0, 0, 1];
const BRIDGE_RULES: &str = "net/bridge/bridge-nf-call-iptables";
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 1);

/// A queue into one of them, and who the guest at its end is.
pub(super) struct Track {
    pub(super) tap: File,
    pub(super) ident: Ident,
    /// Length of the gateway's network.
    pub(super) prefix: u8,
    slot: Option<Slot>,
}

/// A host with a bridge, a tap in it, and masquerade.
pub(super) struct Bridged {
    pub(super) world: World,
    tap: File,
}

impl Bridged {
    pub(super) fn new() -> Result<Bridged> {
        let world = World::new()?;
        let host = &world.host;
        host.set_sysctl("net/ipv4/ip_forward", "1")?;
        let tap = host.run(|| persistent_tap("tap0")).context("make a tap")?;
        let mac = |mac: [u8; 6]| mac.map(|b| format!("{b:02x}")).join(":");
        let (bridge, guest) = (mac(BRIDGE_MAC), mac(GUEST_MAC));
        let batch = format!(
            "link add br0 address {bridge} type bridge\naddr add {GATEWAY}/24 dev br0\n\
             link set tap0 master br0\nlink set tap0 up\nlink set br0 up\n\
             neigh replace {GUEST} lladdr {guest} dev br0 nud permanent\n"
        );
        host.check("ip", &["-batch", "-"], &batch)?;
        // Where br_netfilter is loaded, a bridge hands every packet to the rules of IP, too. A plain one
        // does not.
        if host.sysctl(BRIDGE_RULES).is_ok() {
            host.set_sysctl(BRIDGE_RULES, "0")?;
        }
        let rule = "table ip plain { chain postrouting { type nat hook postrouting priority 100; \
                    ip saddr 10.92.0.0/24 oifname eth0 masquerade; }\n}\n";
        host.check("nft", &["-f", "-"], rule)?;
        Ok(Bridged { world, tap })
    }
}

impl Track {
    /// The `i`th slot of an engine.
    pub(super) fn isolated(ours: &Isolated, i: usize, policy: &CompiledPolicy) -> Result<Track> {
        let slot = ours.create_with(i, policy, unlimited())?;
        let block = slot.block();
        let ident = ident(block);
        let tap = File::from(slot.open_tap()?);
        nonblocking(&tap)?;
        Ok(Track { tap, ident, prefix: block.net().prefix_len(), slot: Some(slot) })
    }

    /// The tap in the bridge.
    pub(super) fn bridged(bridged: &Bridged) -> Result<Track> {
        let ident = Ident { mac: GUEST_MAC, ip: GUEST, gateway_mac: BRIDGE_MAC, gateway: GATEWAY };
        let tap = bridged.tap.try_clone()?;
        nonblocking(&tap)?;
        Ok(Track { tap, ident, prefix: 24, slot: None })
    }

    /// Takes an isolated one away.
    pub(super) fn leave(self, ours: &Isolated) -> Result<()> {
        drop(self.tap);
        self.slot.map_or(Ok(()), |slot| Ok(ours.engine.remove(slot)?))
    }
}

fn nonblocking(tap: &File) -> Result<()> {
    rustix::io::ioctl_fionbio(tap, true).context("make a tap non-blocking")
}
