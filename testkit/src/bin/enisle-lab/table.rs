//! Asking every row, judging the answers, printing the table.

use std::process::ExitCode;

use anyhow::bail;

use comfy_table::{ContentArrangement, Table, TableStyle};
use enisle_testkit::probe::{Kind, Outcome, Target};
use serde_json::json;

use crate::ProbeArgs;
use crate::guest::Enisle;
use crate::targets::{Place, Row, Rows};

/// How a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// As the contract says.
    Ok,
    /// Otherwise.
    Wrong,
    /// The positive control failed, or the probe did: nothing is proven.
    Inconclusive,
    /// Nothing is there on this machine to test with.
    NotTestable,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Wrong => "WRONG",
            Verdict::Inconclusive => "INCONCLUSIVE",
            Verdict::NotTestable => "not testable",
        }
    }
}

/// A row after it was asked.
struct Asked {
    row: Row,
    control: Result<Outcome, String>,
    guest: Option<Outcome>,
    verdict: Verdict,
}

/// Asks all rows and prints them; failure when a row is wrong or undecided.
pub(crate) fn probe(args: &ProbeArgs) -> anyhow::Result<ExitCode> {
    let enisle = Enisle { path: args.enisle.clone() };
    let mut rows = match &args.state {
        Some(state) if !args.no_lab => Rows::of_world(state, args.drop.as_deref())?,
        _ => Rows::of_machine(args.drop.as_deref())?,
    };
    if let Some(api) = args.api {
        rows.add_api(api);
    }
    let listener = match &args.sibling {
        Some(name) => {
            rows.add_sibling(enisle.address(name)?);
            Some((enisle.listen(name)?, name.as_str()))
        }
        None => None,
    };
    let asked = ask_all(&enisle, args, &rows, listener.as_ref().map(|l| l.1))?;
    drop(listener);
    if args.json {
        print_json(&asked);
    } else {
        print_table(&asked);
    }
    let failed = asked.iter().any(|a| matches!(a.verdict, Verdict::Wrong | Verdict::Inconclusive));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn ask_all(
    enisle: &Enisle,
    args: &ProbeArgs,
    rows: &Rows,
    sibling: Option<&str>,
) -> anyhow::Result<Vec<Asked>> {
    let controls = controls(enisle, rows, sibling)?;
    // Without a positive control there is nothing to compare with, so the guest is not asked.
    let asks = |control: &Result<Outcome, String>| control.as_ref().is_ok_and(Outcome::reached);
    let targets: Vec<Target> = rows
        .rows
        .iter()
        .zip(&controls)
        .filter(|(_, control)| asks(control))
        .map(|(row, _)| row.target)
        .collect();
    let mut answers = enisle.probe(&args.vm, &targets)?.into_iter();
    let asked = rows.rows.iter().cloned().zip(controls).map(|(row, control)| {
        let guest = if asks(&control) { answers.next() } else { None };
        let verdict = judge(&row, &control, guest.as_ref(), rows.may_be_absent);
        Asked { row, control, guest, verdict }
    });
    Ok(asked.collect())
}

/// The positive control of each row, or why there is none.
fn controls(
    enisle: &Enisle,
    rows: &Rows,
    sibling: Option<&str>,
) -> anyhow::Result<Vec<Result<Outcome, String>>> {
    let itself: Vec<Target> =
        rows.rows.iter().filter(|row| matches!(row.control, Place::Sibling)).map(|row| row.target).collect();
    let mut from_sibling = match sibling {
        Some(name) => enisle.probe(name, &itself)?.into_iter(),
        None if itself.is_empty() => Vec::new().into_iter(),
        None => bail!("a row about a sibling without a sibling"),
    };
    let control = |row: &Row| match &row.control {
        Place::Nowhere(reason) => Err(reason.clone()),
        Place::Sibling => from_sibling.next().ok_or_else(|| "it did not answer".to_owned()),
        Place::Namespace(from) => {
            rows.control(from, row.target).ok_or_else(|| format!("no namespace {from}"))
        }
    };
    Ok(rows.rows.iter().map(control).collect())
}

fn judge(
    row: &Row,
    control: &Result<Outcome, String>,
    guest: Option<&Outcome>,
    may_be_absent: bool,
) -> Verdict {
    match (control, guest) {
        (Ok(c), _) if !c.reached() && !may_be_absent => Verdict::Inconclusive,
        (Ok(c), _) if !c.reached() => Verdict::NotTestable,
        (Err(_), _) => Verdict::NotTestable,
        (Ok(_), None) => Verdict::Inconclusive,
        (Ok(_), Some(outcome)) => {
            let right = if row.reached { outcome.reached() } else { outcome.refused() };
            if right { Verdict::Ok } else { Verdict::Wrong }
        }
    }
}

fn describe(target: Target) -> String {
    let Target { kind, addr, port } = target;
    match kind {
        _ if addr.is_unspecified() => String::new(),
        Kind::Ping => format!("ping {addr}"),
        Kind::Udp => format!("udp {addr}:{port}"),
        Kind::Tcp | Kind::Connect => format!("tcp {addr}:{port}"),
    }
}

fn place(control: &Place) -> &str {
    match control {
        Place::Namespace(name) => name,
        Place::Sibling => "itself",
        Place::Nowhere(_) => "",
    }
}

fn print_table(asked: &[Asked]) {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled).set_header([
        "target",
        "",
        "from a permitted place",
        "from the guest",
        "expected",
        "",
    ]);
    for a in asked {
        let control = match &a.control {
            Ok(outcome) => format!("{}: {outcome}", place(&a.row.control)),
            Err(reason) => reason.clone(),
        };
        let expected = if a.row.reached { "reached" } else { "refused < 1 s" };
        table.add_row([
            a.row.name.clone(),
            describe(a.row.target),
            control,
            a.guest.as_ref().map(Outcome::to_string).unwrap_or_default(),
            expected.to_owned(),
            a.verdict.text().to_owned(),
        ]);
    }
    println!("{table}");
    let count = |v: Verdict| asked.iter().filter(|a| a.verdict == v).count();
    println!(
        "{} rows: {} as promised, {} wrong, {} inconclusive, {} not testable here",
        asked.len(),
        count(Verdict::Ok),
        count(Verdict::Wrong),
        count(Verdict::Inconclusive),
        count(Verdict::NotTestable),
    );
}

