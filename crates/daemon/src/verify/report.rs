//! The outcome as the API shows it.
//!
//! Owns: words, and what makes a run fail. Refuses: the verdict on a row, which is the judge's.

use super::judge::{self, Evidence};
use super::probe::Refusal;
use super::rows::Untested;
use super::run::Examination;
use super::subject::Subject;
use enisle_api::verify::{Verdict, Verified, VerifyRow};

/// Rows of the contract of which something can be asked on every machine, under every policy.
const ALWAYS: [u8; 8] = [3, 4, 7, 8, 9, 10, 11, 12];

pub(super) fn report(vm: &str, subject: &Subject, run: Examination, untested: Vec<Untested>) -> Verified {
    let controls = run.controls();
    let asked = run.rows.iter().zip(&run.evidence).zip(&run.claims).map(|((row, seen), claim)| VerifyRow {
        row: row.number,
        target: row.target.clone(),
        asked: row.asked.clone(),
        expected: Some(row.expected),
        oracle: describe(seen),
        guest: claim.clone(),
        verdict: judge::verdict(row.expected, row.is_tcp(), seen, controls),
    });
    let skipped = untested.into_iter().map(|row| VerifyRow {
        row: row.number,
        target: row.target,
        asked: String::new(),
        expected: None,
        oracle: row.reason,
        guest: String::new(),
        verdict: Verdict::NotTestable,
    });
    let mut rows: Vec<VerifyRow> = asked.chain(skipped).collect();
    rows.sort_by_key(|row| row.row);
    let mut problems: Vec<String> = run.broken.into_iter().collect();
    problems.extend(controls.failure().map(str::to_owned));
    problems.extend(complaints(&rows));
    Verified {
        ok: problems.is_empty(),
        problems,
        vm: vm.to_owned(),
        throw_away: false,
        address: subject.block.guest(),
        control: subject.control.to_string(),
        rows,
    }
}

/// What of the rows makes the run fail.
pub(super) fn complaints(rows: &[VerifyRow]) -> Vec<String> {
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let mut complaints = Vec::new();
    for (verdict, what) in [(Verdict::Wrong, "not as promised"), (Verdict::Inconclusive, "inconclusive")] {
        match count(verdict) {
            0 => {}
            1 => complaints.push(format!("1 probe was {what}")),
            n => complaints.push(format!("{n} probes were {what}")),
        }
    }
    for number in ALWAYS {
        if !rows.iter().any(|row| row.row == number && row.verdict != Verdict::NotTestable) {
            complaints.push(format!("nothing of row {number} could be tested"));
        }
    }
    complaints
}

/// What the daemon's sockets saw of a row.
fn describe(seen: &Evidence) -> String {
    let mut words = Vec::new();
    if seen.no_canary {
        words.push("the listener did not answer the host".to_owned());
    }
    words.push(if seen.sent { "sent" } else { "never sent" }.to_owned());
    if seen.crossed {
        words.push("passed the judge".to_owned());
    }
    if seen.arrived {
        words.push("reached the listener".to_owned());
    }
    match seen.refusal {
        Some(Refusal::Reset) => words.push("reset".to_owned()),
        Some(Refusal::Unreachable(13)) => words.push("admin-prohibited".to_owned()),
        Some(Refusal::Unreachable(code)) => words.push(format!("ICMP unreachable, code {code}")),
        None => {}
    }
    words.extend(seen.answer.as_ref().map(|answer| format!("answer: {answer}")));
    words.join(", ")
}
