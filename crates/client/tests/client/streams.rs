//! Streams against a daemon that holds the client to the protocol, or breaks it.

use crate::fake_daemon::FakeDaemon;
use enisle_client::api::stream::{Exec, GuestFailure};
use enisle_client::{Client, Endpoint, Error, ExitStatus};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn client(daemon: &FakeDaemon) -> Client {
    Client::new(Endpoint::unix(&daemon.socket))
}

fn exec(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|&word| word.into()).collect(), ..Exec::default() }
}

fn exited(code: i32) -> ExitStatus {
    ExitStatus { code, signal: None, timed_out: false }
}

/// Bytes that differ from each other over long distances, so that a lost window shows.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Waits for something that the double does in its own time.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap_or_else(|_| panic!("not in 10 s: {what}"));
}

#[tokio::test]
async fn both_directions_in_bulk_at_once() {
    let daemon = FakeDaemon::start();
    let mut process =
        client(&daemon).exec("agents-1", exec(&["sh", "-c", "cat; echo done >&2; exit 7"])).await.unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (process.stdin.take().unwrap(), process.stdout.take().unwrap(), process.stderr.take().unwrap());
    let sent = pattern(10 * 1024 * 1024 + 1);
    let (mut out, mut err) = (Vec::new(), String::new());
    let write = async {
        stdin.write_all(&sent).await.unwrap();
        drop(stdin);
    };
    let (_, read, _, status) =
        tokio::join!(write, stdout.read_to_end(&mut out), stderr.read_to_string(&mut err), process.wait());
    read.unwrap();
    assert!(out == sent, "{} of {} bytes", out.len(), sent.len());
    assert_eq!(err, "done\n");
    assert_eq!(status.unwrap(), exited(7));
    daemon.assert_obeyed();
}

#[tokio::test]
async fn output_that_nobody_reads_holds_the_process_and_not_the_signal() {
    let daemon = FakeDaemon::start();
    let mut process = client(&daemon).exec("agents-1", exec(&["yes"])).await.unwrap();
    let mut stdout = process.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1000]).await.unwrap();
    process.controller().signal(15);
    eventually("the signal arrives", || daemon.shared.seen.lock().unwrap().signals == [15]).await;
    let mut rest = Vec::new();
    let (read, status) = tokio::join!(stdout.read_to_end(&mut rest), process.wait());
    read.unwrap();
    assert_eq!(status.unwrap().signal, Some(15));
    // What was in flight: one window, and what the process's pipe holds.
    assert!(rest.len() <= 2 * 65_536, "{}", rest.len());
    daemon.assert_obeyed();
}

#[tokio::test]
async fn output_that_was_not_taken_does_not_hold_the_process() {
    let daemon = FakeDaemon::start();
    let process =
        client(&daemon).exec("agents-1", exec(&["head", "-c", "3000000", "/dev/zero"])).await.unwrap();
    let status = tokio::time::timeout(Duration::from_secs(20), process.wait()).await.expect("it ends");
    assert_eq!(status.unwrap(), exited(0));
    daemon.assert_obeyed();
}

#[tokio::test]
async fn a_dropped_handle_ends_the_process() {
    let daemon = FakeDaemon::start();
    let marker = daemon.guest_root().join("pid");
    let mut process = client(&daemon)
        .exec("agents-1", exec(&["sh", "-c", "echo $$ > pid; echo up; exec sleep 1000"]))
        .await
        .unwrap();
    process.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).await.unwrap();
    let pid: u32 = std::fs::read_to_string(marker).unwrap().trim().parse().unwrap();
    drop(process);
    let stat = format!("/proc/{pid}/stat");
    let gone = || !std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z"));
    eventually("the process ends", gone).await;
    assert_eq!(daemon.shared.seen.lock().unwrap().abandoned, 1);
}

#[tokio::test]
async fn a_cancelled_wait_closes_the_connection_too() {
    let daemon = FakeDaemon::start();
    let process = client(&daemon).exec("agents-1", exec(&["sleep", "1000"])).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), process.wait()).await.is_err());
    eventually("the daemon sees it", || daemon.shared.seen.lock().unwrap().abandoned == 1).await;
}