fn print_json(asked: &[Asked]) {
    let rows: Vec<_> = asked
        .iter()
        .map(|a| {
            json!({
                "name": a.row.name,
                "target": a.row.target,
                "expected": if a.row.reached { "reached" } else { "refused" },
                "control_from": place(&a.row.control),
                "control": a.control.as_ref().ok(),
                "not_testable": a.control.as_ref().err(),
                "guest": a.guest,
                "verdict": a.verdict.text(),
            })
        })
        .collect();
    println!("{:#}", serde_json::Value::Array(rows));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use enisle_testkit::probe::Answer;

    use super::*;

    fn row(reached: bool) -> Row {
        let target = Target { kind: Kind::Ping, addr: Ipv4Addr::LOCALHOST, port: 0 };
        Row { name: String::new(), target, reached, control: Place::Namespace("host") }
    }

    fn outcome(answer: Answer, ms: f64) -> Outcome {
        Outcome { ms, ..Outcome::since(Instant::now(), answer, "") }
    }

    #[test]
    fn only_a_prompt_refusal_counts_as_one() {
        let control = Ok(outcome(Answer::Reached, 1.0));
        let judged = |answer, ms| judge(&row(false), &control, Some(&outcome(answer, ms)), false);
        assert_eq!(judged(Answer::Refused, 999.0), Verdict::Ok);
        assert_eq!(judged(Answer::Refused, 1001.0), Verdict::Wrong);
        assert_eq!(judged(Answer::Silence, 3000.0), Verdict::Wrong);
        assert_eq!(judged(Answer::Reached, 1.0), Verdict::Wrong);
        assert_eq!(judged(Answer::Failed, 1.0), Verdict::Wrong);
    }

    #[test]
    fn nothing_is_proven_without_a_control() {
        let refused = outcome(Answer::Refused, 1.0);
        let dead = Ok(outcome(Answer::Silence, 2000.0));
        assert_eq!(judge(&row(false), &dead, Some(&refused), false), Verdict::Inconclusive);
        assert_eq!(judge(&row(false), &dead, Some(&refused), true), Verdict::NotTestable);
        let none = Err("nobody".to_owned());
        assert_eq!(judge(&row(true), &none, None, true), Verdict::NotTestable);
        let fine = Ok(outcome(Answer::Reached, 1.0));
        assert_eq!(judge(&row(true), &fine, None, false), Verdict::Inconclusive);
    }
}
