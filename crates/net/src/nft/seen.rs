//! What the kernel says about chains and rules, ours and other people's (`nf_tables.h`).
//!
//! Owns: parsing of dumps, as far as repairs need it. Refuses: what to do about it (`foreign`).

use super::encode::{SUBSYS_NFTABLES, message, note};
use super::{Family, Policy, Table};
use crate::netlink::{Message, Received, attribute, attributes, flags, u32_at};

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
/// `NF_INET_FORWARD`.
const FORWARD_HOOK: u32 = 2;
const DROP: i32 = 0;

/// A chain as dumped. Equal ones are the same chain in the same state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChainSeen {
    pub(crate) table: Table,
    pub(crate) name: String,
    pub(crate) handle: u64,
    /// A base chain at the forward hook.
    pub(crate) forward: bool,
    /// Of a base chain.
    pub(crate) policy: Option<Policy>,
}

/// What a rule does with every packet it sees, where that is the same for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Always {
    /// Drops or rejects.
    Refuses,
    /// Something else, or not always the same.
    No,
}

/// A rule as dumped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RuleSeen {
    pub(crate) chain: String,
    pub(crate) handle: u64,
    /// Its user data, which holds the comment.
    pub(crate) note: Vec<u8>,
    pub(crate) always: Always,
}

impl RuleSeen {
    /// The rule's comment is `comment`.
    pub(crate) fn is_noted(&self, comment: &str) -> bool {
        self.note == note(comment)
    }

    /// The rule's comment begins with `text`.
    pub(crate) fn note_begins(&self, text: &str) -> bool {
        self.note.get(2..).is_some_and(|t| t.starts_with(text.as_bytes()))
    }
}

/// Asks for all tables of all families.
pub(crate) fn tables_request() -> Message {
    Message::new(SUBSYS_NFTABLES << 8 | GETTABLE, flags::DUMP).put(&[0; 4])
}

/// A table that only its owner may change (`NFT_TABLE_F_OWNER`).
pub(crate) fn parse_owned_table(m: &Received<'_>) -> Option<Table> {
    const OWNER: u32 = 2;
    if m.kind != SUBSYS_NFTABLES << 8 | NEWTABLE {
        return None;
    }
    let family = family_of(*m.body.first()?)?;
    let attrs = m.body.get(4..)?;
    let owned = attribute(attrs, 2).and_then(be32)? & OWNER != 0;
    Some(Table { family, name: text(attribute(attrs, 1)?) }).filter(|_| owned)
}

/// Asks for all chains of all families.
pub(crate) fn chains_request() -> Message {
    Message::new(SUBSYS_NFTABLES << 8 | GETCHAIN, flags::DUMP).put(&[0; 4])
}

/// A chain of one of the families we know.
pub(crate) fn parse_chain(m: &Received<'_>) -> Option<ChainSeen> {
    if m.kind != SUBSYS_NFTABLES << 8 | NEWCHAIN {
        return None;
    }
    let family = family_of(*m.body.first()?)?;
    let attrs = m.body.get(4..)?;
    let hook = attribute(attrs, 4).and_then(|hook| attribute(hook, 1)).and_then(be32);
    let policy = attribute(attrs, 5).and_then(be32);
    Some(ChainSeen {
        table: Table { family, name: text(attribute(attrs, 1)?) },
        name: text(attribute(attrs, 3)?),
        handle: be64(attribute(attrs, 2)?)?,
        forward: hook == Some(FORWARD_HOOK) && family != Family::Netdev,
        policy: policy.map(|p| if p == 0 { Policy::Drop } else { Policy::Accept }),
    })
}

/// Asks for the rules of a table, or of one of its chains.
pub(crate) fn rules_request(table: &Table, chain: Option<&str>) -> Message {
    let mut m = message(GETRULE, flags::DUMP, table);
    m.attr_str(1, &table.name);
    if let Some(chain) = chain {
        m.attr_str(2, chain);
    }
    m
}

pub(crate) fn parse_rule(m: &Received<'_>) -> Option<RuleSeen> {
    if m.kind != SUBSYS_NFTABLES << 8 | NEWRULE {
        return None;
    }
    let attrs = m.body.get(4..)?;
    Some(RuleSeen {
        chain: text(attribute(attrs, 2)?),
        handle: be64(attribute(attrs, 3)?)?,
        note: attribute(attrs, 7).unwrap_or(&[]).to_vec(),
        always: always(attribute(attrs, 4).unwrap_or(&[])),
    })
}

/// A rule without a match whose only verdict is no. Counting and logging decide nothing.
fn always(expressions: &[u8]) -> Always {
    let mut refuses = false;
    for (_, expr) in attributes(expressions) {
        let data = attribute(expr, 2).unwrap_or(&[]);
        match attribute(expr, 1).map(text).as_deref() {
            Some("counter" | "log") => {}
            Some("reject") => refuses = true,
            Some("immediate") if verdict(data) == Some(DROP) => refuses = true,
            Some("target") if matches!(attribute(data, 1).map(text).as_deref(), Some("REJECT" | "DROP")) => {
                refuses = true;
            }
            _ => return Always::No,
        }
    }
    if refuses { Always::Refuses } else { Always::No }
}

/// The verdict that an `immediate` expression sets.
fn verdict(data: &[u8]) -> Option<i32> {
    const DATA: u16 = 2;
    const VERDICT: u16 = 2;
    const CODE: u16 = 1;
    let code = attribute(attribute(attribute(data, DATA)?, VERDICT)?, CODE)?;
    Some(be32(code)?.cast_signed())
}

fn family_of(number: u8) -> Option<Family> {
    match number {
        1 => Some(Family::Inet),
        2 => Some(Family::Ip),
        5 => Some(Family::Netdev),
        _ => None,
    }
}

fn be32(bytes: &[u8]) -> Option<u32> {
    u32_at(bytes, 0).map(u32::from_be)
}

fn be64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{HEADER, messages};
    use crate::nft::{Batch, Command, Rule, messages as batch_messages};

    /// A rule as the kernel would dump it: with a handle, and the rest as it was given.
    fn dumped(rule: Rule, comment: &str) -> RuleSeen {
        let table = Table { family: Family::Ip, name: "filter".into() };
        let insert = Command::InsertRule(table, "FORWARD".into(), rule, comment.into());
        let mut message = batch_messages(&Batch(vec![insert])).remove(1);
        message.attr(3, &9u64.to_be_bytes());
        let bytes = message.finish(1);
        assert!(bytes.len() > HEADER);
        let m = messages(&bytes).next().unwrap();
        parse_rule(&m).unwrap()
    }

    #[test]
    fn a_rule_that_always_refuses_is_told_from_one_that_matches() {
        let r = Rule::new;
        for (rule, expected) in [
            (r().drop(), Always::Refuses),
            (r().counter().drop(), Always::Refuses),
            (r().counter().prohibit(), Always::Refuses),
            (r().accept(), Always::No),
            (r().counter(), Always::No),
            (r().tcp().drop(), Always::No),
            (r().goto("elsewhere"), Always::No),
        ] {
            assert_eq!(dumped(rule.clone(), "x").always, expected, "{rule:?}");
        }
    }

    #[test]
    fn a_comment_is_recognised() {
        let rule = dumped(Rule::new().accept(), "enisle 5eed0001");
        assert_eq!((rule.chain.as_str(), rule.handle), ("FORWARD", 9));
        assert!(rule.is_noted("enisle 5eed0001") && rule.note_begins("enisle "));
        assert!(!rule.is_noted("enisle 5eed000") && !rule.note_begins("enislf"));
    }
}
