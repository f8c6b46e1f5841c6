//! The host's table: one for each daemon, a constant number of rules, sets keyed by slot.
//!
//! Owns: what the rules say. Refuses: talking to the kernel (`engine`). The boundary is the judge
//! inside each VM's namespace; this table is reachability, flow state, and a second, independent
//! guard.

use std::collections::{BTreeMap, BTreeSet};

use crate::bridge::{self, Placed};
use crate::limits::Limits;
use crate::nft::{
    Base, Batch, Chain, ChainName, Command, Contents, Element, Hook, Key, Policy, Rule, Set, State, Table,
    Verdict,
};
use crate::plan::{Block, Range};
use crate::scope::Scope;

/// `iface . ipv4` of every slot.
pub(crate) const SLOTS: &str = "slots";
/// Interface indexes this daemon's slots may have.
pub(crate) const LINKS: &str = "links";
/// Interface indexes any daemon's slots may have.
pub(crate) const ALL_LINKS: &str = "all_links";

/// Interfaces on which this daemon switched forwarding on.
pub(crate) const OPENED: &str = "opened";
/// Live flows by slot. Rules put its elements in, and the kernel takes empty ones out.
pub(crate) const FLOWS: &str = "flows";
/// How many flows a slot may begin, and the chain that knows how many it may have.
const NEW_FLOWS: &str = "new_flows";
/// How many a slot was refused.
pub(crate) const REFUSED_FLOWS: &str = "refused_flows";

/// Indexes of slot interfaces: 29 bits below this prefix (`plan`).
const FIRST_LINK: u32 = 0x4000_0000;
const LAST_LINK: u32 = 0x5fff_ffff;
/// Slots that can have live flows at a time: as many as the judge's maps hold.
const FLOW_OWNERS: u32 = 65_536;

const RAW: i32 = -300;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

/// What the sets hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SetContents {
    pub(crate) slots: BTreeMap<Block, Limits>,
    pub(crate) opened: BTreeSet<u32>,
}

/// Where VMs are.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    /// All of them, those of bridges included.
    pub(crate) ranges: &'a [Range],
    pub(crate) bridges: &'a [Placed],
}