#[tokio::test]
async fn endings_keep_their_kind() {
    let daemon = FakeDaemon::start();
    let client = client(&daemon);
    let killed =
        client.exec("agents-1", exec(&["sh", "-c", "kill -9 $$"])).await.unwrap().wait().await.unwrap();
    assert_eq!(killed, ExitStatus { code: 137, signal: Some(9), timed_out: false });
    let slow = Exec { timeout_ms: Some(50), ..exec(&["sleep", "1000"]) };
    assert!(client.exec("agents-1", slow).await.unwrap().wait().await.unwrap().timed_out);
    let missing = client.exec("agents-1", exec(&["/no/such"])).await.unwrap_err();
    assert!(matches!(missing, Error::Guest { failure: GuestFailure::NotFound, .. }), "{missing:?}");
    let denied = client.exec("agents-1", exec(&["/etc/passwd"])).await.unwrap_err();
    assert!(matches!(denied, Error::Guest { failure: GuestFailure::Denied, .. }), "{denied:?}");
}

#[tokio::test]
async fn a_daemon_that_breaks_the_protocol_is_found_out() {
    let daemon = FakeDaemon::start();
    let client = client(&daemon);
    let mute = client.exec("mute", exec(&["x"])).await.unwrap_err();
    assert!(matches!(mute, Error::Broken { .. }), "{mute:?}");
    for name in ["overrun", "flood", "garbage"] {
        let mut process = client.exec(name, exec(&["x"])).await.unwrap();
        let stdout = process.stdout.take();
        let error = process.wait().await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{name}: {error:?}");
        drop(stdout);
    }
}

#[tokio::test]
async fn an_abrupt_end_is_no_end() {
    let daemon = FakeDaemon::start();
    let client = client(&daemon);
    let mut process = client.exec("abrupt", exec(&["x"])).await.unwrap();
    let mut out = Vec::new();
    let read = process.stdout.take().unwrap().read_to_end(&mut out).await;
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(out, b"half of it");
    assert!(matches!(process.wait().await, Err(Error::Broken { .. })));

    let mut archive = client.archive_out("abrupt", "/x", true).await.unwrap();
    assert!(archive.read_to_end(&mut out).await.is_err(), "a cut file must not look whole");
    assert!(archive.finish().await.is_err());
}

#[tokio::test]
async fn connections_close_one_direction_at_a_time() {
    let daemon = FakeDaemon::start();
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let answer = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
    });
    let mut connection = client(&daemon).connect_tcp("agents-1", "127.0.0.1", port).await.unwrap();
    let sent = pattern(300_000);
    connection.write_all(&sent).await.unwrap();
    connection.shutdown().await.unwrap();
    let mut got = Vec::new();
    connection.read_to_end(&mut got).await.unwrap();
    assert!(got == sent);
    answer.await.unwrap();
    let refused = client(&daemon).connect_tcp("agents-1", "127.0.0.1", port).await.unwrap_err();
    assert!(matches!(refused, Error::Guest { failure: GuestFailure::Unreachable, .. }), "{refused:?}");
    daemon.assert_obeyed();
}

#[tokio::test]
async fn files_in_and_out_and_a_full_disk() {
    let daemon = FakeDaemon::start();
    let client = client(&daemon);
    let sent = pattern(500_000);
    let mut archive = client.archive_in("agents-1", "/file", true).await.unwrap();
    archive.write_all(&sent).await.unwrap();
    archive.finish().await.unwrap();
    let mut archive = client.archive_out("agents-1", "/file", true).await.unwrap();
    let mut got = Vec::new();
    archive.read_to_end(&mut got).await.unwrap();
    archive.finish().await.unwrap();
    assert!(got == sent);
    let full = client.archive_in("agents-1", "/full", true).await.unwrap_err();
    assert!(matches!(full, Error::Guest { failure: GuestFailure::NoSpace, .. }), "{full:?}");
    daemon.assert_obeyed();
}
