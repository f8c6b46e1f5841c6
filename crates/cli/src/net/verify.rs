//! `enisle net verify`.

use crate::Failure;
use crate::exit::ExitCode;
use crate::quantity::parse_duration;
use crate::table::{print, print_json, render, visible};
use crate::vm::Context;
use clap::Args;
use enisle_client::api::verify::{Verdict, Verified, Verify, VerifyRow};
use std::time::Duration;

const HEADER: [&str; 7] = ["ROW", "TARGET", "ASKED", "EXPECTED", "SEEN", "GUEST SAYS", "VERDICT"];

#[derive(Debug, Args)]
#[command(after_help = "\
Without VM a microVM is made for the test and removed again, whatever the outcome. The verdicts come
from sockets of the daemon before and behind the judge, never from what the guest says. Five packets
go to --control, to prove that what is allowed passes; nothing else leaves the host, unless the
isolation is broken.

Ends with 0 when every probe went as promised, 1 when one did not or nothing is proven.

Examples:
  sudo enisle net verify
  sudo enisle net verify agents-1 --control 9.9.9.9
  sudo enisle net verify --group agents --json > evidence.json")]
pub(crate) struct VerifyArgs {
    /// A running microVM; its policy is what is tested.
    #[arg(conflicts_with_all = ["group", "timeout"])]
    vm: Option<String>,
    /// Group of the microVM that is made; needed when there are several.
    #[arg(long)]
    group: Option<String>,
    /// Where allowed packets are sent. Default: the group's first public resolver, else 1.1.1.1; port 443.
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    control: Option<String>,
    /// How long the microVM that is made may take to boot. Default 120s.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Also print the probes that went as promised.
    #[arg(long, short)]
    all: bool,
}

pub(super) async fn run(context: &Context, args: &VerifyArgs) -> Result<u8, Failure> {
    let ask = Verify {
        vm: args.vm.clone(),
        group: args.group.clone(),
        control: args.control.clone(),
        timeout_ms: args.timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
    };
    let verified = context.client.verify(&ask).await?;
    if context.json {
        print_json(&verified)?;
    } else {
        print(&text(&verified, args.all))?;
    }
    Ok(if verified.ok { ExitCode::Success } else { ExitCode::Failed } as u8)
}

/// The matrix: by default one line for probes of one contract row at one target that went alike.
fn text(verified: &Verified, all: bool) -> String {
    let rows: Vec<Vec<String>> =
        if all { verified.rows.iter().map(cells).collect() } else { grouped(&verified.rows) };
    let mut text = render(&HEADER, &rows);
    let count = |verdict| verified.rows.iter().filter(|row| row.verdict == verdict).count();
    text.push_str(&format!(
        "{} probes from {} ({}): {} ok, {} wrong, {} inconclusive; {} not testable here\n",
        verified.rows.len() - count(Verdict::NotTestable),
        visible(&verified.vm),
        verified.address,
        count(Verdict::Ok),
        count(Verdict::Wrong),
        count(Verdict::Inconclusive),
        count(Verdict::NotTestable),
    ));
    for problem in &verified.problems {
        text.push_str(&format!("NOT VERIFIED: {}\n", visible(problem)));
    }
    text
}

/// Neighbours that differ only in what exactly was asked become one line.
fn grouped(rows: &[VerifyRow]) -> Vec<Vec<String>> {
    let alike = |a: &VerifyRow, b: &VerifyRow| {
        let good = a.verdict == Verdict::Ok && b.verdict == Verdict::Ok;
        good && (a.row, &a.target, a.expected) == (b.row, &b.target, b.expected)
    };
    let groups = rows.chunk_by(alike);
    groups
        .map(|group| {
            let mut line = cells(&group[0]);
            if group.len() > 1 {
                line[2] = format!("{} probes", group.len());
                line[4] = String::new();
                line[5] = String::new();
            }
            line
        })
        .collect()
}

fn cells(row: &VerifyRow) -> Vec<String> {
    vec![
        row.row.to_string(),
        row.target.clone(),
        row.asked.clone(),
        row.expected.map(|expected| expected.to_string()).unwrap_or_default(),
        row.oracle.clone(),
        row.guest.clone(),
        row.verdict.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_client::api::verify::Expected;

    fn row(asked: &str, verdict: Verdict) -> VerifyRow {
        VerifyRow {
            row: 6,
            target: "cloud metadata".to_owned(),
            asked: asked.to_owned(),
            expected: Some(Expected::Refused),
            oracle: "sent, reset".to_owned(),
            guest: "refused\x1b[2J".to_owned(),
            verdict,
        }
    }

    #[test]
    fn what_went_wrong_is_never_folded_away() {
        let verified = Verified {
            ok: false,
            problems: vec!["1 probe was not as promised".to_owned()],
            vm: "agents-1".to_owned(),
            throw_away: false,
            address: [169, 254, 100, 2].into(),
            control: "1.1.1.1:443".to_owned(),
            rows: vec![row("tcp a", Verdict::Ok), row("udp a", Verdict::Ok), row("ping a", Verdict::Wrong)],
        };
        let said = text(&verified, false);
        assert!(said.contains("2 probes") && said.contains("ping a") && said.contains("WRONG"), "{said}");
        assert!(said.contains("3 probes from agents-1 (169.254.100.2): 2 ok, 1 wrong"), "{said}");
        assert!(
            said.ends_with("NOT VERIFIED: 1 probe was not as promised\n") && !said.contains('\x1b'),
            "{said}"
        );
        assert!(text(&verified, true).contains("tcp a"));
    }
}
