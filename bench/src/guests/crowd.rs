//! Line 17: the API under two hundred clients at a time, for a minute.
//!
//! Owns: the crowd, and what one client alone takes, right before it. A look-up by one of 200 clients cannot take less
//! than 200 of them one after the other where the machine is the limit, which is what its p99 is compared with. Refuses:
//! an answer that is not the right one; each is counted.

use std::time::{Duration, Instant};

use anyhow::Result;
use enisle_client::api::RunExec;
use enisle_client::{Client, Endpoint};
use tokio::task::JoinSet;

use super::site::Site;
use crate::Effort;
use crate::report::{Row, Target};
use crate::statistics::{median, ms, percentile};

const CLIENTS: usize = 200;
/// Look-ups for each process that is run in the guest.
const LOOKS: usize = 7;
/// Of one client alone.
const ALONE: usize = 500;

/// What clients saw, in milliseconds.
#[derive(Default)]
struct Seen {
    looks: Vec<f64>,
    execs: Vec<f64>,
    wrong: usize,
}

pub(super) fn measure(effort: Effort, site: &Site, vm: &str) -> Result<Vec<Row>> {
    let endpoint: Endpoint = site.api().parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let alone = runtime.block_on(alone(Client::new(endpoint.clone()), vm))?;
    let time = Duration::from_secs(effort.of(60) as u64);
    let seen = runtime.block_on(crowd(&endpoint, vm, time));
    let p99 = percentile(&seen.looks, 99);
    let answers = seen.looks.len() + seen.execs.len();
    let note = format!(
        "p50 {:.1}, p99 {p99:.1} ms of {} look-ups; one client alone p50 {alone:.2} ms",
        median(&seen.looks),
        seen.looks.len()
    );
    let execs = format!(
        "of {answers} answers in {} s; `exec true` among them: {}, p50 {:.0}, p99 {:.0} ms",
        time.as_secs(),
        seen.execs.len(),
        median(&seen.execs),
        percentile(&seen.execs, 99)
    );
    let shares = p99 / (alone * CLIENTS as f64);
    Ok(vec![
        Row::figure(
            17,
            "200 clients for a minute: wrong answers",
            Target::AtMost(0.0),
            &[seen.wrong as f64],
            &execs,
        ),
        Row::figure(
            17,
            "p99 of a look-up / 200 of one client, one after the other",
            Target::AtMost(2.0),
            &[shares],
            &note,
        ),
    ])
}

/// The p50 of a look-up by one client.
async fn alone(client: Client, vm: &str) -> Result<f64> {
    let mut looks = Vec::new();
    for _ in 0..ALONE {
        let begun = Instant::now();
        client.vm(vm).await?;
        looks.push(ms(begun.elapsed()));
    }
    Ok(median(&looks))
}

async fn crowd(endpoint: &Endpoint, vm: &str, time: Duration) -> Seen {
    let until = Instant::now() + time;
    let mut clients: JoinSet<Seen> =
        (0..CLIENTS).map(|number| one(Client::new(endpoint.clone()), vm.to_owned(), number, until)).collect();
    let mut all = Seen::default();
    while let Some(seen) = clients.join_next().await {
        // A client that panicked is one whose answers are not known.
        let Ok(seen) = seen else {
            all.wrong += 1;
            continue;
        };
        all.looks.extend(seen.looks);
        all.execs.extend(seen.execs);
        all.wrong += seen.wrong;
    }
    all
}

async fn one(client: Client, vm: String, number: usize, until: Instant) -> Seen {
    let mut seen = Seen::default();
    let run = RunExec { argv: vec!["/bin/true".into()], timeout_ms: Some(600_000), ..Default::default() };
    let mut turn = number;
    while Instant::now() < until {
        let begun = Instant::now();
        let right = if turn.is_multiple_of(LOOKS + 1) {
            let right = client.run(&vm, &run).await.is_ok_and(|outcome| outcome.exit_code == 0);
            seen.execs.push(ms(begun.elapsed()));
            right
        } else {
            let right = client.vm(&vm).await.is_ok_and(|found| found.name == vm);
            seen.looks.push(ms(begun.elapsed()));
            right
        };
        seen.wrong += usize::from(!right);
        turn += 1;
    }
    seen
}
