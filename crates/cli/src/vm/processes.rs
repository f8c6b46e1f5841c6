//! `enisle vm ps`, `kill`, `wait`, `forget`: background processes of a microVM, which `vm exec --detach` starts.

use super::Context;
use crate::Failure;
use crate::exit::{self, ExitCode};
use crate::quantity::{parse_duration, render_age};
use crate::table::{print, print_json, render};
use clap::Args;
use enisle_client::api::{Code, Process, ProcessState};
use enisle_client::{Error, ExitStatus};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const HEADER: [&str; 8] = ["ID", "PID", "STATE", "CODE", "USER", "AGE", "OUTPUT", "COMMAND"];
/// The longest that one request waits.
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
#[command(after_help = "\
OUTPUT is how many bytes it has written; the last 256 KiB are kept. Processes that have ended are listed,
and count among the 64 a VM keeps, until `enisle vm forget`.

Examples:
  enisle vm ps agents-1
  enisle vm ps agents-1 --json | jq '.[] | select(.state == \"running\") | .id'")]
pub(crate) struct PsArgs {
    /// Name of the VM.
    name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The signal goes to the process and its group. Ends with 5 when the process has ended.

Examples:
  enisle vm kill agents-1 3
  enisle vm kill -s KILL agents-1 3")]
pub(crate) struct KillArgs {
    /// Name or number of the signal.
    #[arg(long, short, value_name = "SIGNAL", default_value = "TERM", value_parser = parse_signal)]
    signal: u8,
    /// Name of the VM.
    name: String,
    /// Number of the process.
    id: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The exit code is the process's, or 128+N after signal N, 124 when its time or --timeout was over; 125
when Enisle itself failed. With --json the process is printed.

Examples:
  enisle vm wait agents-1 3
  enisle vm wait agents-1 3 --timeout 10m")]
pub(crate) struct WaitArgs {
    /// Name of the VM.
    name: String,
    /// Number of the process.
    id: u32,
    /// Wait no longer than this, as 30s or 2m; the process goes on.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  enisle vm forget agents-1 3
  enisle vm forget agents-1 3 4 5")]
pub(crate) struct ForgetArgs {
    /// Name of the VM.
    name: String,
    /// Numbers of the processes.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<u32>,
}

pub(super) async fn ps(context: &Context, args: &PsArgs) -> Result<u8, Failure> {
    let processes = context.client.processes(&args.name).await?;
    if context.json {
        print_json(&processes)?;
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        print(&table(&processes, now))?;
    }
    Ok(0)
}

pub(super) async fn kill(context: &Context, args: &KillArgs) -> Result<u8, Failure> {
    context.client.signal_process(&args.name, args.id, args.signal).await?;
    Ok(0)
}

pub(super) async fn wait(context: &Context, args: &WaitArgs) -> Result<u8, Failure> {
    let deadline = args.timeout.and_then(|limit| Instant::now().checked_add(limit));
    let process = loop {
        let left = deadline.map_or(HOUR, |deadline| deadline.saturating_duration_since(Instant::now()));
        let limit = left.clamp(Duration::from_millis(1), HOUR);
        let begun = Instant::now();
        match context.client.wait_process(&args.name, args.id, limit).await {
            Ok(process) => break process,
            // Before the time is over it is something else that took too long: the VM's boot, or its answer.
            Err(Error::Problem(problem)) if problem.code == Code::Timeout && begun.elapsed() >= limit => {
                if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return Err(Failure::from(Error::Problem(problem)));
                }
            }
            Err(error) => return Err(Failure::from(error).exit(ExitCode::ExecFailed)),
        }
    };
    if context.json {
        print_json(&process)?;
    }
    let code = process.exit_code.unwrap_or(0);
    Ok(exit::of_status(ExitStatus { code, signal: process.signal, timed_out: process.timed_out }))
}

pub(super) async fn forget(context: &Context, args: &ForgetArgs) -> Result<u8, Failure> {
    for id in &args.ids {
        context.client.remove_process(&args.name, *id).await?;
    }
    Ok(0)
}

fn table(processes: &[Process], now: Duration) -> String {
    let rows: Vec<Vec<String>> = processes.iter().map(|process| row(process, now)).collect();
    render(&HEADER, &rows)
}

fn row(process: &Process, now: Duration) -> Vec<String> {
    let started = Duration::from_millis(u64::try_from(process.started_ms).unwrap_or(0));
    vec![
        process.id.to_string(),
        if process.state == ProcessState::Running { process.pid.to_string() } else { "-".to_owned() },
        process.state.to_string(),
        process.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string()),
        process.user.clone(),
        // By the guest's clock, which may go before ours; no age then.
        render_age(now.saturating_sub(started)),
        process.output_bytes.to_string(),
        process.argv.join(" "),
    ]
}

/// signal(7): the names whose numbers are the same on every architecture we build for.
fn parse_signal(text: &str) -> Result<u8, String> {
    let name = text.to_ascii_uppercase();
    let number = match name.strip_prefix("SIG").unwrap_or(&name) {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ABRT" => 6,
        "KILL" => 9,
        "USR1" => 10,
        "USR2" => 12,
        "PIPE" => 13,
        "ALRM" => 14,
        "TERM" => 15,
        "CONT" => 18,
        "STOP" => 19,
        "TSTP" => 20,
        "WINCH" => 28,
        number => number.parse().unwrap_or(0),
    };
    if (1..=64).contains(&number) {
        Ok(number)
    } else {
        Err("a signal is a name, as TERM, or 1 to 64".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [("TERM", 15), ("sigkill", 9), ("SIGUSR1", 10), ("64", 64), ("1", 1)] {
            assert_eq!(parse_signal(text), Ok(number), "{text}");
        }
        for bad in ["", "0", "65", "256", "-9", "SIG", "NOPE", "SIGSIGTERM"] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_table_shows_what_runs_and_how_the_others_ended() {
        let running = Process {
            id: 1,
            pid: 300,
            argv: vec!["sh".into(), "-c".into(), "echo \x1b[2J".into()],
            cwd: "/root".into(),
            user: "root".into(),
            started_ms: 1_000_000,
            state: ProcessState::Running,
            exit_code: None,
            signal: None,
            timed_out: false,
            output_bytes: 300_000,
            dropped_bytes: 37_856,
        };
        let killed = Process {
            id: 12,
            state: ProcessState::Killed,
            exit_code: Some(143),
            signal: Some(15),
            started_ms: -1,
            ..running.clone()
        };
        insta::assert_snapshot!(table(&[running, killed], Duration::from_secs(1_090)), @r"
        ID  PID  STATE    CODE  USER  AGE  OUTPUT  COMMAND
        1   300  running  -     root  1m   300000  sh -c echo �[2J
        12  -    killed   143   root  18m  300000  sh -c echo �[2J
        ");
    }
}
