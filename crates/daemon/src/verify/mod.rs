//! `enisle net verify`: the contract of `docs/networking.md`, asked of a real guest.
//!
//! ```text
//!  agent ──frame──▶ tap ──▶ judge ──▶ host's end of the veth ──▶ host, Internet
//!           what was asked │      │ what was let out
//!     what the guest is told ◀────┘            ▲ what the daemon puts there, to the guest
//! ```
//!
//! Every row has a live oracle, and none of them is the guest: packet sockets of the daemon before and
//! behind the judge, and listeners on the host. A probe counts as sent when the very frame was seen on
//! its way to the judge, as refused when the reset or the ICMP error was seen on its way back, as let
//! through when it was seen on the host's end of the veth. So a guest that lies can make a row fail or
//! be inconclusive; it can make none right.
//!
//! Positive controls: before and after each batch the daemon puts a frame of its own behind the judge, which
//! must be seen there; what the policy allows must be seen there, for TCP, UDP and ICMP (some five packets
//! to one address on the Internet); a listener must have answered the host; a stray reset from an allowed
//! address must reach the guest. Where one fails, nothing is proven, and the run fails.
//!
//! Owns: composition and bounds. Refuses: to change the host's network, to change a policy under a
//! flow (row 13) and to flood (row 15): those are proven by the tests of this project.

mod frames;
mod judge;
mod oracle;
mod probe;
mod report;
mod rows;
mod rows_forged;
mod rows_inbound;
mod run;
mod subject;

use crate::parts::{PartError, SlotView};
use crate::vm::registry::{Registry, Unready};
use crate::vm::{Handle, VmError};
use enisle_api::verify::{Verified, Verify};
use enisle_api::{CreateVm, Removal};
use enisle_net::policy::FLOOR;
use oracle::{Canary, Sniffers};
use probe::{Honest, Run};
use rows::Rows;
use run::Examination;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;
use subject::Subject;
use tokio::time::timeout;

/// Names of VMs that are made for this start so.
const PREFIX: &str = "enisle-verify-";
/// A VM that still boots is waited for this long.
const READY_PATIENCE: Duration = Duration::from_secs(80);
/// Asking all rows takes some ten seconds; an emulated guest on a busy machine takes longer.
const LIMIT: Duration = Duration::from_secs(240);
/// Used where the group names no public resolver. Anycast, so it is near everybody.
const CONTROL: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);
/// Its port unless another is given.
const CONTROL_PORT: u16 = 443;

/// Examines a VM, or one that is made for it and removed afterwards, whatever the outcome: a dropped future
/// (its client went away) leaves the removal to the VM's owner task.
pub(crate) async fn verify(registry: &Registry, ask: &Verify) -> Result<Verified, VmError> {
    let control = ask.control.as_deref().map(parse_control).transpose()?;
    if let Some(name) = &ask.vm {
        let vm = registry.get(name)?;
        vm.answers()?;
        vm.ready(READY_PATIENCE).await?;
        return examine(registry, &vm, control).await;
    }
    let create = CreateVm {
        group: ask.group.clone(),
        name: Some(format!("{PREFIX}{:08x}", u32::from_be_bytes(random()?))),
        // The group's script is for VMs that work.
        userdata: Some(String::new()),
        wait: true,
        timeout_ms: ask.timeout_ms,
        ..CreateVm::default()
    };
    let vm = Unready::new(registry.start_and_wait(&create).await?);
    let outcome = examine(registry, vm.handle(), control).await;
    let removed = vm.handle().remove(Removal::Deleted).await;
    let mut verified = outcome?;
    removed?;
    verified.throw_away = true;
    Ok(verified)
}

async fn examine(
    registry: &Registry,
    vm: &Handle,
    control: Option<SocketAddrV4>,
) -> Result<Verified, VmError> {
    let _place = vm.stream_place()?;
    tokio::select! {
        done = timeout(LIMIT, asked(registry, vm, control)) => match done {
            Ok(done) => done,
            Err(_) => Err(VmError::NotReady { name: vm.name().to_owned(), patience: LIMIT }),
        },
        // Its sockets must go with it.
        ended = vm.guest_ended() => Err(ended),
    }
}

