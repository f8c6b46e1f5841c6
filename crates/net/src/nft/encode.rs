//! nf_tables values as netlink messages (`nfnetlink.h`, `nf_tables.h`).
//!
//! Owns: attribute numbers and byte order; numbers are big-endian, data as the expression compares
//! it. Refuses: meaning.

use super::rule::{FIRST, Header, Meta, Verdict};
use super::{
    Base, Batch, Chain, Command, Contents, Element, Expr, Family, Hook, Key, Policy, Rule, Set, State, Table,
};
use crate::netlink::{Message, Received, attribute, attributes, flags};

pub(super) const SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_FLAGS: u16 = 3;
const ELEM_EXPR: u16 = 7;
const ELEM_INTERVAL_END: u32 = 1;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_EVAL: u32 = 0x20;
/// `NFT_DATA_VERDICT`, and the bytes the kernel keeps of one.
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;
const VERDICT_LEN: u32 = 16;
const VERDICT_REGISTER: u32 = 0;
/// An attribute holds 64 KiB; an element takes at most 144 bytes (key, verdict, limit).
const ELEMENTS_IN_A_MESSAGE: usize = 400;

const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
const RT_TCP_MSS: u32 = 3;
const REJECT_ICMP: u32 = 0;
const REJECT_TCP_RESET: u32 = 1;
const REJECT_ICMPX: u32 = 2;
const ICMP_PKT_FILTERED: u8 = 13;
const ICMPX_ADMIN_PROHIBITED: u8 = 3;

/// `nft`'s own numbers for key types, so that it can print our sets.
const TYPE_IPV4_ADDR: u32 = 7;
const TYPE_IFACE_INDEX: u32 = 20;

pub(super) fn family(of: Family) -> u8 {
    match of {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Netdev => 5,
    }
}

pub(super) fn message(kind: u16, extra: u16, table: &Table) -> Message {
    Message::new(SUBSYS_NFTABLES << 8 | kind, extra).put(&[family(table.family), 0, 0, 0])
}

/// The messages of one transaction; all but the first and the last are acknowledged.
pub(crate) fn messages(batch: &Batch) -> Vec<Message> {
    let [hi, lo] = SUBSYS_NFTABLES.to_be_bytes();
    let edge = |kind| Message::new(kind, 0).put(&[0, 0, hi, lo]);
    let mut out = vec![edge(BATCH_BEGIN)];
    for (id, command) in (1..).zip(&batch.0) {
        encode(command, id, &mut out);
    }
    out.push(edge(BATCH_END));
    out
}

fn encode(command: &Command, id: u32, out: &mut Vec<Message>) {
    const NEW: u16 = flags::CREATE | flags::ACK;
    match command {
        Command::AddTable(t) => {
            let mut m = message(NEWTABLE, NEW, t);
            m.attr_str(1, &t.name).attr_be32(2, 0);
            out.push(m);
        }
        Command::DeleteTable(t) => {
            let mut m = message(DELTABLE, flags::ACK, t);
            m.attr_str(1, &t.name);
            out.push(m);
        }
        Command::AddChain(t, chain) => {
            let mut m = message(NEWCHAIN, NEW, t);
            m.attr_str(1, &t.name);
            put_chain(&mut m, chain);
            out.push(m);
        }
        Command::AddSet(t, set) => {
            let mut m = message(NEWSET, NEW, t);
            m.attr_str(1, &t.name).attr_str(2, set.name);
            put_set(&mut m, set, id);
            out.push(m);
        }
        Command::AddRule(t, chain, rule) => {
            let mut m = message(NEWRULE, NEW | flags::APPEND, t);
            m.attr_str(1, &t.name).attr_str(2, &chain.to_string());
            put_rule(&mut m, rule);
            out.push(m);
        }
        Command::FlushChain(t, chain) => {
            let mut m = message(DELRULE, flags::ACK, t);
            m.attr_str(1, &t.name).attr_str(2, &chain.to_string());
            out.push(m);
        }
        Command::AddElements(t, set, elements) => {
            put_elements(NEWSETELEM, NEW, (t, set), elements, out);
        }
        Command::DeleteElements(t, set, elements) => {
            put_elements(DELSETELEM, flags::ACK, (t, set), elements, out);
        }
        Command::InsertRule(t, chain, rule, comment) => {
            let mut m = message(NEWRULE, NEW, t);
            m.attr_str(1, &t.name).attr_str(2, chain);
            put_rule(&mut m, rule);
            m.attr(7, &note(comment));
            out.push(m);
        }
        Command::DeleteRule(t, chain, handle) => {
            let mut m = message(DELRULE, flags::ACK, t);
            m.attr_str(1, &t.name).attr_str(2, chain).attr(3, &handle.to_be_bytes());
            out.push(m);
        }
        Command::FlushSet(t, set) => {
            let mut m = message(DELSETELEM, flags::ACK, t);
            m.attr_str(1, &t.name).attr_str(2, set);
            out.push(m);
        }
    }
}

