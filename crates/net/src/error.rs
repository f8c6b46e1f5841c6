//! What can go wrong, by step and object.
//!
//! Owns: the errors of the engine. Refuses: those of ranges and rules (`plan`, `policy`).

use std::fmt;

use crate::kernel::KernelError;
use crate::plan::{Block, Range};

/// One step of making or taking away a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The slot's row in the host's guard.
    Admit,
    /// The VM's own network namespace.
    Namespace,
    /// The tap and its settings.
    Tap,
    /// The veth pair.
    Veth,
    /// The tables that refuse inside the namespace.
    Refusals,
    /// The policy's rows in the judge's maps.
    Policy,
    /// The slot's row in the judge's map.
    Judge,
    /// The judge's programs on tap and veth.
    Attach,
    /// The token buckets of the bandwidth limits.
    Shape,
    /// Address, neighbour and link state inside.
    Inside,
    /// Alias, route, neighbour and link state on the host.
    Outside,
    /// Giving up the namespace and its interfaces.
    Retire,
    /// Connection-tracking entries of the last tenant, and their count.
    Flows,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Admit => "the row in the host's guard",
            Step::Namespace => "the network namespace",
            Step::Tap => "the tap",
            Step::Veth => "the veth pair",
            Step::Refusals => "the refusing tables of the namespace",
            Step::Policy => "the policy's rows",
            Step::Judge => "the slot's row in the judge",
            Step::Attach => "attaching the judge",
            Step::Shape => "the bandwidth limits",
            Step::Inside => "the namespace's interfaces",
            Step::Outside => "the host's interface",
            Step::Retire => "giving up the namespace",
            Step::Flows => "the guest's connection-tracking entries",
        })
    }
}

/// A step that failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct StepError {
    /// Which step.
    pub step: Step,
    /// What the kernel refused.
    #[source]
    pub source: KernelError,
}

/// Errors of the engine.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The host lacks something the engine cannot do without.
    #[error(
        "cannot open the network engine; it needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF), \
         /dev/net/tun, nf_tables and tc with BPF"
    )]
    Open(#[source] KernelError),
    /// Another daemon in this network namespace holds an overlapping range.
    #[error("range {range} overlaps {by}, which another daemon on this host holds{}", Free(.next))]
    RangeLeased {
        /// The range asked for.
        range: Range,
        /// The range held.
        by: Range,
        /// A free range of the same size.
        next: Option<Range>,
    },
    /// Something on this host has an address or a route in the range.
    #[error("range {range} is in use: {object}{}", Free(.next))]
    RangeInUse {
        /// The range asked for.
        range: Range,
        /// The address or route in the way, with its interface.
        object: String,
        /// A free range of the same size.
        next: Option<Range>,
    },
    /// Two of the ranges to open share addresses.
    #[error("ranges {0} and {1} overlap")]
    RangesOverlap(Range, Range),
    /// A bridge cannot be made or used.
    #[error("cannot use the bridge `{name}`: {why}")]
    Bridge {
        /// Its name.
        name: String,
        /// Why, and what to do.
        why: String,
    },
    /// Host-wide state could not be read or changed.
    #[error("cannot {0}")]
    Host(&'static str, #[source] KernelError),
    /// The block is in none of the engine's ranges.
    #[error("block {0} is in none of this daemon's ranges")]
    ForeignBlock(Block),
    /// The block has a slot already.
    #[error("block {0} has a slot already")]
    BlockTaken(Block),
    /// An MTU IPv4 or Ethernet has no use for.
    #[error("MTU {0} is outside 576 to 65535")]
    Mtu(u32),
    /// A limit that cannot be kept, by its key in the configuration.
    #[error("limit `{0}` is {1}, which is zero or more than can be kept; see docs/configuration.md")]
    Limit(&'static str, u32),
    /// A slot could not be made. Everything done before has been undone, but for `left`.
    #[error("cannot make the slot of `{vm_name}` ({block}){}", Left(.left))]
    Create {
        /// The VM.
        vm_name: String,
        /// Its block.
        block: Block,
        /// The step that failed.
        #[source]
        source: StepError,
        /// What could not be undone.
        left: Vec<StepError>,
    },
    /// A slot could not be made for whoever would claim it. Everything done before has been undone,
    /// but for `left`.
    #[error("cannot make a slot ahead of time ({block}){}", Left(.left))]
    Prepare {
        /// Its block.
        block: Block,
        /// The step that failed.
        #[source]
        source: StepError,
        /// What could not be undone.
        left: Vec<StepError>,
    },
    /// A slot of an earlier run could not be taken over. It was taken away, but for `left`.
    #[error("cannot adopt the slot of `{vm_name}` ({block}); it is cut off{}", Left(.left))]
    Adopt {
        /// The VM.
        vm_name: String,
        /// Its block.
        block: Block,
        /// The step that failed.
        #[source]
        source: StepError,
        /// What could not be taken away.
        left: Vec<StepError>,
    },
    /// A block to adopt that was not announced when the engine was opened, or adopted already.
    #[error("block {0} is not one of the survivors this engine was opened beside")]
    NotExpected(Block),
    /// A slot's policy could not be changed; the old one holds.
    #[error("cannot change the policy of slot {block}; the old one holds")]
    SetPolicy {
        /// The slot.
        block: Block,
        /// The step that failed.
        #[source]
        source: StepError,
    },
    /// A slot could not be taken away completely.
    #[error("slot {block} is not gone completely{}", Left(.left))]
    Remove {
        /// The slot.
        block: Block,
        /// What is left.
        left: Vec<StepError>,
    },
    /// A slot was not given to the next VM, but is being taken away.
    #[error("slot {block} cannot be used again; it is taken away")]
    Unclean {
        /// The slot.
        block: Block,
        /// What was found.
        #[source]
        why: StepError,
    },
    /// The queue of a slot's tap could not be opened.
    #[error("cannot open the tap of slot {block}")]
    Tap {
        /// The slot.
        block: Block,
        /// Why.
        #[source]
        source: KernelError,
    },
}

/// An error and all below it in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// The end of a message about a range: the one to take instead.
struct Free<'a>(&'a Option<Range>);

impl fmt::Display for Free<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(range) => write!(f, "; the next free range is {range}"),
            None => write!(f, "; no range of this size is free"),
        }
    }
}

/// The end of a message: what failed besides, each with its causes.
struct Left<'a>(&'a [StepError]);

impl fmt::Display for Left<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "; left behind: " } else { ", " })?;
            write!(f, "{error}")?;
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                write!(f, ": {cause}")?;
                source = cause.source();
            }
        }
        Ok(())
    }
}