async fn asked(registry: &Registry, vm: &Handle, control: Option<SocketAddrV4>) -> Result<Verified, VmError> {
    let failed = |source| VmError::Verify { name: vm.name().to_owned(), source };
    let io = |what| move |source| failed(PartError::io("open", what)(source));
    let plan = vm.plan();
    let machine = vm.machine_now().ok_or_else(|| VmError::Stopping { name: vm.name().to_owned() })?;
    let SlotView { wires, addresses } = registry.parts().view_slot(plan).await.map_err(failed)?;
    let sniffers = Sniffers::new(wires).map_err(io("packet sockets"))?;
    let own: Vec<Ipv4Addr> = addresses.iter().map(ipnet::Ipv4Net::addr).collect();
    let canary = tokio::task::spawn_blocking(move || Canary::open(&own)).await;
    let canary =
        canary.map_err(|_| failed(PartError::Panicked("opening listeners")))?.map_err(io("listeners"))?;
    let siblings =
        registry.list().iter().map(|other| other.plan().block()).filter(|b| *b != plan.block()).collect();
    let (policy, drop) = {
        let lists = plan.group.lists();
        let policy = plan.compile(&lists).map_err(|error| failed(error.into()))?;
        (policy, [&lists.drop[..], &plan.own_lists().drop].concat())
    };
    let subject = Subject {
        block: plan.block(),
        policy,
        drop,
        control: control.unwrap_or_else(|| default_control(&plan.group.config.network.dns)),
        group: plan.group.clone(),
        hosts: addresses,
        siblings,
        canary: canary.port,
    };
    let [_, random @ ..] = random()?;
    let run = Run::new(random);
    let list = Rows::of(&subject, run);
    let guest = Honest {
        mac: subject.block.guest_mac().octets(),
        gateway_mac: subject.block.host_mac().octets(),
        address: subject.block.guest(),
    };
    let mut examination = Examination::new(list.rows, run, guest, sniffers, canary);
    examination.ask_all(&*machine).await;
    Ok(report::report(vm.name(), &subject, examination, list.untested))
}

fn parse_control(text: &str) -> Result<SocketAddrV4, VmError> {
    let address = || text.parse::<Ipv4Addr>().map(|address| SocketAddrV4::new(address, CONTROL_PORT));
    let wrong = VmError::OutOfRange { field: "control", rule: "must be ADDRESS or ADDRESS:PORT, of IPv4" };
    text.parse().or_else(|_| address()).map_err(|_| wrong)
}

/// The group's first resolver that is on the Internet, else one that everybody can reach.
fn default_control(resolvers: &[Ipv4Addr]) -> SocketAddrV4 {
    let public = |address: &&Ipv4Addr| !FLOOR.iter().any(|row| row.net.contains(*address));
    SocketAddrV4::new(resolvers.iter().find(public).copied().unwrap_or(CONTROL), CONTROL_PORT)
}

fn random() -> Result<[u8; 4], VmError> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|_| VmError::NoRandomness)?;
    Ok(bytes)
}

/// For the fuzzer: a frame off a guest's tap, read in every way a frame is read here.
#[doc(hidden)]
pub fn fuzz_sniffed(frame: &[u8]) {
    let to = SocketAddrV4::new(Ipv4Addr::new(1, 1, 1, 1), 53);
    for protocol in [1, 6, 17] {
        let flow = probe::Flow { protocol, from: Some(40_000), to };
        let _ = probe::back(Some(&flow), true, frame);
        let _ = probe::is_of_flow(&flow, frame);
    }
    let _ = probe::back(None, true, frame);
    let _ = Run::new([1, 2, 3]).row_in(frame);
}

#[cfg(test)]
mod tests;