fn put_chain(m: &mut Message, chain: &Chain) {
    m.attr_str(3, &chain.name.to_string());
    let Some(Base { nat, hook, priority, policy }) = chain.base else {
        return;
    };
    let number = match hook {
        Hook::Prerouting | Hook::Ingress(_) => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    };
    m.nest(4, |m| {
        m.attr_be32(1, number).attr(2, &priority.to_be_bytes());
        if let Hook::Ingress(device) = hook {
            m.attr_str(3, device);
        }
    });
    m.attr_be32(5, u32::from(policy == Policy::Accept));
    m.attr_str(7, if nat { "nat" } else { "filter" });
}

fn put_set(m: &mut Message, set: &Set, id: u32) {
    let (kind, len) = match set.key {
        Key::Interface => (TYPE_IFACE_INDEX, 4),
        Key::Address => (TYPE_IPV4_ADDR, 4),
        // nft joins the types of a concatenation with six bits each.
        Key::InterfaceAddress => (TYPE_IFACE_INDEX << 6 | TYPE_IPV4_ADDR, 8),
    };
    let set_flags = match set.contents {
        Contents::Values => 0,
        Contents::Intervals => SET_INTERVAL,
        Contents::Dynamic(_) => SET_EVAL,
        Contents::Verdicts(_) => SET_EVAL | SET_MAP,
    };
    m.attr_be32(3, set_flags).attr_be32(4, kind).attr_be32(5, len).attr_be32(10, id);
    if let Contents::Verdicts(_) = set.contents {
        m.attr_be32(6, DATA_TYPE_VERDICT).attr_be32(7, VERDICT_LEN);
    }
    if let Contents::Dynamic(size) | Contents::Verdicts(size) = set.contents {
        m.nest(9, |m| {
            m.attr_be32(1, size);
        });
    }
    if (set.key, set.contents) == (Key::Interface, Contents::Values) {
        // Only for `nft list`: which byte order the keys are in (NFTNL_UDATA_SET_KEYBYTEORDER).
        const KEY_BYTE_ORDER: u8 = 0;
        const HOST_ORDER: u32 = 1;
        let mut note = vec![KEY_BYTE_ORDER, 4];
        note.extend(HOST_ORDER.to_ne_bytes());
        m.attr(13, &note);
    }
}

fn put_rule(m: &mut Message, rule: &Rule) {
    m.nest(4, |m| {
        for expr in &rule.0 {
            put_listed(m, expr);
        }
    });
}

/// A comment as `nft` shows it (`NFTNL_UDATA_RULE_COMMENT`): type, length, text with its NUL.
pub(crate) fn note(comment: &str) -> Vec<u8> {
    const COMMENT: u8 = 0;
    // Ours are short; what does not fit is cut.
    let text = comment.as_bytes().get(..254).unwrap_or(comment.as_bytes());
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[COMMENT, len][..], text, &[0]].concat()
}

fn put_elements(
    kind: u16,
    extra: u16,
    (table, set): (&Table, &str),
    elements: &[Element],
    out: &mut Vec<Message>,
) {
    for some in elements.chunks(ELEMENTS_IN_A_MESSAGE) {
        let mut m = message(kind, extra, table);
        m.attr_str(1, &table.name).attr_str(2, set).nest(3, |m| {
            for element in some {
                m.nest(LIST_ELEM, |m| {
                    data(m, ELEM_KEY, &element.key);
                    if element.interval_end {
                        m.attr_be32(ELEM_FLAGS, ELEM_INTERVAL_END);
                    }
                    if kind == NEWSETELEM {
                        put_content(m, element);
                    }
                });
            }
        });
        out.push(m);
    }
}

/// What an element is besides its key.
fn put_content(m: &mut Message, element: &Element) {
    if let Some(verdict) = element.verdict {
        m.nest(ELEM_DATA, |m| {
            m.nest(DATA_VERDICT, |m| put_verdict(m, verdict));
        });
    }
    match element.state {
        None => {}
        Some(State::Counter) => put_named(m, ELEM_EXPR, "counter", |_| {}),
        Some(State::Limit { per_second, burst }) => {
            put_named(m, ELEM_EXPR, "limit", |m| put_limit(m, false, per_second, burst));
        }
    }
}

fn data(m: &mut Message, kind: u16, value: &[u8]) {
    m.nest(kind, |m| {
        m.attr(DATA_VALUE, value);
    });
}

