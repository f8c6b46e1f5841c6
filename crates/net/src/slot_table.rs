//! The constant tables inside a VM's namespace.
//!
//! Owns: what the namespace answers to what the judge left to it, and that nothing else happens
//! there. Refuses: policy; these rules are the same for every VM.
//!
//! Answers are made at the tap's own ingress, after the judge: they need no route, no connection
//! tracking and none of the namespace's ICMP limits, and no packet of the guest gets further.

use crate::judge::MARK_SERVICE;
use crate::nft::{Base, Batch, Chain, ChainName, Command, Family, Hook, Policy, Rule, Table};

/// The tap's name inside.
pub(crate) const TAP: &str = "tap0";
/// The veth's name inside.
pub(crate) const PEER: &str = "ve";

/// Interface index of the loopback, the first of every namespace.
pub(crate) const LOOPBACK: u32 = 1;
/// The one service a gateway may have.
const DNS: u16 = 53;

/// Refusals answered in a second; beyond, refused packets are dropped.
const ANSWERS_PER_SECOND: u64 = 1000;
const ANSWERS_AT_ONCE: u32 = 500;

/// Both tables, in one transaction. The tap must exist.
pub(crate) fn render() -> Batch {
    let netdev = table(Family::Netdev);
    let inet = table(Family::Inet);
    let chain = |name, hook, policy| Chain {
        name: ChainName(name, None),
        base: Some(Base { nat: false, hook, priority: 0, policy }),
    };
    let refuse = |rule| Command::AddRule(netdev.clone(), "refuse".into(), rule);
    let rule = |chain: &'static str, rule| Command::AddRule(inet.clone(), chain.into(), rule);
    Batch(vec![
        Command::AddTable(netdev.clone()),
        Command::AddChain(netdev.clone(), chain("refuse", Hook::Ingress(TAP), Policy::Drop)),
        // The judge lets one kind of ARP through: the guest asking for its gateway.
        refuse(Rule::new().arp().accept()),
        refuse(Rule::new().mark(MARK_SERVICE).accept()),
        refuse(Rule::new().faster_than(ANSWERS_PER_SECOND, ANSWERS_AT_ONCE).drop()),
        refuse(Rule::new().tcp().reset()),
        refuse(Rule::new().prohibit_ipv4()),
        // A second lock: no packet is ever routed here, and the namespace says nothing but what
        // a service on the gateway answers.
        Command::AddTable(inet.clone()),
        Command::AddChain(inet.clone(), chain("input", Hook::Input, Policy::Drop)),
        Command::AddChain(inet.clone(), chain("forward", Hook::Forward, Policy::Drop)),
        Command::AddChain(inet.clone(), chain("output", Hook::Output, Policy::Drop)),
        rule("input", Rule::new().iif(LOOPBACK).accept()),
        rule("input", Rule::new().mark(MARK_SERVICE).accept()),
        rule("output", Rule::new().oif(LOOPBACK).accept()),
        rule("output", Rule::new().udp().source_port(DNS).accept()),
        rule("output", Rule::new().tcp().source_port(DNS).accept()),
        rule("output", Rule::new().icmp_unreachable().accept()),
    ])
}

fn table(family: Family) -> Table {
    Table { family, name: "enisle".into() }
}
