//! From lists of rules to a [`CompiledPolicy`].
//!
//! Owns: numbering of rules, what cannot be enforced, the limits. Refuses: parsing, files.

use std::collections::HashMap;
use std::rc::Rc;

use ipnet::Ipv4Net;

use super::compiled::{CompiledPolicy, Entry, Origin, PortEntry, PortsId, RuleId, RuleInfo};
use super::floor::FLOOR;
use super::layer::{Class, Layer, OutOfSpans, Ranked};
use super::ports::{PortTable, prefixes};
use super::rule::Rule;
use super::{PolicySpec, Verdict};

/// Rules in one spec, both lists together. Bounds the entries of one policy to twice this and
/// the floor.
pub const MAX_RULES: usize = 32_768;
/// Port entries of one compiled policy, all tables together.
pub const MAX_PORT_ENTRIES: usize = 262_144;

/// Why a policy cannot be enforced. Nothing of it is then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// An `allow` for addresses that no kernel forwards.
    #[error("{at}: {rule} cannot be opened: it lies in {net} ({what}), which is never forwarded; remove it")]
    CannotAllow {
        /// The rule's place.
        at: Origin,
        /// The rule.
        rule: Rule,
        /// The floor's network.
        net: Ipv4Net,
        /// What that network is.
        what: &'static str,
    },
    /// More than [`MAX_RULES`].
    #[error("{at}: too many rules; a policy holds at most {MAX_RULES}; join neighbouring networks")]
    TooManyRules {
        /// The first rule too many.
        at: Origin,
    },
    /// More than [`MAX_PORT_ENTRIES`]: many port rules on a wide network, over many on narrower ones.
    #[error(
        "{at}: {text} brings the policy over {MAX_PORT_ENTRIES} port entries; \
         use port ranges, or put the port rules on fewer networks"
    )]
    TooManyPorts {
        /// The rule at which it happened.
        at: Origin,
        /// The rule as written.
        text: String,
    },
}

impl CompileError {
    /// The rule that is the reason.
    #[must_use]
    pub fn place(&self) -> Origin {
        match self {
            CompileError::CannotAllow { at, .. }
            | CompileError::TooManyRules { at }
            | CompileError::TooManyPorts { at, .. } => *at,
        }
    }
}

/// Compiles a group's policy, floor included.
///
/// # Errors
/// A rule that cannot be enforced, or too many; the error names its list and index.
pub fn compile(group: &PolicySpec) -> Result<CompiledPolicy, CompileError> {
    let mut book = Rulebook::new();
    let layer = book.group_layer(group)?;
    book.finish(&layer)
}

/// Compiles a group's policy narrowed by a VM's own: a packet must pass both. The VM's lists are
/// judged without the floor (that is the group's business) and with everything allowed that they
/// do not name; so empty lists narrow nothing, and an `allow` only excepts from a wider `drop` of
/// the same VM.
///
/// # Errors
/// As [`compile`], for either.
pub fn compile_narrowed(group: &PolicySpec, vm: &PolicySpec) -> Result<CompiledPolicy, CompileError> {
    let mut book = Rulebook::new();
    let outer = book.group_layer(group)?;
    let mut rules = vec![DEFAULT];
    book.add(&mut rules, vm, Origin::VmDrop, Origin::VmAllow)?;
    let inner = book.build(rules)?;
    let met = outer.meet(&inner, MAX_PORT_ENTRIES).map_err(|e| book.too_many_ports(e.0))?;
    book.finish(&met)
}

/// Rule 0: what nobody names is public, and open (row 1).
const DEFAULT: Ranked = Ranked { rule: Rule::ANY, class: Class::Default, id: RuleId(0) };

/// Numbers rules and remembers what they were.
struct Rulebook {
    infos: Vec<RuleInfo>,
}

impl Rulebook {
    fn new() -> Rulebook {
        let public = RuleInfo {
            text: "public Internet".to_owned(),
            net: Rule::ANY.net(),
            origin: Origin::Default,
            rule: Rule::ANY,
        };
        Rulebook { infos: vec![public] }
    }