/// One expression of a rule: its name in the kernel, then its attributes.
fn put_listed(m: &mut Message, expr: &Expr) {
    match expr {
        Expr::Meta(key) => loads(m, "meta", &[meta(*key)]),
        Expr::CtState => loads(m, "ct", &[CT_STATE]),
        Expr::CtStatus => loads(m, "ct", &[CT_STATUS]),
        Expr::FibDestinationType => loads(m, "fib", &[FIB_ADDRESS_TYPE, FIB_DESTINATION]),
        Expr::RouteMss => loads(m, "rt", &[RT_TCP_MSS]),
        Expr::Payload { header, offset, len, register } => {
            let base = match header {
                Header::Network => 1,
                Header::Transport => 2,
            };
            numbers(m, "payload", &[*register, base, *offset, *len]);
        }
        Expr::HostToNetwork { width } => {
            const HTON: u32 = 1;
            numbers(m, "byteorder", &[FIRST, FIRST, HTON, *width, *width]);
        }
        Expr::Compare { equal, data: value } => listed(m, "cmp", |m| {
            m.attr_be32(1, FIRST).attr_be32(2, u32::from(!equal));
            data(m, 3, value);
        }),
        Expr::Within { inside, first, last } => listed(m, "range", |m| {
            m.attr_be32(1, FIRST).attr_be32(2, u32::from(!inside));
            data(m, 3, first);
            data(m, 4, last);
        }),
        Expr::Mask(mask) => put_mask(m, mask),
        Expr::Lookup { set, inverted } => listed(m, "lookup", |m| {
            m.attr_str(1, set).attr_be32(2, FIRST);
            if *inverted {
                m.attr_be32(5, 1);
            }
        }),
        Expr::LookupVerdict(set) => listed(m, "lookup", |m| {
            m.attr_str(1, set).attr_be32(2, FIRST).attr_be32(3, VERDICT_REGISTER);
        }),
        Expr::CountFlowsOver { set, flows } => put_flow_count(m, set, *flows),
        Expr::Counter => listed(m, "counter", |_| {}),
        Expr::Limit { over, per_second, burst } => {
            listed(m, "limit", |m| put_limit(m, *over, *per_second, *burst));
        }
        Expr::WriteMss => put_mss(m),
        Expr::RejectTcpReset => put_reject(m, REJECT_TCP_RESET, 0),
        Expr::RejectProhibited { any_family: true } => {
            put_reject(m, REJECT_ICMPX, ICMPX_ADMIN_PROHIBITED);
        }
        Expr::RejectProhibited { any_family: false } => {
            put_reject(m, REJECT_ICMP, ICMP_PKT_FILTERED);
        }
        Expr::Masquerade => listed(m, "masq", |_| {}),
        Expr::XtConntrackEstablished => put_xt_conntrack(m),
        Expr::Verdict(verdict) => listed(m, "immediate", |m| {
            m.attr_be32(1, VERDICT_REGISTER).nest(2, |m| {
                m.nest(DATA_VERDICT, |m| put_verdict(m, *verdict));
            });
        }),
    }
}

fn listed(m: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    put_named(m, LIST_ELEM, name, fill);
}

fn put_named(m: &mut Message, kind: u16, name: &str, fill: impl FnOnce(&mut Message)) {
    m.nest(kind, |m| {
        m.attr_str(1, name).nest(2, fill);
    });
}

/// An expression whose attributes are numbers, from 1 on.
fn numbers(m: &mut Message, name: &str, values: &[u32]) {
    listed(m, name, |m| {
        for (kind, value) in (1..).zip(values) {
            m.attr_be32(kind, *value);
        }
    });
}

/// An expression that loads the first register.
fn loads(m: &mut Message, name: &str, values: &[u32]) {
    numbers(m, name, &[&[FIRST], values].concat());
}

fn meta(key: Meta) -> u32 {
    match key {
        Meta::Protocol => 1,
        Meta::Mark => 3,
        Meta::Iif => 4,
        Meta::Oif => 5,
        Meta::IifName => 6,
        Meta::OifName => 7,
        Meta::Nfproto => 15,
        Meta::L4proto => 16,
        Meta::IifGroup => 21,
        Meta::OifGroup => 22,
    }
}

fn put_verdict(m: &mut Message, verdict: Verdict) {
    let code: i32 = match verdict {
        Verdict::Drop => 0,
        Verdict::Accept => 1,
        Verdict::Jump(_) => -3,
        Verdict::Goto(_) => -4,
        Verdict::Return => -5,
    };
    m.attr(1, &code.to_be_bytes());
    if let Verdict::Goto(chain) | Verdict::Jump(chain) = verdict {
        m.attr_str(2, &chain.to_string());
    }
}

