//! One set of rules folded into a tree of networks, before port tables become map entries.
//!
//! Owns: which rule wins at each network, and the meet of two sets. Refuses: the floor's content,
//! the limits of the kernel's maps beyond the span budget it is given.

use std::rc::Rc;

use ipnet::Ipv4Net;

use super::Verdict;
use super::compiled::RuleId;
use super::ports::{Decision, PortTable};
use super::rule::Rule;

/// Among rules of one network; the lower one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Drop,
    Allow,
    Floor,
    Default,
}

/// A rule with everything that decides who wins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ranked {
    pub(super) rule: Rule,
    pub(super) class: Class,
    pub(super) id: RuleId,
}

impl Ranked {
    fn decision(&self) -> Decision {
        let verdict = match self.class {
            Class::Drop | Class::Floor => Verdict::Refuse,
            Class::Allow | Class::Default => Verdict::Allow,
        };
        (verdict, self.id)
    }
}

/// What holds for addresses of `net` that no longer node holds.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) net: Ipv4Net,
    pub(super) base: Decision,
    pub(super) ports: Rc<PortTable>,
}

/// Nodes sorted by address, then prefix length, so that a parent precedes its children.
/// The first one is `0.0.0.0/0`.
pub(super) struct Layer(pub(super) Vec<Node>);

/// The spans of a layer would take more than the budget; the rule at which it ran out.
pub(super) struct OutOfSpans(pub(super) RuleId);

impl Layer {
    /// Folds rules, among which must be one about `0.0.0.0/0` without ports.
    pub(super) fn build(mut rules: Vec<Ranked>, budget: usize) -> Result<Layer, OutOfSpans> {
        rules.sort_unstable_by_key(|r| (r.rule.net(), r.rule.ports().is_some(), r.class, r.id));
        let mut nodes: Vec<Node> = Vec::with_capacity(rules.len());
        let mut path = Path::default();
        let mut spent = 0;
        for group in rules.chunk_by(|a, b| a.rule.net() == b.rule.net()) {
            let net = group[0].rule.net();
            let own: Vec<(Rule, Decision)> =
                group.iter().filter(|r| r.rule.ports().is_some()).map(|r| (r.rule, r.decision())).collect();
            let plain = group.iter().find(|r| r.rule.ports().is_none());
            let node = match (plain, path.holding(net, &nodes)) {
                // A rule about the whole network hides everything shorter, ports included.
                (Some(plain), _) => {
                    Node { net, base: plain.decision(), ports: Rc::new(PortTable::from_rules(&own)) }
                }
                (None, Some(parent)) => Node {
                    net,
                    base: parent.base,
                    ports: Rc::new(PortTable::from_rules(&own).over(&parent.ports)),
                },
                // Unreachable with a default rule among the rules; skipped is refused nowhere
                // and allowed nowhere, as the kernel refuses what has no entry.
                (None, None) => continue,
            };
            spent += node.ports.spans();
            if spent > budget {
                return Err(OutOfSpans(group[group.len() - 1].id));
            }
            path.push(nodes.len());
            nodes.push(node);
        }
        Ok(Layer(nodes))
    }

    /// A packet passes the meet when it passes both. Where both refuse, or both allow, the rule
    /// named is `self`'s.
    pub(super) fn meet(&self, other: &Layer, budget: usize) -> Result<Layer, OutOfSpans> {
        let mut nets: Vec<Ipv4Net> = self.0.iter().chain(&other.0).map(|n| n.net).collect();
        nets.sort_unstable();
        nets.dedup();
        let (mut left, mut right) = (Walk::new(&self.0), Walk::new(&other.0));
        let mut nodes = Vec::with_capacity(nets.len());
        let mut spent = 0;
        for net in nets {
            let (Some(a), Some(b)) = (left.holding(net), right.holding(net)) else {
                continue;
            };
            let ports = if a.ports.is_empty() && b.ports.is_empty() {
                Rc::clone(&a.ports)
            } else {
                let join = |x: Option<Decision>, y: Option<Decision>| {
                    Some(stricter(x.unwrap_or(a.base), y.unwrap_or(b.base)))
                };
                Rc::new(a.ports.zip(&b.ports, join))
            };
            spent += ports.spans();
            let base = stricter(a.base, b.base);
            if spent > budget {
                return Err(OutOfSpans(base.1));
            }
            nodes.push(Node { net, base, ports });
        }
        Ok(Layer(nodes))
    }
}

fn stricter(a: Decision, b: Decision) -> Decision {
    if a.0 == Verdict::Allow && b.0 == Verdict::Refuse { b } else { a }
}

/// The chain of nodes from the root to the last one visited.
#[derive(Default)]
struct Path(Vec<usize>);

impl Path {
    /// The longest node on the path that holds `net`; shorter visits are forgotten, which is
    /// right as long as networks are asked for in sorted order.
    fn holding<'n>(&mut self, net: Ipv4Net, nodes: &'n [Node]) -> Option<&'n Node> {
        while let Some(&top) = self.0.last() {
            if nodes[top].net.contains(&net) {
                return Some(&nodes[top]);
            }
            self.0.pop();
        }
        None
    }

    fn push(&mut self, node: usize) {
        self.0.push(node);
    }
}

/// A layer walked alongside a sorted list of networks.
struct Walk<'n> {
    nodes: &'n [Node],
    next: usize,
    path: Path,
}

impl<'n> Walk<'n> {
    fn new(nodes: &'n [Node]) -> Self {
        Walk { nodes, next: 0, path: Path::default() }
    }

    /// The longest node that holds `net`; networks must be asked for in sorted order.
    fn holding(&mut self, net: Ipv4Net) -> Option<&'n Node> {
        while self.next < self.nodes.len() && self.nodes[self.next].net <= net {
            self.path.holding(self.nodes[self.next].net, self.nodes);
            self.path.push(self.next);
            self.next += 1;
        }
        self.path.holding(net, self.nodes)
    }
}
