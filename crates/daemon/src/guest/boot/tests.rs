//! The boot connection against guests of every kind.

use super::*;
use crate::parts::fake::{hear, say};
use crate::vm::tests::{plan, plan_with_keys};
use enisle_guest_proto::{Decoder, Kind, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

struct Bench {
    channel: BootChannel,
    news: mpsc::Receiver<BootNews>,
    socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), Some("#!/bin/sh\n"));
    bench_of(plan, dir)
}

fn bench_of(plan: Arc<VmPlan>, dir: tempfile::TempDir) -> Bench {
    let socket = dir.path().join("boot");
    let (tell, news) = mpsc::channel(16);
    let channel = BootChannel::serve(UnixListener::bind(&socket).unwrap(), plan, tell);
    Bench { channel, news, socket, _dir: dir }
}

impl Bench {
    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    async fn next(&mut self) -> BootNews {
        timeout(SOON, self.news.recv()).await.expect("no news").unwrap()
    }

    async fn greet(&mut self, booted: bool) -> (UnixStream, BootConfig) {
        let mut guest = self.connect().await;
        say(&mut guest, &Hello { version: VERSION, agent: "1.0\x07".into(), booted }).await;
        let config = hear(&mut guest, &mut Decoder::default()).await.unwrap();
        assert_eq!(self.next().await, BootNews::Greeted { agent: "1.0 ".into() });
        (guest, config)
    }
}

async fn closed(guest: &mut UnixStream) {
    let mut rest = Vec::new();
    // A reset is an end as well.
    let _ = timeout(SOON, guest.read_to_end(&mut rest)).await.expect("still connected");
}

#[tokio::test]
async fn a_guest_is_told_who_it_is() {
    let mut bench = bench();
    let (_guest, config) = bench.greet(false).await;
    assert_eq!(config.hostname, "agents-1");
    let net = config.net.unwrap();
    assert_eq!((net.address.octets(), net.gateway.octets()), ([169, 254, 100, 2], [169, 254, 100, 1]));
    assert_eq!((net.prefix_len, net.mtu), (30, 1500));
    // Not the group's resolver, which the daemon asks in its stead.
    assert_eq!(net.dns, [net.gateway]);
    assert!(config.unix_time_ns > 1_700_000_000_000_000_000);
}

#[tokio::test]
async fn the_script_is_sent_once_whatever_reconnects() {
    let mut bench = bench();
    let (mut guest, _) = bench.greet(false).await;
    say(&mut guest, &BootEvent::Ready {}).await;
    assert_eq!(bench.next().await, BootNews::Ready);
    let script: BootCommand = hear(&mut guest, &mut Decoder::default()).await.unwrap();
    assert_eq!(script, BootCommand::Userdata { part: "#!/bin/sh\n".into(), last: true });
    let (mut again, _) = bench.greet(true).await;
    closed(&mut guest).await;
    say(&mut again, &BootEvent::Ready {}).await;
    assert_eq!(bench.next().await, BootNews::Ready);
    assert!(bench.channel.stopper().ask().await, "the new connection has taken the old one's place");
    let command: BootCommand = hear(&mut again, &mut Decoder::default()).await.unwrap();
    assert_eq!(command, BootCommand::Shutdown {}, "and no script before it");
}

#[tokio::test]
async fn nobody_there_to_be_asked_is_an_answer() {
    let mut bench = bench();
    assert!(!bench.channel.stopper().ask().await);
    let (guest, _) = bench.greet(false).await;
    assert!(bench.channel.stopper().ask().await);
    drop(guest);
    while timeout(SOON, bench.channel.stopper().ask()).await.expect("it hangs") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn garbage_closes_the_connection_and_the_next_guest_is_served() {
    let mut wires = vec![
        vec![0xff; 4096],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0, 0, 0, 0, 0],
        vec![5, 0, 0, 0, 1, 1, 1, 1, 1, 1],
    ];
    let mut json = Vec::new();
    encode(Kind::Control, br#"{"version":1,"agent":"x","booted":false,"admin":true}"#, &mut json);
    wires.push(json);
    let mut bench = bench();
    for wire in wires {
        let mut guest = bench.connect().await;
        // It may be closed in the middle.
        let _ = guest.write_all(&wire).await;
        closed(&mut guest).await;
    }
    bench.greet(false).await;
}

#[tokio::test]
async fn a_guest_that_talks_without_end_is_cut_off() {
    let mut bench = bench();
    let (mut guest, _) = bench.greet(false).await;
    let flood = tokio::spawn(async move {
        for _ in 0..1000 {
            say(&mut guest, &BootEvent::UserdataDone { code: 0 }).await;
        }
        closed(&mut guest).await;
    });
    let mut heard = 0;
    while !flood.is_finished() {
        if timeout(Duration::from_millis(20), bench.news.recv()).await.is_ok() {
            heard += 1;
        }
    }
    assert!(heard <= MAX_EVENTS, "{heard}");
    flood.await.unwrap();
}

#[tokio::test]
async fn an_agent_of_another_version_is_named_and_told_ours() {
    let mut bench = bench();
    let mut guest = bench.connect().await;
    say(&mut guest, &Hello { version: 999, agent: "9".into(), booted: false }).await;
    let config: BootConfig = hear(&mut guest, &mut Decoder::default()).await.unwrap();
    assert_eq!(config.version, VERSION);
    assert_eq!(bench.next().await, BootNews::OtherVersion { agent: 999 });
    closed(&mut guest).await;
}

#[tokio::test]
async fn an_identity_that_fits_no_frame_is_said_instead_of_tried_for_ever() {
    let blob = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 32], &[7; 32]].concat();
    let blob = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, blob);
    let keys: Vec<String> = (0..4).map(|n| format!("ssh-ed25519 {blob} {n}{}", "x".repeat(5000))).collect();
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench_of(plan_with_keys(dir.path(), &keys), dir);
    let mut guest = bench.connect().await;
    say(&mut guest, &Hello { version: VERSION, agent: "1".into(), booted: false }).await;
    match bench.next().await {
        BootNews::SetupFailed { reason } => assert!(reason.contains("ssh_keys"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn connections_without_a_word_do_not_keep_the_guest_out() {
    let mut bench = bench();
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(bench.connect().await);
    }
    bench.greet(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_has_its_bound() {
    let bench = bench();
    let mut guest = bench.connect().await;
    let begun = Instant::now();
    let mut byte = [0];
    assert_eq!(guest.read(&mut byte).await.unwrap(), 0);
    assert!(begun.elapsed() >= HELLO_PATIENCE);
}
