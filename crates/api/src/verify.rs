//! The isolation self-test: what is asked, and the evidence.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Asks for a self-test of the isolation of one VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// A running VM. Without one, a VM is made for it and removed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Group of the VM that is made; may be left out when there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `ADDRESS` or `ADDRESS:PORT` on the Internet that a handful of packets are sent to, to prove
    /// that what is allowed passes. Default: the group's first public resolver, else 1.1.1.1, port 443.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// How long the VM that is made may take to boot, in milliseconds. Default 120000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// The outcome of a self-test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verified {
    /// True when no row was wrong or inconclusive and every row of the contract that can be tested
    /// on any machine was.
    pub ok: bool,
    /// Why not, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The VM the probes were sent from.
    pub vm: String,
    /// Whether it was made for this and is gone now.
    pub throw_away: bool,
    /// Its address.
    pub address: Ipv4Addr,
    /// What the positive controls were sent to.
    pub control: String,
    /// In the order of the contract.
    pub rows: Vec<VerifyRow>,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyRow {
    /// Row of the contract, see `docs/networking.md`.
    pub row: u8,
    /// What the probe is aimed at.
    pub target: String,
    /// What was sent.
    pub asked: String,
    /// What the contract says; absent when nothing was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expected>,
    /// What the daemon's own sockets saw; the verdict comes from here.
    pub oracle: String,
    /// What the guest says; shown, never trusted.
    pub guest: String,
    /// The verdict.
    pub verdict: Verdict,
}

/// What the contract says about a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// It passes the judge.
    Reached,
    /// Something answers on the gateway.
    Served,
    /// It does not pass, and the guest is told: reset for TCP, admin-prohibited for the rest.
    Refused,
    /// It does not pass, and nothing is said.
    Dropped,
    /// It does not pass; whether the guest is told is left open.
    Stopped,
    /// It is given to the guest.
    Delivered,
}

/// How a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As the contract says.
    Ok,
    /// Otherwise.
    Wrong,
    /// A positive control failed, or the guest did not send the probe: nothing is proven.
    Inconclusive,
    /// Nothing is there to test with, or the policy allows it.
    NotTestable,
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reached => "reached",
            Self::Served => "served",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::Stopped => "stopped",
            Self::Delivered => "delivered",
        })
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Wrong => "WRONG",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::NotTestable => "not testable",
        })
    }
}