    fn group_layer(&mut self, group: &PolicySpec) -> Result<Layer, CompileError> {
        let mut rules = vec![DEFAULT];
        for row in FLOOR {
            let text = format!("{} {}", row.net, row.what);
            let id = self.note(text, Rule::network(row.net), Origin::Floor(row.row));
            rules.push(Ranked { rule: Rule::network(row.net), class: Class::Floor, id });
        }
        self.add(&mut rules, group, Origin::Drop, Origin::Allow)?;
        self.build(rules)
    }

    fn add(
        &mut self,
        rules: &mut Vec<Ranked>,
        spec: &PolicySpec,
        drop: fn(usize) -> Origin,
        allow: fn(usize) -> Origin,
    ) -> Result<(), CompileError> {
        let drops = spec.drop.iter().enumerate().map(|(i, r)| (Class::Drop, drop(i), *r));
        let allows = spec.allow.iter().enumerate().map(|(i, r)| (Class::Allow, allow(i), *r));
        for (count, (class, at, rule)) in drops.chain(allows).enumerate() {
            if count >= MAX_RULES {
                return Err(CompileError::TooManyRules { at });
            }
            if class == Class::Allow {
                refuse_what_is_never_forwarded(at, rule)?;
            }
            let id = self.note(rule.to_string(), rule, at);
            rules.push(Ranked { rule, class, id });
        }
        Ok(())
    }

    fn note(&mut self, text: String, rule: Rule, origin: Origin) -> RuleId {
        // At most two specs of MAX_RULES and the floor: fits.
        let id = RuleId(u32::try_from(self.infos.len()).unwrap_or(u32::MAX));
        self.infos.push(RuleInfo { text, net: rule.net(), origin, rule });
        id
    }

    fn build(&self, rules: Vec<Ranked>) -> Result<Layer, CompileError> {
        Layer::build(rules, MAX_PORT_ENTRIES).map_err(|OutOfSpans(rule)| self.too_many_ports(rule))
    }

    fn too_many_ports(&self, rule: RuleId) -> CompileError {
        let info = usize::try_from(rule.0).ok().and_then(|i| self.infos.get(i));
        CompileError::TooManyPorts {
            at: info.map_or(Origin::Default, |i| i.origin),
            text: info.map(|i| i.text.clone()).unwrap_or_default(),
        }
    }

    /// Numbers the port tables, equal ones once, and cuts their spans into prefixes.
    fn finish(self, layer: &Layer) -> Result<CompiledPolicy, CompileError> {
        let mut tables: HashMap<Rc<PortTable>, PortsId> = HashMap::new();
        let mut port_entries = Vec::new();
        let mut entries = Vec::with_capacity(layer.0.len());
        for node in &layer.0 {
            let (verdict, rule) = node.base;
            let ports = match tables.get(&node.ports) {
                _ if node.ports.is_empty() => None,
                Some(id) => Some(*id),
                None => {
                    // Bounded by MAX_PORT_ENTRIES below, as each table has an entry.
                    let id = PortsId(u32::try_from(tables.len() + 1).unwrap_or(u32::MAX));
                    tables.insert(Rc::clone(&node.ports), id);
                    cut(&node.ports, id, &mut port_entries);
                    if port_entries.len() > MAX_PORT_ENTRIES {
                        let last = port_entries[port_entries.len() - 1].rule;
                        return Err(self.too_many_ports(last));
                    }
                    Some(id)
                }
            };
            let fragments = if node.ports.differs_from(verdict) { Verdict::Refuse } else { verdict };
            entries.push(Entry { net: node.net, verdict, rule, ports, fragments });
        }
        Ok(CompiledPolicy { entries, port_entries, rules: self.infos })
    }
}

fn cut(table: &PortTable, ports: PortsId, out: &mut Vec<PortEntry>) {
    for (proto, spans) in table.protocols() {
        for span in spans {
            let (verdict, rule) = span.decision;
            out.extend(prefixes(span).map(|prefix| PortEntry { ports, proto, prefix, verdict, rule }));
        }
    }
}

fn refuse_what_is_never_forwarded(at: Origin, rule: Rule) -> Result<(), CompileError> {
    match FLOOR.iter().find(|row| !row.can_open && row.net.contains(&rule.net())) {
        Some(row) => Err(CompileError::CannotAllow { at, rule, net: row.net, what: row.what }),
        None => Ok(()),
    }
}