/// The whole table, replacing one that exists, in one transaction.
pub(crate) fn render(scope: Scope, places: Places<'_>, contents: &SetContents) -> Batch {
    let Places { ranges, bridges } = places;
    let table = &scope.table();
    let mut batch = Batch::replacing(table);
    let commands = &mut batch.0;
    commands.extend(sets(bridges).map(|set| Command::AddSet(table.clone(), set)));
    commands.extend(chains(bridges).map(|chain| Command::AddChain(table.clone(), chain)));
    let rules = rules(scope.group(), places);
    let add = |(chain, rule): (&'static str, Rule)| Command::AddRule(table.clone(), chain.into(), rule);
    commands.extend(rules.into_iter().map(add));
    let mut distinct: BTreeSet<u32> = contents.slots.values().map(|limits| limits.flows).collect();
    distinct.insert(Limits::default().flows);
    commands.extend(distinct.into_iter().flat_map(|flows| flow_chain(table, flows)));
    let mut fill = |set, elements: Vec<Element>| {
        if !elements.is_empty() {
            commands.push(Command::AddElements(table.clone(), set, elements));
        }
    };
    fill(LINKS, link_intervals(ranges));
    fill(ALL_LINKS, Element::interval(FIRST_LINK, LAST_LINK).collect());

    let (all, routed) = bridge::elements(bridges);
    fill(bridge::BRIDGES, all);
    fill(bridge::ROUTED, routed);
    fill(OPENED, contents.opened.iter().map(|i| link(*i)).collect());
    fill(NEW_FLOWS, contents.slots.iter().map(|(b, limits)| new_flows(*b, limits)).collect());
    fill(REFUSED_FLOWS, contents.slots.keys().map(|b| guest(*b).with(State::Counter)).collect());
    fill(SLOTS, contents.slots.keys().map(|b| slot(*b)).collect());
    batch
}

/// What a table of an earlier run holds, as far as it decides whether it can be written over.
pub(crate) struct Earlier {
    pub(crate) chains: BTreeSet<String>,
    pub(crate) links: BTreeSet<Element>,
    pub(crate) all_links: BTreeSet<Element>,
    pub(crate) slots: BTreeSet<Element>,
    pub(crate) opened: BTreeSet<Element>,
    /// Of [`bridge::BRIDGES`] and of [`bridge::ROUTED`].
    pub(crate) bridges: BTreeSet<Element>,
    pub(crate) routed: BTreeSet<Element>,
}

/// The whole table over one of the same shape, in one transaction; `None` when its shape is another.
///
/// The rules are made anew, but the sets stay that every packet is looked up in: nf_tables reads the
/// generation once for the rules and again for each lookup, so under a packet in flight a set that is
/// replaced with its table looks empty, and an admitted packet is dropped.
pub(crate) fn render_over(
    scope: Scope,
    places: Places<'_>,
    contents: &SetContents,
    earlier: &Earlier,
) -> Option<Batch> {
    let table = &scope.table();
    let Batch(whole) = render(scope, places, contents);
    let chains: Vec<ChainName> = whole
        .iter()
        .filter_map(|command| match command {
            Command::AddChain(_, chain) => Some(chain.name),
            _ => None,
        })
        .collect();
    let links: BTreeSet<Element> = link_intervals(places.ranges).into_iter().collect();
    let all_links: BTreeSet<Element> = Element::interval(FIRST_LINK, LAST_LINK).collect();
    // Ranges that come or go, unless one that touches another changes its interval.
    let nested = earlier.links.is_subset(&links) || links.is_subset(&earlier.links);
    let same = earlier.chains == chains.iter().map(ToString::to_string).collect()
        && nested
        && earlier.all_links == all_links;
    if !same {
        return None;
    }
    // Only the first packet of a flow is looked up in these; where that fails it is told.
    let anew = [NEW_FLOWS, REFUSED_FLOWS, FLOWS];
    let mut commands: Vec<Command> =
        chains.iter().map(|name| Command::FlushChain(table.clone(), *name)).collect();
    commands.extend(anew.map(|set| Command::FlushSet(table.clone(), set)));
    commands.extend(whole.into_iter().filter(|command| match command {
        Command::AddTable(_) | Command::DeleteTable(_) => false,
        Command::AddElements(_, set, _) => anew.contains(set),
        _ => true,
    }));
    let difference =
        |a: &BTreeSet<Element>, b: &BTreeSet<Element>| a.difference(b).cloned().collect::<Vec<_>>();
    let slots = contents.slots.keys().map(|b| slot(*b)).collect();
    let opened = contents.opened.iter().map(|i| link(*i)).collect();
    let (all, routed) = bridge::elements(places.bridges);
    let (all, routed) = (all.into_iter().collect(), routed.into_iter().collect());
    let held = [
        (bridge::BRIDGES, &earlier.bridges, &all),
        (bridge::ROUTED, &earlier.routed, &routed),
        (LINKS, &earlier.links, &links),
        (SLOTS, &earlier.slots, &slots),
        (OPENED, &earlier.opened, &opened),
    ];
    for (set, was, is) in held {
        let (gone, new) = (difference(was, is), difference(is, was));
        if !gone.is_empty() {
            commands.push(Command::DeleteElements(table.clone(), set, gone));
        }
        if !new.is_empty() {
            commands.push(Command::AddElements(table.clone(), set, new));
        }
    }
    Some(Batch(commands))
}

/// Lets a slot's packets past the guard, and its flows begin.
pub(crate) fn admit(table: &Table, block: Block, limits: &Limits) -> Batch {
    let add = |set, element| Command::AddElements(table.clone(), set, vec![element]);
    // The usual one is part of the table.
    let usual = limits.flows == Limits::default().flows;
    let mut commands = if usual { Vec::new() } else { flow_chain(table, limits.flows) };
    commands.extend([
        add(NEW_FLOWS, new_flows(block, limits)),
        add(REFUSED_FLOWS, guest(block).with(State::Counter)),
        add(SLOTS, slot(block)),
    ]);
    Batch(commands)
}

/// Takes that back.
pub(crate) fn expel(table: &Table, blocks: &[Block]) -> Batch {
    let delete = |set, elements| Command::DeleteElements(table.clone(), set, elements);
    let guests = || blocks.iter().copied().map(guest).collect();
    Batch(vec![
        delete(SLOTS, blocks.iter().copied().map(slot).collect()),
        delete(NEW_FLOWS, guests()),
        delete(REFUSED_FLOWS, guests()),
    ])
}

/// Forgets how many flows a slot has; it may be that the kernel did already.
pub(crate) fn forget_flows(table: &Table, block: Block) -> Batch {
    Batch(vec![Command::DeleteElements(table.clone(), FLOWS, vec![guest(block)])])
}

/// The chain for slots that may have `flows` flows, made anew. There is one for each number that
/// slots have or had, since the kernel's counting expression holds the number; the counts themselves
/// are in [`FLOWS`].
fn flow_chain(table: &Table, flows: u32) -> Vec<Command> {
    let name = flow_chain_name(flows);
    let rule = Rule::new().flows_over(FLOWS, flows).goto("too_many");
    vec![
        Command::AddChain(table.clone(), Chain { name, base: None }),
        Command::FlushChain(table.clone(), name),
        Command::AddRule(table.clone(), name, rule),
    ]
}

fn flow_chain_name(flows: u32) -> ChainName {
    ChainName("flows", Some(flows))
}

/// Beyond the rate the lookup finds nothing, and the packet is refused by what follows.
fn new_flows(block: Block, limits: &Limits) -> Element {
    let limit = State::Limit { per_second: u64::from(limits.new_flows_per_s), burst: limits.burst() };
    guest(block).with(limit).leading_to(Verdict::Goto(flow_chain_name(limits.flows)))
}

/// A key of the sets by address.
pub(crate) fn guest(block: Block) -> Element {
    Element::value(&block.guest().octets())
}

/// Replaces the interfaces that forward for slots only.
pub(crate) fn set_opened(table: &Table, links: &BTreeSet<u32>) -> Batch {
    let mut commands = vec![Command::FlushSet(table.clone(), OPENED)];
    if !links.is_empty() {
        let elements = links.iter().map(|i| link(*i)).collect();
        commands.push(Command::AddElements(table.clone(), OPENED, elements));
    }
    Batch(commands)
}

/// Reads [`OPENED`] back.
pub(crate) fn opened_from(elements: &[Element]) -> BTreeSet<u32> {
    let index = |e: &Element| e.key.as_slice().try_into().ok().map(u32::from_ne_bytes);
    elements.iter().filter_map(index).collect()
}

fn sets(bridges: &[Placed]) -> impl Iterator<Item = Set> {
    let of_bridges = if bridges.is_empty() { None } else { Some([bridge::BRIDGES, bridge::ROUTED]) };
    let set = |name, key, contents| Set { name, key, contents };
    [
        set(SLOTS, Key::InterfaceAddress, Contents::Values),
        set(LINKS, Key::Interface, Contents::Intervals),
        set(ALL_LINKS, Key::Interface, Contents::Intervals),
        set(OPENED, Key::Interface, Contents::Values),
        set(FLOWS, Key::Address, Contents::Dynamic(FLOW_OWNERS)),
        set(NEW_FLOWS, Key::Address, Contents::Verdicts(FLOW_OWNERS)),
        set(REFUSED_FLOWS, Key::Address, Contents::Dynamic(FLOW_OWNERS)),
    ]
    .into_iter()
    .chain(of_bridges.into_iter().flatten().map(move |name| set(name, Key::Interface, Contents::Values)))
}

fn chains(bridges: &[Placed]) -> impl Iterator<Item = Chain> {
    let of_bridges = if bridges.is_empty() { None } else { Some(bridge::CHAINS) };
    let base = |name, hook, priority, nat| Chain {
        name: ChainName(name, None),
        base: Some(Base { nat, hook, priority, policy: Policy::Accept }),
    };
    let plain = |name| Chain { name: ChainName(name, None), base: None };
    [
        plain("refuse"),
        plain("too_many"),
        plain("new_flow"),
        plain("guard"),
        plain("from_link"),
        plain("from_slot"),
        plain("to_slot"),
        plain("host_to_slot"),
        base("prerouting", Hook::Prerouting, RAW, false),
        base("input", Hook::Input, FILTER, false),
        base("forward", Hook::Forward, FILTER, false),
        base("output", Hook::Output, FILTER, false),
        base("postrouting", Hook::Postrouting, SRCNAT, true),
    ]
    .into_iter()
    .chain(of_bridges.into_iter().flatten().map(plain))
}

/// Every rule costs each packet of the host that passes it, so those of a slot's flows leave first:
/// the rules marked *short way* let nothing pass that those after them would not. They go by the group
/// of the interface, which is one comparison; whoever changes that only sends packets the long way.
/// A packet for the host itself takes it as far as `input`, and one that another table translates as
/// far as `forward`; both end there.
fn rules(group: u32, Places { ranges, bridges }: Places<'_>) -> Vec<(&'static str, Rule)> {
    let isolated: Vec<&Range> = bridge::isolated(ranges, bridges).collect();
    let r = Rule::new;
    let mut rules = vec![
        // Leads to the slot's own limit of live flows, and from there back to where it came from.
        // The rate comes first: to count the live ones takes longer the more there are.
        ("new_flow", r().source_verdict(NEW_FLOWS)),
        ("new_flow", r().goto("too_many")),
        ("too_many", r().source_in(REFUSED_FLOWS).goto("refuse")),
        ("too_many", r().goto("refuse")),
        ("refuse", r().tcp().counter().reset()),
        ("refuse", r().counter().prohibit()),
        // From a slot, before connection tracking, address translation and routing: so published
        // ports, which another table translates, are refused with every other host address.
        ("guard", r().ipv6().counter().drop()),
        ("guard", r().iif_source_not_in(SLOTS).counter().drop()),
        ("guard", r().destination_not_unicast().goto("refuse")),
        ("guard", r().accept()),
        ("from_link", r().iif_within(LINKS).goto("guard")),
        // Short way.
        ("prerouting", r().iif_group(group).iif_source_in(SLOTS).accept()),
        ("prerouting", r().iif_between(FIRST_LINK, LAST_LINK).jump("from_link")),
    ];
    // From elsewhere, nobody is or addresses a slot: answers come to the host's own address and
    // are translated back later. Another daemon's guest is told.
    for range in &isolated {
        rules.push(("prerouting", r().source_within(range.net()).counter().drop()));
        rules.push(("from_link", r().destination_within(range.net()).goto("refuse")));
        rules.push(("prerouting", r().destination_within(range.net()).counter().drop()));
    }
    rules.extend(bridge::from_isolated(bridges));
    rules.extend([
        ("input", r().iif_within(LINKS).goto("refuse")),
        ("from_slot", r().ipv6().counter().drop()),
        ("from_slot", r().oif_within(ALL_LINKS).goto("refuse")),
        // An untranslated packet would show the slot's address outside.
        ("from_slot", r().ct_invalid().counter().drop()),
        // Somebody's translation leads elsewhere than what was judged.
        ("from_slot", r().ct_dnat().goto("refuse")),
        // Before the flow is confirmed, so one guest cannot fill the host's table.
        ("from_slot", r().ct_begins().jump("new_flow")),
        ("from_slot", r().clamp_mss()),
        ("from_slot", r().accept()),
        ("to_slot", r().ipv6().counter().drop()),
        ("to_slot", r().clamp_mss()),
        ("to_slot", r().ct_established().accept()),
        ("to_slot", r().counter().drop()),
        // Short way, from a slot and to one.
        (
            "forward",
            r().iif_group(group).oif_not_between(FIRST_LINK, LAST_LINK).ct_established_as_judged().accept(),
        ),
        ("forward", r().iif_not_between(FIRST_LINK, LAST_LINK).oif_group(group).goto("to_slot")),
        ("forward", r().iif_within(LINKS).goto("from_slot")),
        ("forward", r().oif_within(LINKS).goto("to_slot")),
        // Another daemon's slot: its own table decides.
        ("forward", r().oif_within(ALL_LINKS).back()),
    ]);
    rules.extend(bridge::forward(bridges));
    rules.extend([
        // Forwarding is on here for slots only; nothing else was forwarded before.
        ("forward", r().iif_in(OPENED).counter().drop()),
        // The host itself sends a guest errors about its own packets and nothing else.
        ("host_to_slot", r().ipv6().counter().drop()),
        ("host_to_slot", r().tcp_reset_segment().accept()),
        ("host_to_slot", r().icmp_unreachable().accept()),
        ("host_to_slot", r().icmp_time_exceeded().accept()),
        ("host_to_slot", r().counter().drop()),
        ("output", r().oif_within(LINKS).goto("host_to_slot")),
    ]);
    for range in isolated {
        rules.push(("postrouting", r().source_within(range.net()).masquerade()));
    }
    rules.extend(bridge::postrouting(bridges));
    rules
}

/// A slot's row in [`SLOTS`].
pub(crate) fn slot(block: Block) -> Element {
    let mut key = block.host_ifindex().to_ne_bytes().to_vec();
    key.extend(block.guest().octets());
    Element::value(&key)
}

fn link(index: u32) -> Element {
    Element::value(&index.to_ne_bytes())
}

/// A range's slots have consecutive indexes. Ranges that touch become one interval, since an
/// interval set wants its intervals apart.
fn link_intervals(ranges: &[Range]) -> Vec<Element> {
    let mut spans: Vec<(u32, u32)> = ranges
        .iter()
        .filter_map(|range| {
            let last = range.block(range.capacity() - 1)?;
            Some((range.block(0)?.host_ifindex(), last.host_ifindex()))
        })
        .collect();
    spans.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (first, last) in spans {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged.into_iter().flat_map(|(first, last)| Element::interval(first, last)).collect()
}
