//! A holder's connection: cut whatever it waits for, asked after when it is silent, and not stalled by strangers.

use super::*;

/// A request that waits for a guest which never says anything, and the beginning of another behind it.
async fn waiting(remote: &Remote, token: &str) -> TlsStream<TcpStream> {
    let mut client = remote.connect().await;
    let body = r#"{"wait":true}"#;
    let head = format!(
        "POST /v1/vms HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n{body}GET /v1",
        body.len()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    client
}

#[tokio::test]
async fn a_revoked_token_ends_a_request_that_looks_at_no_more_bytes() {
    let api = api(Guest::Mute);
    let remote = remote(&api).await;
    let (id, text) = token(&api, &["group:agents:rw"]).await;
    let _client = waiting(&remote, &text).await;
    timeout(SOON, async {
        while api.bench.registry.list().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(api.ask("DELETE", &format!("{}/{id}", routes::TOKENS), "").await.0, 204);
        while !api.bench.registry.list().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it goes on");
}

/// Whether the kernel will ask after the other end of the daemon's side of this connection (proc(5): `tr` of a
/// connection that has nothing to send again is 02 when that timer runs).
fn is_asked_after(daemon: SocketAddr, client: SocketAddr) -> bool {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let is = |field: &str, of: SocketAddr| field.ends_with(&format!(":{:04X}", of.port()));
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        is(fields[1], daemon) && is(fields[2], client) && fields[5].starts_with("02:")
    })
}

#[tokio::test]
async fn who_vanishes_without_a_word_is_found_out() {
    let api = api(Guest::Honest);
    let remote = remote(&api).await;
    let (_, text) = token(&api, &["group:agents:ro"]).await;
    let mut holder = remote.connect().await;
    let head =
        format!("GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {text}\r\n\r\n");
    holder.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut holder, "200 OK").await;
    let own = holder.get_ref().0.local_addr().unwrap();
    timeout(SOON, async {
        while !is_asked_after(remote.address, own) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("nobody asks");
}

#[tokio::test]
async fn wrong_attempts_from_the_same_address_do_not_stall_who_is_let_in() {
    // Longer than the test takes.
    let api = api_with(Guest::Honest, Duration::from_secs(60));
    let remote = remote(&api).await;
    let (_, text) = token(&api, &["group:agents:ro"]).await;
    let mut holder = remote.connect().await;
    let list = format!("GET /v1/vms HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {text}\r\n\r\n");
    holder.write_all(list.as_bytes()).await.unwrap();
    read_until(&mut holder, "200 OK").await;
    let mut guessing = Vec::new();
    for _ in 0..crate::access::attempts::AT_ONCE {
        let mut guess = remote.connect().await;
        guess.write_all(b"GET /v1/vms HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        guessing.push(guess);
    }
    // A new connection waits for them, as the address has its share of guesses.
    timeout(SOON, async { while remote.ask(Some(&text), "GET", routes::VMS, "").await.0 != 429 {} })
        .await
        .unwrap();
    holder.write_all(list.as_bytes()).await.unwrap();
    read_until(&mut holder, "200 OK").await;
    drop(guessing);
    assert_eq!(
        remote.ask(Some(&text), "GET", routes::VMS, "").await.0,
        429,
        "hanging up takes no guess back"
    );
}

#[tokio::test]
async fn what_a_client_says_is_no_line_of_the_log() {
    let (lines, _log) = logged();
    let api = api(Guest::Honest);
    let path = "/v1/vms?a%0A2026-01-01T00:00:00Z%20%1B%5B31mERROR%20forged=1";
    let (_, detail, _) = api.problem("GET", path, "").await;
    assert!(detail.contains("\n2026-01-01"), "the client reads what it sent: {detail:?}");
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let quoted =
        |line: &str| serde_json::from_str::<Value>(line).unwrap()["message"].as_str().map(str::to_owned);
    let quoted: Vec<String> = log.lines().filter_map(quoted).filter(|said| said.contains("forged")).collect();
    assert!(!quoted.is_empty(), "{log}");
    assert!(quoted.iter().all(|said| !said.contains(char::is_control)), "{quoted:?}");
}
