//! Processes and files in one request and answer each, with a fake guest that keeps to the protocol.

use super::*;
use enisle_api::{Captured, Encoding, RunOutcome};

async fn api_with_vm() -> Api {
    let api = api(Guest::Honest);
    assert_eq!(api.json("POST", routes::VMS, r#"{"wait":true}"#).await.0, 201);
    api
}

async fn run(api: &Api, body: &Value) -> RunOutcome {
    let (status, answer) = api.json("POST", "/v1/vms/agents-1/exec", &body.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    serde_json::from_value(answer).unwrap()
}

#[tokio::test]
async fn a_process_is_run_to_its_end_with_its_input_and_output() {
    let api = api_with_vm().await;
    let text = "line ü\n".repeat(30_000);
    let outcome = run(&api, &json!({"argv": ["cat"], "stdin": text})).await;
    assert_eq!((outcome.exit_code, outcome.signal, outcome.timed_out), (0, None, false));
    assert_eq!(outcome.stdout.data, text, "more than three windows, both ways");
    let outcome = run(&api, &json!({"argv": ["cat"], "stdin_base64": "//79"})).await;
    let base64 = Captured { encoding: Encoding::Base64, data: "//79".into(), truncated: false, bytes: 3 };
    assert_eq!(outcome.stdout, base64);
    let outcome = run(&api, &json!({"argv": ["binary"]})).await;
    assert_eq!((outcome.exit_code, outcome.stdout.data.as_str()), (3, "/wA="));
    assert_eq!((outcome.stderr.data.as_str(), outcome.stderr.encoding), ("ü", Encoding::Utf8));
    let outcome = run(&api, &json!({"argv": ["flood"]})).await.stdout;
    assert_eq!((outcome.truncated, outcome.encoding, outcome.bytes), (true, Encoding::Utf8, 1_500_001));
    assert_eq!(outcome.data.len(), 1024 * 1024 - 1, "cut between characters");
    let outcome = run(&api, &json!({"argv": ["sleep"], "timeout_ms": 20})).await;
    assert_eq!((outcome.exit_code, outcome.signal, outcome.timed_out), (137, Some(9), true));
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_with_its_place() {
    let api = api_with_vm().await;
    for (body, status, pointer) in [
        (r#"{"argv":[]}"#, 400, "/argv"),
        (r#"{}"#, 400, ""),
        (r#"{"argv":["cat"],"stdin":"","stdin_base64":""}"#, 400, "/stdin_base64"),
        (r#"{"argv":["cat"],"stdin_base64":"?"}"#, 400, "/stdin_base64"),
        (r#"{"argv":["cat"],"timeout_ms":0}"#, 400, "/timeout_ms"),
        (r#"{"argv":["cat"],"timeout_ms":3600001}"#, 400, "/timeout_ms"),
        (r#"{"argv":["cat"],"tty":{}}"#, 400, "/tty"),
        (r#"{"argv":["missing"]}"#, 404, ""),
    ] {
        let (got, detail, at) = api.problem("POST", "/v1/vms/agents-1/exec", body).await;
        assert_eq!((got, at.as_str()), (status, pointer), "{body}: {detail}");
    }
    let long = json!({"argv": ["cat", "x".repeat(20_000)]}).to_string();
    let (status, detail, _) = api.problem("POST", "/v1/vms/agents-1/exec", &long).await;
    assert_eq!(status, 400, "{detail}");
    assert_eq!(api.problem("POST", "/v1/vms/nobody/exec", r#"{"argv":["cat"]}"#).await.0, 404);
}

/// Sends a request, reads up to `until` of the answer, and hangs up.
async fn hang_up(api: &Api, request: &str, until: &str) {
    let mut client = UnixStream::connect(&api.socket).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&seen).contains(until) {
        let read = timeout(SOON, client.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "it ends before {until}");
        seen.extend_from_slice(&buffer[..read]);
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_nothing_behind_in_the_guest() {
    let mut api = api_with_vm().await;
    assert_eq!(api.bench.told().await, "you are agents-1");
    let body = r#"{"argv":["sleep"]}"#;
    let head = |method: &str, path: &str, length: usize| {
        format!("{method} /v1/vms/agents-1/{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
    };
    hang_up(&api, &format!("{}{body}", head("POST", "exec", body.len())), "").await;
    assert_eq!(timeout(SOON, api.bench.told()).await.unwrap(), "killed sleep");
    hang_up(&api, &head("GET", "files?path=/big", 0), "200 OK").await;
    assert_eq!(timeout(SOON, api.bench.told()).await.unwrap(), "left /big");
    hang_up(&api, &format!("{}half", head("PUT", "files?path=/new", 100)), "").await;
    assert_eq!(timeout(SOON, api.bench.told()).await.unwrap(), "removed unfinished /new");
}

#[tokio::test]
async fn files_and_archives_go_both_ways_without_a_bound_in_the_daemon() {
    let mut api = api_with_vm().await;
    assert_eq!(api.bench.told().await, "you are agents-1");
    for (route, kind, raw) in
        [("files", "application/octet-stream", true), ("archive", "application/x-tar", false)]
    {
        let path = format!("/v1/vms/agents-1/{route}?path=%2Fa%20b");
        let (status, got, body) = api.ask("GET", &path, "").await;
        assert_eq!((status, got.as_str()), (200, kind));
        assert_eq!(body, format!("/a b raw={raw} ").repeat(10_000).into_bytes());
        // More than a JSON body may have.
        assert_eq!(api.ask("PUT", &path, &"x".repeat(3 << 20)).await.0, 204);
        assert_eq!(api.bench.told().await, format!("wrote /a b raw={raw} {} bytes", 3 << 20));
        assert_eq!(api.ask("PUT", &path, "").await.0, 204, "an empty one");
        assert_eq!(api.bench.told().await, format!("wrote /a b raw={raw} 0 bytes"));
    }
    assert_eq!(api.problem("GET", "/v1/vms/agents-1/files?path=/missing", "").await.0, 404);
    assert_eq!(api.problem("GET", "/v1/vms/agents-1/files", "").await.0, 400);
    let (status, detail, _) =
        api.problem("PUT", "/v1/vms/agents-1/files?path=/full", &"x".repeat(1 << 20)).await;
    assert_eq!((status, detail.as_str()), (502, "ENOSPC"));
}

#[tokio::test]
async fn half_a_file_is_not_taken_for_a_whole_one() {
    let api = api_with_vm().await;
    let mut client = UnixStream::connect(&api.socket).await.unwrap();
    client.write_all(b"GET /v1/vms/agents-1/files?path=/half HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = timeout(SOON, client.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK") && answer.len() > 100_000);
    assert!(!answer.ends_with(b"0\r\n\r\n"), "no end of a chunked body");
}

#[tokio::test]
async fn a_request_ends_with_its_vm_and_keeps_it_from_being_idle() {
    let api = api_with_vm().await;
    let body = r#"{"argv":["sleep"]}"#;
    let (answer, _) = tokio::join!(api.problem("POST", "/v1/vms/agents-1/exec", body), async {
        let vm = api.bench.registry.get("agents-1").unwrap();
        while vm.open_streams() == 0 {
            tokio::task::yield_now().await;
        }
        api.ask("DELETE", "/v1/vms/agents-1", "").await
    });
    assert_eq!(answer.0, 409, "{}", answer.1);
}

#[tokio::test]
async fn files_are_described_listed_made_and_removed() {
    let mut api = api_with_vm().await;
    assert_eq!(api.bench.told().await, "you are agents-1");
    let files = "/v1/vms/agents-1/files";
    let (status, found) = api.json("GET", &format!("{files}/stat?path=/a%20b"), "").await;
    assert_eq!(
        (status, &found["name"], &found["kind"], &found["mode"]),
        (200, &json!("/a b"), &json!("file"), &json!(420))
    );
    let (_, found) = api.json("GET", &format!("{files}/list?path=/"), "").await;
    assert_eq!((&found["entries"][0]["name"], &found["truncated"]), (&json!("a"), &json!(false)));
    let (_, found) = api.json("GET", &format!("{files}/list?path=/many"), "").await;
    assert_eq!((found["entries"].as_array().unwrap().len(), &found["truncated"]), (10_000, &json!(true)));
    for _ in 0..3 {
        api.bench.told().await;
    }
    assert_eq!(api.ask("POST", &format!("{files}/mkdir?path=d&parents=true"), "").await.0, 204);
    assert_eq!(api.bench.told().await, r#"MakeDir { path: "d", parents: true }"#);
    assert_eq!(api.ask("DELETE", &format!("{files}?path=d"), "").await.0, 204);
    assert_eq!(api.bench.told().await, r#"Remove { path: "d", recursive: false }"#);
    assert_eq!(api.ask("DELETE", &format!("{files}?path=d&recursive=true"), "").await.0, 204);
    for (method, path, status, said) in [
        ("GET", "stat?path=/missing", 404, "refuses"),
        ("POST", "mkdir?path=/missing", 404, "refuses"),
        ("GET", "list?path=/lies", 502, "broke the protocol"),
        ("GET", "list?path=/endless", 502, "a line that does not end"),
        ("GET", "stat?path=/old", 502, "closed the connection"),
        ("GET", "stat", 400, "path"),
        ("GET", "stat?path=/x&recursive=true", 400, "recursive"),
    ] {
        let (got, detail, _) = api.problem(method, &format!("{files}/{path}"), "").await;
        assert!(got == status && detail.contains(said), "{path}: {got} {detail}");
    }
}

#[tokio::test]
async fn files_are_watched_until_they_are_gone_or_the_client_is() {
    let mut api = api_with_vm().await;
    assert_eq!(api.bench.told().await, "you are agents-1");
    let watch = "/v1/vms/agents-1/files/watch";
    let (status, kind, body) = api.ask("GET", &format!("{watch}?path=/a&recursive=true"), "").await;
    assert_eq!((status, kind.as_str()), (200, "application/jsonl"));
    let told = r#"{"type":"watching"}"#.to_owned()
        + "\n"
        + r#"{"type":"moved","from":"a","to":"b","directory":true}"#;
    assert_eq!(String::from_utf8(body).unwrap(), told + "\n");
    assert_eq!(api.bench.told().await, r#"Watch { path: "/a", recursive: true }"#);
    for (path, status, said) in [
        ("?path=/missing", 404, "refuses"),
        ("?path=/too-many", 400, "at most 4096 directories"),
        ("?path=/lies", 502, "first line"),
        ("?path=/old", 502, "closed the connection"),
        ("", 400, "path"),
        ("?path=/x&follow=true", 400, "follow"),
    ] {
        let (got, detail, _) = api.problem("GET", &format!("{watch}{path}"), "").await;
        assert!(got == status && detail.contains(said), "{path}: {got} {detail}");
    }
    let request = format!("GET {watch}?path=/stays HTTP/1.1\r\nhost: x\r\n\r\n");
    hang_up(&api, &request, "moved").await;
    let last = async { while api.bench.told().await != "watches no more" {} };
    timeout(SOON, last).await.unwrap();
}
