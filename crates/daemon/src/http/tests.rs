//! The API over a real unix socket, with parts that exist only as names.

mod access;
mod description;
mod guest;
mod leftover;
mod processes;

use super::*;
use crate::fault::FaultPlan;
use crate::parts::fake::Guest;
use crate::vm::tests::{Bench, bench};
use axum::http::HeaderMap;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

struct Api {
    bench: Bench,
    socket: PathBuf,
    stop: CancellationToken,
    server: JoinHandle<()>,
    router: Router,
    _dir: tempfile::TempDir,
}

fn api(guest: Guest) -> Api {
    api_with(guest, Duration::from_millis(20))
}

/// The same where the answer to a wrong token takes so long.
fn api_with(guest: Guest, slow: Duration) -> Api {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("new/api.sock");
    let bench = bench(guest, FaultPlan::default());
    let version = Version { enisle: "0".into(), scope: "00000000".into(), pid: 1, hypervisor: "none".into() };
    let app = App {
        registry: Arc::clone(&bench.registry),
        version,
        stopping: bench.stopping.clone(),
        tokens: Tokens::open(Arc::clone(&bench.store)).unwrap(),
        attempts: Attempts::new(slow),
        entrances: Arc::default(),
        scraping: Arc::default(),
    };
    let metrics = Arc::clone(bench.registry.metrics());
    let stop = CancellationToken::new();
    let panics = axum::routing::get(|| async { panic!("asked to") as () });
    let router = guarded(routes(Arc::new(app)).route("/panic", panics), metrics);
    let server = tokio::spawn(serve(Listener::bind(&socket).unwrap(), router.clone(), stop.clone()));
    Api { bench, socket, stop, server, router, _dir: dir }
}

impl Api {
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String, Vec<u8>) {
        let (status, headers, body) = self.ask_with(method, path, &[], body).await;
        (status, headers.get("content-type").map_or("", |v| v.to_str().unwrap()).to_owned(), body)
    }

    async fn ask_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, HeaderMap, Vec<u8>) {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = axum::http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.to_owned()).unwrap();
        let response = timeout(SOON, sender.send_request(request)).await.unwrap().unwrap();
        let (head, body) = response.into_parts();
        (head.status.as_u16(), head.headers, body.collect().await.unwrap().to_bytes().to_vec())
    }

    async fn json(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, kind, body) = self.ask(method, path, body).await;
        assert!(kind.starts_with("application/"), "{kind}");
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn problem(&self, method: &str, path: &str, body: &str) -> (u16, String, String) {
        let (status, headers, body) = self.ask_with(method, path, &[], body).await;
        let header = |name| headers.get(name).unwrap().to_str().unwrap();
        assert_eq!(header("content-type"), "application/problem+json", "{}", String::from_utf8_lossy(&body));
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!((problem.status, problem.code.status()), (status, status));
        assert_eq!(problem.kind, format!("/docs#problem-{}", problem.code.name()));
        assert_eq!(problem.instance, Some(format!("urn:uuid:{}", header("x-request-id"))));
        (status, problem.detail, problem.pointer.unwrap_or_default())
    }
}