fn put_mask(m: &mut Message, mask: &[u8]) {
    // Masks are as wide as a header field: 1 or 4 bytes.
    let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    listed(m, "bitwise", |m| {
        m.attr_be32(1, FIRST).attr_be32(2, FIRST).attr_be32(3, len);
        data(m, 4, mask);
        data(m, 5, &vec![0; mask.len()]);
    });
}

fn put_flow_count(m: &mut Message, set: &str, flows: u32) {
    const ADD: u32 = 0;
    const OVER: u32 = 1;
    listed(m, "dynset", |m| {
        m.attr_str(1, set).attr_be32(3, ADD).attr_be32(4, FIRST).nest(7, |m| {
            m.attr_str(1, "connlimit").nest(2, |m| {
                m.attr_be32(1, flows).attr_be32(2, OVER);
            });
        });
    });
}

fn put_limit(m: &mut Message, over: bool, per_second: u64, burst: u32) {
    const ONE_SECOND: u64 = 1;
    const PACKETS: u32 = 0;
    m.attr(1, &per_second.to_be_bytes())
        .attr(2, &ONE_SECOND.to_be_bytes())
        .attr_be32(3, burst)
        .attr_be32(4, PACKETS)
        .attr_be32(5, u32::from(over));
}

fn put_mss(m: &mut Message) {
    const TCP_OPTION: u32 = 1;
    const MAXSEG: u8 = 2;
    listed(m, "exthdr", |m| {
        m.attr(2, &[MAXSEG]).attr_be32(3, 2).attr_be32(4, 2).attr_be32(6, TCP_OPTION).attr_be32(7, FIRST);
    });
}

/// `struct xt_conntrack_mtinfo3` of `xt_conntrack.h`, of which only the states are looked at.
fn put_xt_conntrack(m: &mut Message) {
    /// Of the structure, aligned as `XT_ALIGN` wants it.
    const SIZE: usize = 168;
    const MATCH_FLAGS: usize = 146;
    const STATE_MASK: usize = 150;
    /// `XT_CONNTRACK_STATE`.
    const LOOK_AT_STATE: u16 = 1;
    const REVISION: u32 = 3;
    /// The bits of `ct state`: established, related.
    const STATES: u16 = 2 | 4;
    let mut info = vec![0; SIZE];
    info[MATCH_FLAGS..MATCH_FLAGS + 2].copy_from_slice(&LOOK_AT_STATE.to_ne_bytes());
    info[STATE_MASK..STATE_MASK + 2].copy_from_slice(&STATES.to_ne_bytes());
    listed(m, "match", |m| {
        m.attr_str(1, "conntrack").attr_be32(2, REVISION).attr(3, &info);
    });
}

fn put_reject(m: &mut Message, kind: u32, code: u8) {
    listed(m, "reject", |m| {
        m.attr_be32(1, kind).attr(2, &[code]);
    });
}

/// Asks for all elements of a set.
pub(crate) fn elements_request(table: &Table, set: &str) -> Message {
    let mut m = message(GETSETELEM, flags::DUMP, table);
    m.attr_str(1, &table.name).attr_str(2, set);
    m
}

/// Asks for one element of a set.
pub(crate) fn element_request(table: &Table, set: &str, key: &[u8]) -> Message {
    let mut m = message(GETSETELEM, 0, table);
    m.attr_str(1, &table.name).attr_str(2, set).nest(3, |m| {
        m.nest(LIST_ELEM, |m| data(m, ELEM_KEY, key));
    });
    m
}

/// The elements in one message of the answer, without state and verdict.
pub(crate) fn parse_elements(m: &Received<'_>) -> Vec<Element> {
    listed_elements(m)
        .filter_map(|element| {
            let key = attribute(attribute(element, ELEM_KEY)?, DATA_VALUE)?;
            let set_flags = attribute(element, ELEM_FLAGS).unwrap_or(&[]);
            let interval_end = set_flags.last().is_some_and(|b| u32::from(*b) & 1 != 0);
            Some(Element { interval_end, ..Element::value(key) })
        })
        .collect()
}

/// The packets that the `counter` of the one element in an answer has counted.
pub(crate) fn parse_count(m: &Received<'_>) -> Option<u64> {
    const PACKETS: u16 = 2;
    let counter = attribute(attribute(listed_elements(m).next()?, ELEM_EXPR)?, 2)?;
    Some(u64::from_be_bytes(attribute(counter, PACKETS)?.try_into().ok()?))
}

fn listed_elements<'a>(m: &Received<'a>) -> impl Iterator<Item = &'a [u8]> {
    let ours = m.kind == SUBSYS_NFTABLES << 8 | NEWSETELEM;
    let list = m.body.get(4..).filter(|_| ours).and_then(|attrs| attribute(attrs, 3));
    attributes(list.unwrap_or(&[])).map(|(_, element)| element)
}
