//! The list of rows, and what makes a run fail.

use super::probe::{Run, Via};
use super::report::complaints;
use super::rows::{Row, Rows};
use super::subject::Subject;
use crate::config::{self, AnyHost};
use crate::vm::plan::GroupPlan;
use enisle_api::verify::{Expected, Verdict, VerifyRow};
use enisle_net::plan::Block;
use enisle_net::policy;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

fn subject(lists: &str) -> Subject {
    let file = format!(
        "config:\n  host_groups:\n    - name: agents\n      count: 1\n      network:\n        \
         mode: isolated\n        range: 169.254.100.0/24\n{lists}"
    );
    let group = config::parse("test.yaml", &file, &AnyHost).unwrap().groups[0].clone();
    let policy = policy::compile(&group.network.policy).unwrap();
    let block = |last| Block::from_guest(Ipv4Addr::new(169, 254, 100, last));
    Subject {
        block: block(2),
        policy,
        drop: group.network.policy.drop.clone(),
        group: Arc::new(GroupPlan::new(group).unwrap()),
        hosts: ["45.83.104.10/24", "192.168.1.1/24", "127.0.0.1/8"].map(|net| net.parse().unwrap()).to_vec(),
        siblings: vec![block(6)],
        canary: 40_123,
        control: SocketAddrV4::new(Ipv4Addr::new(1, 1, 1, 1), 443),
    }
}

fn rows(lists: &str) -> Vec<Row> {
    let subject = subject(lists);
    Rows::of(&subject, Run::new([1, 2, 3])).rows
}

#[test]
fn every_row_of_the_contract_is_asked_and_every_probe_is_its_own() {
    let run = Run::new([1, 2, 3]);
    let rows = rows("        drop: ['151.101.0.0/16']\n");
    let numbers: BTreeSet<u8> = rows.iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=12).collect());
    assert!(rows.len() > 150, "{}", rows.len());
    let mut seen = BTreeSet::new();
    for (at, row) in rows.iter().enumerate() {
        let bytes = match &row.via {
            Via::Tcp(to) => {
                assert!(seen.insert(to.to_string().into_bytes()), "asked twice: {}", row.asked);
                continue;
            }
            Via::Udp(_, bytes) | Via::Frame { bytes, .. } | Via::Injected(bytes) => bytes.clone(),
            Via::FromHost(..) => continue,
        };
        assert_eq!(run.row_in(&bytes), Some(at), "{} {} carries its own token", row.target, row.asked);
        assert!(seen.insert(bytes));
    }
}

#[test]
fn expectations_follow_the_policy() {
    let reached = |lists| rows(lists).iter().filter(|row| row.expected == Expected::Reached).count();
    assert_eq!(reached(""), 5, "what is allowed goes to the control address alone");
    assert_eq!(reached("        drop: ['0.0.0.0/0']\n"), 0);
    let none = rows("        drop: ['0.0.0.0/0']\n");
    assert!(none.iter().any(|row| row.number == 14) && none.iter().all(|row| row.number != 1));
    assert!(none.iter().any(|row| row.dns_refused == Some(true)));
    // What an operator opened is not asked: neither as refused nor at all.
    let open = subject("        allow: ['192.168.0.0/16']\n");
    let list = Rows::of(&open, Run::new([1, 2, 3]));
    assert!(!list.rows.iter().any(|row| row.target == "LAN, 192.168/16"));
    assert!(list.untested.iter().any(|row| row.number == 5 && row.target == "LAN, 192.168/16"));
    // A wider `allow` opens no subnet of the host, and nothing opens the host itself.
    assert!(list.rows.iter().any(|row| row.target == "LAN, the host's subnet 192.168.1.0/24"));
    let exact = rows("        allow: ['192.168.1.0/24']\n");
    assert!(!exact.iter().any(|row| row.target == "LAN, the host's subnet 192.168.1.0/24"));
    let host = |row: &&Row| row.number == 3 && row.asked.contains("192.168.1.1");
    assert!(exact.iter().filter(host).all(|row| row.expected == Expected::Refused));
    assert!(exact.iter().filter(host).count() >= 4);
}

#[test]
fn a_run_fails_on_one_bad_row_and_on_a_contract_row_that_nothing_was_asked_of() {
    let row = |row, verdict| VerifyRow {
        row,
        target: String::new(),
        asked: String::new(),
        expected: None,
        oracle: String::new(),
        guest: String::new(),
        verdict,
    };
    let good: Vec<VerifyRow> = (3..=12).map(|number| row(number, Verdict::Ok)).collect();
    assert_eq!(complaints(&good), Vec::<String>::new());
    for (bad, words) in [(Verdict::Wrong, "not as promised"), (Verdict::Inconclusive, "inconclusive")] {
        let mut rows = good.clone();
        rows.push(row(5, bad));
        assert_eq!(complaints(&rows), [format!("1 probe was {words}")]);
    }
    let mut rows = good;
    rows.push(row(4, Verdict::NotTestable));
    assert_eq!(complaints(&rows), Vec::<String>::new(), "another probe of the row was asked");
    rows.retain(|row| row.row != 4 || row.verdict == Verdict::NotTestable);
    assert_eq!(complaints(&rows), ["nothing of row 4 could be tested"]);
}