#[tokio::test]
async fn policies_are_shown_changed_and_refused_with_the_entrys_place() {
    let api = api(Guest::Honest);
    let bad = r#"{"drop":["8.8.8.8","8.8.8.8/8"]}"#;
    assert_eq!(api.problem("POST", routes::VMS, bad).await.2, "/drop/1");
    api.json("POST", routes::VMS, r#"{"wait":true,"drop":["9.9.9.9"]}"#).await;
    let path = "/v1/vms/agents-1/policy";
    let (status, shown) = api.json("GET", path, "").await;
    assert_eq!((status, &shown["lists"]["drop"]), (200, &json!(["9.9.9.9"])));
    let (status, _, pointer) = api.problem("PUT", path, r#"{"drop":["1.1.1.1"],"allow":["0.0.0.0"]}"#).await;
    assert_eq!((status, pointer.as_str()), (400, "/allow/0"));
    assert_eq!(api.problem("PUT", path, r#"{"dorp":[]}"#).await.0, 400);
    assert_eq!(api.json("GET", path, "").await.1, shown);
    let none = r#"{"drop":["0.0.0.0/1","128.0.0.0/1"]}"#;
    let (status, dry) = api.json("PUT", &format!("{path}?dry_run=true"), none).await;
    assert_eq!((status, &dry["dry_run"], &dry["vms"]), (200, &json!(true), &json!(["agents-1"])));
    assert_eq!(api.json("GET", path, "").await.1, shown);
    assert_eq!(api.json("PUT", path, none).await.0, 200);
    assert_eq!(api.json("GET", path, "").await.1["egress_none"], true);
    let group = "/v1/groups/agents/policy";
    assert_eq!(api.json("PUT", group, r#"{"drop":["8.8.8.8"]}"#).await.0, 200);
    assert_eq!(api.json("GET", group, "").await.1["lists"]["drop"], json!(["8.8.8.8"]));
    assert_eq!(api.problem("GET", "/v1/groups/none/policy", "").await.0, 404);
    assert_eq!(api.problem("PUT", "/v1/vms/none/policy", "{}").await.0, 404);
    assert_eq!(api.problem("GET", "/v1/vms/agents-1/why?dest=example.com", "").await.0, 400);
    assert_eq!(api.problem("GET", "/v1/vms/agents-1/why?dest=8.8.8.8", "").await.0, 409, "no slot here");
    api.bench.stopping.cancel();
    api.ask("DELETE", "/v1/vms/agents-1", "").await;
    api.stop.cancel();
    timeout(SOON, api.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn vms_are_made_listed_shown_and_removed() {
    let api = api(Guest::Honest);
    assert_eq!(api.json("GET", routes::VMS, "").await, (200, json!([])));
    let (status, vm) = api.json("POST", routes::VMS, r#"{"wait":true}"#).await;
    assert_eq!((status, &vm["name"], &vm["state"]), (201, &json!("agents-1"), &json!("running")));
    assert_eq!(api.json("GET", "/v1/vms/agents-1", "").await, (200, vm));
    assert_eq!(api.json("GET", routes::GROUPS, "").await.1[0]["vms"], 1);
    assert_eq!(api.ask("DELETE", "/v1/vms/agents-1", "").await.0, 204);
    assert_eq!(api.json("GET", routes::VMS, "").await.1, json!([]));
    assert_eq!(api.json("GET", routes::HEALTH, "").await.1, json!({"status": "ok"}));
    api.bench.stopping.cancel();
    assert_eq!(api.json("GET", routes::HEALTH, "").await.1, json!({"status": "stopping"}));
    assert_eq!(api.problem("POST", routes::VMS, "{}").await.0, 503);
}

#[tokio::test]
async fn every_mistake_is_a_problem_document() {
    let api = api(Guest::Honest);
    let huge = format!(r#"{{"userdata":"{}"}}"#, "x".repeat(3 << 20));
    let cases: &[(&str, &str, &str, u16, &str, &str)] = &[
        ("GET", "/", "", 404, "there is no GET /", ""),
        ("GET", "/v2/vms", "", 404, "/v2/vms", ""),
        ("PUT", routes::VMS, "", 405, "there is no PUT", ""),
        ("DELETE", routes::VMS, "", 405, "there is no DELETE", ""),
        ("POST", "/v1/vms/x/stream", "", 405, "there is no POST", ""),
        ("GET", "/v1/vms/nobody", "", 404, "nobody", ""),
        ("DELETE", "/v1/vms/nobody", "", 404, "nobody", ""),
        ("GET", "/v1/vms/nobody/log", "", 404, "nobody", ""),
        ("GET", "/v1/vms/..%2Fx%00", "", 404, "../x", ""),
        ("GET", "/v1/vms/nobody/log?follow=perhaps", "", 400, "follow", ""),
        ("GET", "/v1/vms/nobody/stream", "", 404, "nobody", ""),
        ("POST", routes::VMS, "", 400, "the body", ""),
        ("POST", routes::VMS, "{", 400, "line 1", ""),
        ("POST", routes::VMS, "[]", 400, "a JSON object", ""),
        ("POST", routes::VMS, " [\"agents\"]", 400, "a JSON object", ""),
        ("GET", "/v1/vms/%ff", "", 400, "UTF-8", ""),
        ("GET", "/v1/vms/%ff/log", "", 400, "UTF-8", ""),
        ("POST", routes::VMS, r#"{"cpus":1}"#, 400, "unknown field `cpus`", "/cpus"),
        ("POST", routes::VMS, r#"{"vcpu":0}"#, 400, "1 to 64", "/vcpu"),
        ("POST", routes::VMS, r#"{"vcpu":300}"#, 400, "300", "/vcpu"),
        ("POST", routes::VMS, r#"{"ram_mb":1}"#, 400, "64", "/ram_mb"),
        ("POST", routes::VMS, r#"{"group":"x"}"#, 404, "agents", "/group"),
        ("POST", routes::VMS, r#"{"name":"-"}"#, 400, "a-z", "/name"),
        ("POST", routes::VMS, &huge, 413, "the body", ""),
    ];
    for (method, path, body, status, detail, pointer) in cases {
        let (got, said, at) = api.problem(method, path, body).await;
        assert_eq!((got, at.as_str()), (*status, *pointer), "{method} {path}: {said}");
        assert!(said.contains(detail), "{method} {path}: {said}");
    }
    assert_eq!(api.json("GET", routes::VMS, "").await.1, json!([]));
}

#[tokio::test]
async fn labels_are_shown_and_filtered_by_and_bad_ones_pointed_at() {
    let api = api(Guest::Honest);
    let bad = r#"{"labels":{"ok":"","a/b c~":"x"}}"#;
    let (status, _, pointer) = api.problem("POST", routes::VMS, bad).await;
    assert_eq!((status, pointer.as_str()), (400, "/labels/a~1b c~0"));
    assert_eq!(api.problem("POST", routes::VMS, r#"{"ttl_ms":0}"#).await.2, "/ttl_ms");
    let create = r#"{"labels":{"team":"a=b","job":"1"},"ttl_ms":60000,"idle_timeout_ms":5000}"#;
    let (_, vm) = api.json("POST", routes::VMS, create).await;
    let expires = vm["created_ms"].as_u64().unwrap() + 60_000;
    assert_eq!((&vm["labels"]["team"], &vm["expires_ms"]), (&json!("a=b"), &json!(expires)));
    api.json("POST", routes::VMS, r#"{"labels":{"team":"c"}}"#).await;
    for (filter, names) in [
        ("?label=team", &["agents-1", "agents-2"][..]),
        ("?label=team%3Da%3Db", &["agents-1"]),
        ("?label=team&label=job=1", &["agents-1"]),
        ("?label=team=c&label=job", &[]),
        ("?", &["agents-1", "agents-2"]),
    ] {
        let (_, found) = api.json("GET", &format!("{}{filter}", routes::VMS), "").await;
        let found: Vec<&str> =
            found.as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap()).collect();
        assert_eq!(found, names, "{filter}");
    }
    assert_eq!(api.problem("GET", "/v1/vms?lable=team", "").await.0, 400);
}

#[tokio::test]
async fn events_are_lines_or_server_sent_from_a_number_on_and_end_with_the_daemon() {
    let api = api(Guest::Honest);
    api.json("POST", routes::VMS, r#"{"wait":true}"#).await;
    let (status, kind, body) = api.ask("GET", routes::EVENTS, "").await;
    assert_eq!((status, kind.as_str()), (200, "application/jsonl"));
    let lines: Vec<Value> = body
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(
        (lines.len(), &lines[0]["type"], &lines[1]["type"]),
        (2, &json!("vm_created"), &json!("vm_ready"))
    );
    let first = lines[0]["seq"].as_u64().unwrap();

    let mut follower = UnixStream::connect(&api.socket).await.unwrap();
    let head = format!(
        "GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nlast-event-id: {first}\r\n\r\n"
    );
    follower.write_all(head.as_bytes()).await.unwrap();
    let mut seen = String::new();
    let mut read_until = async |follower: &mut UnixStream, what: &str| {
        timeout(SOON, async {
            while !seen.contains(what) {
                let mut buffer = [0; 4096];
                let read = follower.read(&mut buffer).await.unwrap();
                assert!(read > 0, "it ends before {what}: {seen}");
                seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
        })
        .await
        .unwrap();
        seen.clone()
    };
    let seen = read_until(&mut follower, "vm_ready").await;
    assert!(seen.contains("content-type: text/event-stream") && !seen.contains("vm_created"), "{seen}");
    assert!(seen.contains(&format!("id: {}\nevent: vm_ready\ndata: {{", first + 1)), "{seen}");
    api.ask("DELETE", "/v1/vms/agents-1", "").await;
    let seen = read_until(&mut follower, "vm_removed").await;
    assert!(seen.contains(r#""removal":"deleted""#), "{seen}");
    api.bench.registry.events().close();
    // The end of a chunked answer.
    read_until(&mut follower, "\r\n0\r\n\r\n").await;

    let old = format!("{}?since=5", routes::EVENTS);
    let body = String::from_utf8(api.ask("GET", &old, "").await.2).unwrap();
    assert!(body.starts_with('{') && body.contains(r#""other_run":true"#), "{body}");
    for bad in ["since=x", "since=-1", "follow=maybe", "before=1"] {
        assert_eq!(api.problem("GET", &format!("{}?{bad}", routes::EVENTS), "").await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let api = api(Guest::Honest);
    let (status, headers, _) = api.ask_with("PATCH", routes::VMS, &[], "").await;
    assert_eq!(status, 405);
    let mut allowed: Vec<&str> = headers["allow"].to_str().unwrap().split(',').collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
}

#[tokio::test]
async fn one_key_makes_one_vm_whatever_happens() {
    let api = api(Guest::Honest);
    let make = async |key: &str, body: &str| {
        let (status, headers, body) =
            api.ask_with("POST", routes::VMS, &[("idempotency-key", key)], body).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        (status, headers.contains_key("idempotency-replayed"), body)
    };
    let (waits, spaced) = (r#"{"wait":true,"vcpu":2}"#, r#" { "vcpu": 2, "wait" : true } "#);
    // At once: one is made, all get it.
    let made = tokio::join!(make("a", waits), make("a", spaced), make("\"a\"", waits));
    for (status, _, vm) in [&made.0, &made.1, &made.2] {
        assert_eq!((*status, &vm["name"], &vm["state"]), (201, &json!("agents-1"), &json!("running")));
    }
    assert_eq!([made.0.1, made.1.1, made.2.1].iter().filter(|replayed| !**replayed).count(), 1);
    let (status, replayed, vm) = make("a", waits).await;
    assert_eq!((status, replayed, &vm["name"]), (201, true, &json!("agents-1")));
    let (status, _, problem) = make("a", "{}").await;
    assert_eq!((status, &problem["code"]), (422, &json!("key_reused")));
    let (_, _, other) = make("b", waits).await;
    assert_eq!(other["name"], "agents-2");
    assert_eq!(api.json("GET", routes::VMS, "").await.1.as_array().unwrap().len(), 2);
    // Gone, and its name another's.
    api.ask("DELETE", "/v1/vms/agents-1", "").await;
    api.json("POST", routes::VMS, r#"{"name":"agents-1"}"#).await;
    let (status, _, problem) = make("a", waits).await;
    assert_eq!((status, &problem["code"]), (410, &json!("gone")));
    for bad in ["", "\"\"", &"k".repeat(256)] {
        assert_eq!(make(bad, waits).await.0, 400, "{bad:?}");
    }
}

#[tokio::test]
async fn a_key_of_a_vm_that_failed_may_be_tried_again() {
    let api = api(Guest::Honest);
    api.bench.parts.fault("disk", crate::parts::fake::Fault::Fail);
    let key = [("idempotency-key", "a")];
    assert_eq!(api.ask_with("POST", routes::VMS, &key, r#"{"wait":true}"#).await.0, 500);
    assert_eq!(api.ask_with("POST", routes::VMS, &key, r#"{"wait":true}"#).await.0, 201);
}

/// Collects log lines.
#[derive(Clone, Default)]
struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The log of this thread from now on, as JSON lines, until the guard goes.
fn logged() -> (Lines, tracing::subscriber::DefaultGuard) {
    crate::vm::tests::two_subscribers();
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone());
    let log = log.with_max_level(tracing::Level::DEBUG).finish();
    (lines, tracing::subscriber::set_default(log))
}

#[tokio::test]
async fn a_requests_id_is_in_its_answer_and_in_the_log_of_what_was_done_for_it() {
    let (lines, _log) = logged();
    let api = api(Guest::Honest);
    // A thread that was in the middle of asking has its answer by the end of these.
    api.ask("POST", routes::VMS, "{}").await;
    api.ask("GET", "/v1/vms/nobody", "").await;
    tracing::callsite::rebuild_interest_cache();
    let (_, made, _) = api.ask_with("POST", routes::VMS, &[], "{}").await;
    let (_, wrong, _) = api.ask_with("GET", "/v1/vms/nobody", &[], "").await;
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |headers: &HeaderMap| -> Vec<String> {
        let id = headers["x-request-id"].to_str().unwrap();
        let of_it = |line: &&Value| line["span"]["id"] == id;
        lines.iter().filter(of_it).map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    };
    // The owner task goes on with it, before or after the answer.
    assert_eq!(
        said(&made).iter().filter(|line| ["creating", "answered"].contains(&line.as_str())).count(),
        2
    );
    assert_eq!(said(&wrong), ["there is no VM named \"nobody\""]);
    assert_ne!(made["x-request-id"], wrong["x-request-id"]);
}

#[tokio::test]
async fn names_are_taken_and_ranges_are_full() {
    let api = api(Guest::Honest);
    let create = r#"{"name":"one"}"#;
    assert_eq!(api.json("POST", routes::VMS, create).await.0, 201);
    assert_eq!(api.problem("POST", routes::VMS, create).await.0, 409);
    assert_eq!(api.json("POST", routes::VMS, "{}").await.0, 201);
    let (status, detail, _) = api.problem("POST", routes::VMS, "{}").await;
    assert_eq!(status, 422);
    assert!(detail.contains("169.254.100.0/29"), "{detail}");
}

#[tokio::test]
async fn a_start_that_fails_is_answered_with_its_reason() {
    let api = api(Guest::Broken);
    let (status, detail, _) = api.problem("POST", routes::VMS, r#"{"wait":true}"#).await;
    assert_eq!(status, 500);
    assert!(detail.contains("mount /dev/vda"), "{detail}");
    assert_eq!(api.json("GET", routes::VMS, "").await.1, json!([]));
}

#[tokio::test]
async fn a_client_that_hangs_up_while_it_waits_leaves_no_vm() {
    let api = api(Guest::Mute);
    let mut client = UnixStream::connect(&api.socket).await.unwrap();
    let body = r#"{"wait":true}"#;
    let head = format!("POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    client.write_all(head.as_bytes()).await.unwrap();
    timeout(SOON, async {
        while api.bench.registry.list().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(client);
        while !api.bench.registry.list().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_panic_in_a_handler_is_one_requests_problem() {
    let api = api(Guest::Honest);
    assert_eq!(api.problem("GET", "/panic", "").await.0, 500);
    assert_eq!(api.json("GET", routes::HEALTH, "").await.0, 200);
}

#[tokio::test]
async fn garbage_and_silence_on_the_socket_hurt_nobody_and_do_not_hold_up_the_end() {
    let api = api(Guest::Honest);
    let mut garbage = UnixStream::connect(&api.socket).await.unwrap();
    garbage.write_all(&[0xff; 1024]).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = timeout(SOON, garbage.read_to_end(&mut answer)).await.unwrap();
    let _silent = UnixStream::connect(&api.socket).await.unwrap();
    let mut half = UnixStream::connect(&api.socket).await.unwrap();
    half.write_all(b"POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
    assert_eq!(api.json("GET", routes::HEALTH, "").await.0, 200);
    api.stop.cancel();
    timeout(SOON, api.server).await.expect("the API does not end").unwrap();
    assert!(!api.socket.exists(), "the socket's file is gone");
}

#[tokio::test]
async fn a_following_log_ends_with_its_vm() {
    let api = api(Guest::Honest);
    api.json("POST", routes::VMS, r#"{"wait":true}"#).await;
    let (status, kind, _) = api.ask("GET", "/v1/vms/agents-1/log?follow=true", "").await;
    assert_eq!((status, kind.as_str()), (200, "application/octet-stream"));
}

#[tokio::test]
async fn the_socket_is_private_replaces_a_stale_one_and_respects_a_live_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/er/api.sock");
    let first = Listener::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(_))));
    assert!(path.exists(), "the live one's file stays");
    // A daemon that was killed leaves the file without anybody behind it.
    std::mem::forget(first);
    let stale = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let second = Listener::bind(&stale).unwrap();
    drop(second);
    assert!(!stale.exists());
    let file = dir.path().join("file");
    std::fs::write(&file, "somebody's").unwrap();
    assert!(matches!(Listener::bind(&file), Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "somebody's");
}
