//! Two hundred clients at a time: none is refused, none starves, and nothing of them is left.

use enisle_client::api::{FileKind, RunExec};
use enisle_client::{Client, Endpoint};
use enisle_tests_vm::{Daemon, Site};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const CLIENTS: usize = 200;
const MINUTE: Duration = Duration::from_secs(60);
/// A vsock device that counts its ports has come past every port below 1024 by then.
const SESSIONS: usize = 1300;
const VM: &str = "agents-1";
const ONE: &str = "- name: agents\n  count: 1\n  image: minimal\n  network: { mode: isolated, range: \"169.254.100.0/22\" }";

/// One client: rounds of everything, three parts of it in the guest, until the time is up; how many. `number` is
/// where in a round it begins, so that the crowd asks for different things at a time.
async fn client(client: Client, number: usize, until: Instant) -> usize {
    let mut rounds = 0;
    while rounds == 0 || Instant::now() < until {
        for step in 0..8 {
            ask(&client, (number + step) % 8).await;
        }
        rounds += 1;
    }
    rounds
}

/// One request, whose answer must be the right one.
async fn ask(client: &Client, kind: usize) {
    match kind {
        0 => assert_eq!(client.vms().await.unwrap().len(), 1),
        1 => assert_eq!(client.vm(VM).await.unwrap().name, VM),
        2 => assert_eq!(client.groups().await.unwrap()[0].name, "agents"),
        3 => assert_eq!(client.vm_policy(VM).await.unwrap().name, VM),
        4 => assert_eq!(client.stat(VM, "/etc/passwd").await.unwrap().kind, FileKind::File),
        5 => {
            let argv = vec!["echo".into(), "x".into()];
            let run = RunExec { argv, timeout_ms: Some(600_000), ..Default::default() };
            let outcome = client.run(VM, &run).await.unwrap();
            assert_eq!((outcome.exit_code, outcome.stdout.data.as_str()), (0, "x\n"));
        }
        6 => assert!(!client.list_dir(VM, "/etc").await.unwrap().entries.is_empty()),
        _ => assert_eq!(client.health().await.unwrap().status, "ok"),
    }
}

/// One who only looks, all the while; the slowest answer.
async fn bystander(client: Client, until: Instant) -> Duration {
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        let begun = Instant::now();
        client.vm(VM).await.unwrap();
        slowest = slowest.max(begun.elapsed());
    }
    slowest
}

async fn minute(endpoint: Endpoint) -> (Vec<usize>, Duration) {
    let until = Instant::now() + MINUTE;
    let looks = tokio::spawn(bystander(Client::new(endpoint.clone()), until));
    let mut crowd: JoinSet<usize> =
        (0..CLIENTS).map(|number| client(Client::new(endpoint.clone()), number, until)).collect();
    let mut rounds = Vec::new();
    // A panic in a client is a request that was not answered as it should have been.
    while let Some(done) = crowd.join_next().await {
        rounds.push(done.unwrap());
    }
    (rounds, looks.await.unwrap())
}

/// As many sessions with the guest as make more than `SESSIONS` with those there were.
async fn many_more(endpoint: Endpoint, before: usize) {
    let mut crowd: JoinSet<()> = (0..8)
        .map(|_| Client::new(endpoint.clone()))
        .map(|client| async move {
            for _ in 0..SESSIONS.saturating_sub(before).div_ceil(8) {
                client.stat(VM, "/etc/passwd").await.unwrap();
            }
        })
        .collect();
    while let Some(done) = crowd.join_next().await {
        done.unwrap();
    }
}

fn descriptors(daemon: &Daemon<'_>) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

#[test]
fn two_hundred_clients_for_a_minute() {
    let site = Site::new();
    let daemon = site.up(ONE);
    // Named by the shell itself, before anything else runs: what lists them is not among them.
    let processes = || {
        let all = daemon.sh(VM, "set -- /proc/[0-9]*/exe; for exe; do readlink $exe || true; done");
        let mut all: Vec<String> = all.lines().map(str::to_owned).collect();
        all.sort();
        all
    };
    let (inside, outside) = (processes(), descriptors(&daemon));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (rounds, slowest) = runtime.block_on(minute(Endpoint::unix(site.api())));
    runtime.block_on(many_more(Endpoint::unix(site.api()), rounds.iter().sum::<usize>() * 3));
    drop(runtime);
    let (fewest, most) = (rounds.iter().min().unwrap(), rounds.iter().max().unwrap());
    println!(
        "{} rounds, {fewest} to {most} a client; who only looks waited {slowest:?} at most",
        rounds.iter().sum::<usize>()
    );
    assert!(*most <= fewest * 3, "{fewest} to {most} rounds a client: some starve");
    assert!(slowest < Duration::from_secs(10), "who only looks waited {slowest:?} for what guests do");
    let begun = Instant::now();
    loop {
        let now = processes();
        if now == inside {
            break;
        }
        assert!(
            begun.elapsed() < MINUTE,
            "processes are left in the guest: {now:?}, before it were {inside:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let begun = Instant::now();
    while descriptors(&daemon) > outside {
        assert!(begun.elapsed() < MINUTE, "{} descriptors, before it were {outside}", descriptors(&daemon));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
    assert!(daemon.stop().success());
}
