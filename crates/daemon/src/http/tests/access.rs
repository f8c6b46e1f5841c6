//! Who may do what, over real TLS: every route for every kind of caller.

mod held;

use super::access::Need;
use super::*;
use crate::http::tcp::Bound;
use enisle_api::openapi;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The same API on TCP.
struct Remote {
    address: SocketAddr,
    connector: TlsConnector,
}

async fn remote(api: &Api) -> Remote {
    patient(api, Duration::from_secs(30)).await
}

/// The same where a stranger may stay one for so long.
async fn patient(api: &Api, patience: Duration) -> Remote {
    let dir = api.socket.parent().unwrap().join("tls");
    let certificates = Arc::new(Certificates::own(&dir, &["127.0.0.1".to_owned()]).unwrap());
    let mut bound = Bound::bind(&["127.0.0.1:0".parse().unwrap()], None).unwrap();
    bound.patience = patience;
    let entrances = Arc::new(bound.entrances(Some(certificates)));
    let address = entrances.listens()[0].strip_prefix("https://").unwrap().parse().unwrap();
    tokio::spawn(serve_tcp(bound, entrances, api.router.clone(), api.stop.clone()));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("certificate.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    Remote { address, connector: TlsConnector::from(Arc::new(config)) }
}

impl Remote {
    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        self.connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await.unwrap()
    }

    async fn ask(
        &self,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: &str,
    ) -> (u16, HeaderMap, Value) {
        self.ask_with(token, [method, path, body], None).await
    }

    async fn ask_with(
        &self,
        token: Option<&str>,
        [method, path, body]: [&str; 3],
        key: Option<&str>,
    ) -> (u16, HeaderMap, Value) {
        let io = TokioIo::new(self.connect().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let mut request = axum::http::Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request.body(body.to_owned()).unwrap();
        let response = timeout(SOON, sender.send_request(request)).await.unwrap().unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), head.headers, serde_json::from_slice(&body).unwrap_or_default())
    }
}

/// A new token, made over the unix socket: its id and itself.
async fn token(api: &Api, scopes: &[&str]) -> (String, String) {
    let (status, made) = api.json("POST", routes::TOKENS, &json!({"scopes": scopes}).to_string()).await;
    assert_eq!(status, 201, "{made}");
    (made["id"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn the_document_says_of_each_route_what_the_table_asks() {
    let document = openapi::document();
    for (path, methods) in table() {
        for (method, need) in methods.needs {
            let word = match need {
                Need::Nothing => "none",
                Need::Read => "ro",
                Need::Write => "rw",
                Need::Admin => "admin",
            };
            let operation = &document["paths"][path][method.as_str().to_lowercase()];
            assert_eq!(operation["x-scope"], word, "{method} {path}");
        }
    }
}

/// What a caller gets, as far as this test is about it.
#[derive(Debug, PartialEq)]
enum Door {
    In,
    Unauthorized,
    Forbidden,
    /// The same as for a name that nobody has.
    NothingThere,
}

#[tokio::test]
async fn every_route_for_every_kind_of_caller() {
    let api = api(Guest::Honest);
    let remote = remote(&api).await;
    let wrong = format!("enisle_0123abcd_{}", "0".repeat(64));
    let mut callers = vec![("nobody", None), ("wrong", Some(wrong)), ("rubbish", Some("x".to_owned()))];
    for scope in ["admin", "group:agents:rw", "group:agents:ro", "group:others:rw", "group:others:ro"] {
        callers.push((scope, Some(token(&api, &[scope]).await.1)));
    }
    let mut asked = 0;
    for (path, methods) in table() {
        for (method, need) in methods.needs {
            for (caller, token) in &callers {
                // One request of this table removes it.
                api.ask("POST", routes::VMS, r#"{"wait":true,"name":"agents-1"}"#).await;
                let named = path.contains("{name}");
                let expected = match (need, *caller) {
                    (Need::Nothing, _) | (_, "admin") => Door::In,
                    (_, "nobody" | "wrong" | "rubbish") => Door::Unauthorized,
                    (Need::Admin, _) => Door::Forbidden,
                    (_, "group:agents:rw") | (Need::Read, "group:agents:ro") => Door::In,
                    (Need::Write, "group:agents:ro") => Door::Forbidden,
                    (_, "group:others:rw" | "group:others:ro") if named => Door::NothingThere,
                    (Need::Write, "group:others:ro") => Door::Forbidden,
                    _ => Door::In,
                };
                let found = door(&remote, token.as_deref(), method.as_str(), path).await;
                assert_eq!(found, expected, "{method} {path} for {caller}");
                asked += 1;
            }
        }
    }
    assert!(asked >= 25 * callers.len(), "{asked}");
    // What is answered without being declared is `GET` without its body.
    for (token, status) in [(None, 401), (callers[3].1.as_deref(), 200)] {
        assert_eq!(remote.ask(token, "HEAD", routes::VMS, "").await.0, status);
    }
}

async fn door(remote: &Remote, token: Option<&str>, method: &str, path: &str) -> Door {
    let own = if path.contains("/groups/") { "agents" } else { "agents-1" };
    let filled = |name: &str| path.replace("{name}", name).replace("{file}", "page.js").replace("{id}", "x");
    // What a handler would act on is no JSON here, so that none does.
    let (status, headers, answer) = remote.ask(token, method, &filled(own), "x").await;
    match status {
        401 => {
            assert_eq!(headers["www-authenticate"], "Bearer realm=\"enisle\"");
            assert_eq!(
                (&answer["code"], &headers["connection"]),
                (&json!("unauthorized"), &"close".parse().unwrap())
            );
            return Door::Unauthorized;
        }
        403 => {
            assert_eq!(answer["code"], "forbidden");
            return Door::Forbidden;
        }
        _ => assert_ne!(status, 429, "{answer}"),
    }
    if !path.contains("{name}") {
        return Door::In;
    }
    let (other, _, told) = remote.ask(token, method, &filled("nobodys"), "x").await;
    let text = |answer: &Value| answer["detail"].as_str().unwrap_or_default().replace(own, "nobodys");
    if (status, text(&answer)) != (other, text(&told)) {
        return Door::In;
    }
    // A body is read before a name is looked up, whoever asks.
    assert!(status == 404 || status == 400, "{method} {path}: {status} {answer}");
    let reads_first = status == 400;
    if reads_first && sees(remote, token).await { Door::In } else { Door::NothingThere }
}

/// Whether the caller sees the VM at all.
async fn sees(remote: &Remote, token: Option<&str>) -> bool {
    remote.ask(token, "GET", "/v1/vms/agents-1", "").await.0 == 200
}

#[tokio::test]
async fn lists_events_and_creations_are_of_the_tokens_groups() {
    let api = api(Guest::Honest);
    let remote = remote(&api).await;
    let (_, own) = token(&api, &["group:agents:rw"]).await;
    let (_, other) = token(&api, &["group:others:rw", "group:more:ro"]).await;
    assert_eq!(remote.ask(Some(&own), "POST", routes::VMS, r#"{"wait":true}"#).await.0, 201);
    for (path, seen) in [(routes::VMS, 1), (routes::GROUPS, 1)] {
        for (token, count) in [(&own, seen), (&other, 0)] {
            let (status, _, list) = remote.ask(Some(token), "GET", path, "").await;
            assert_eq!((status, list.as_array().unwrap().len()), (200, count), "{path}");
        }
    }
    let (_, _, problem) = remote.ask(Some(&other), "POST", routes::VMS, r#"{"group":"agents"}"#).await;
    assert_eq!((&problem["code"], &problem["pointer"]), (&json!("not_found"), &json!("/group")));
    assert!(!problem["detail"].as_str().unwrap().contains("there are: agents"), "{problem}");
    let (_, _, problem) = remote.ask(Some(&other), "POST", routes::VMS, "{}").await;
    assert_eq!(
        (&problem["code"], &problem["detail"]),
        (&json!("invalid_request"), &json!("which group? there are: "))
    );

    let mut follower = remote.connect().await;
    let head = |token: &str, path: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n")
    };
    follower.write_all(head(&other, "/v1/events?follow=true").as_bytes()).await.unwrap();
    let mut stream = remote.connect().await;
    stream.write_all(head(&own, "/v1/events?follow=true").as_bytes()).await.unwrap();
    read_until(&mut stream, "vm_ready").await;
    api.bench
        .registry
        .events()
        .tell(enisle_api::EventKind::VmAdopted { vm: "x".into(), group: "others".into() });
    let seen = read_until(&mut follower, "vm_adopted").await;
    assert!(!seen.contains("agents"), "{seen}");
}

async fn read_until(stream: &mut TlsStream<TcpStream>, what: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(what) {
        let mut buffer = [0; 4096];
        let read = timeout(SOON, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "it ends before {what}: {seen}");
        seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    seen
}

#[tokio::test]
async fn a_key_is_its_tokens_own() {
    let api = api(Guest::Honest);
    let remote = remote(&api).await;
    let (_, first) = token(&api, &["group:agents:rw"]).await;
    let (_, second) = token(&api, &["group:agents:rw"]).await;
    let body = r#"{"labels":{"job":"17"}}"#;
    let mut names = Vec::new();
    for token in [&first, &second, &first] {
        let (status, _, vm) = remote.ask_with(Some(token), ["POST", routes::VMS, body], Some("k")).await;
        assert_eq!(status, 201, "{vm}");
        names.push(vm["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(names, ["agents-1", "agents-2", "agents-1"]);
}

#[tokio::test]
async fn a_revoked_token_ends_at_once_with_what_was_begun_with_it() {
    let api = api(Guest::Honest);
    let remote = remote(&api).await;
    let (id, text) = token(&api, &["group:agents:ro"]).await;
    let (_, other) = token(&api, &["admin"]).await;
    api.json("POST", routes::VMS, r#"{"wait":true}"#).await;
    let mut streams = Vec::new();
    for token in [&text, &other] {
        let mut stream = remote.connect().await;
        let head = format!(
            "GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        read_until(&mut stream, "vm_ready").await;
        streams.push(stream);
    }
    assert_eq!(api.ask("DELETE", &format!("{}/{id}", routes::TOKENS), "").await.0, 204);
    let mut rest = [0; 64];
    // An end without the last chunk, or a broken connection.
    let ended = timeout(SOON, streams[0].read(&mut rest)).await.expect("the stream goes on");
    assert!(!ended.is_ok_and(|read| rest[..read].ends_with(b"0\r\n\r\n")));
    let (status, _, problem) = remote.ask(Some(&text), "GET", routes::VMS, "").await;
    assert_eq!(
        (status, problem["detail"].as_str().unwrap()),
        (401, format!("the token {id} is revoked").as_str())
    );
    assert_eq!(api.problem("DELETE", &format!("{}/{id}", routes::TOKENS), "").await.0, 404);
    api.ask("DELETE", "/v1/vms/agents-1", "").await;
    read_until(&mut streams[1], "vm_removed").await;
    let (_, listed) = api.json("GET", routes::TOKENS, "").await;
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert!(listed.to_string().contains("revoked_ms") && !listed.to_string().contains(&text));
}

#[tokio::test]
async fn an_address_makes_few_wrong_attempts_at_a_time_and_none_is_logged_whole() {
    let (lines, _log) = logged();
    // Longer than all of them take to come.
    let api = api_with(Guest::Honest, Duration::from_secs(3));
    let remote = remote(&api).await;
    let (id, text) = token(&api, &["group:agents:rw"]).await;
    let wrong = format!("{}{}", &text[..16], "0".repeat(64));
    let all = (0..24).map(|_| remote.ask(Some(&wrong), "GET", routes::VMS, ""));
    let all = futures_util::future::join_all(all).await;
    let count = |wanted: u16| all.iter().filter(|(status, ..)| *status == wanted).count();
    assert_eq!(count(401) + count(429), 24);
    assert!(count(401) >= 4 && count(429) >= 1, "{} and {}", count(401), count(429));
    let limited = all.iter().find(|(status, ..)| *status == 429).unwrap();
    assert_eq!(
        (&limited.1["retry-after"], &limited.2["code"]),
        (&"1".parse().unwrap(), &json!("too_many_attempts"))
    );
    // Free again as soon as they are answered.
    assert_eq!(remote.ask(Some(&text), "POST", routes::VMS, "{}").await.0, 201);
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(!log.contains(&text[16..]) && !log.contains(&wrong[16..]));
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let refused =
        lines.iter().find(|line| line["message"] == "a request with a wrong token was refused").unwrap();
    assert_eq!((&refused["token"], &refused["why"]), (&json!(id), &json!("not known here")));
    assert!(refused["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    let creating = |line: &&Value| line["message"] == "creating";
    let span = &lines.iter().find(creating).unwrap()["span"];
    assert_eq!((&span["token"], span["from"].as_str().is_some()), (&json!(id), true), "{span}");
}

#[tokio::test]
async fn the_log_says_which_process_asked_on_the_unix_socket() {
    let (lines, _log) = logged();
    let api = api(Guest::Honest);
    api.json("POST", routes::VMS, "{}").await;
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let creating = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let span = creating.into_iter().find(|line| line["message"] == "creating").unwrap()["span"].clone();
    assert_eq!(span["pid"], std::process::id());
    assert_eq!(span["uid"], rustix::process::getuid().as_raw());
    assert_eq!(span["gid"], rustix::process::getgid().as_raw());
}

#[tokio::test]
async fn plain_http_is_told_that_this_is_tls_and_silence_hurts_nobody() {
    let api = api(Guest::Honest);
    let remote = remote(&api).await;
    let _silent = TcpStream::connect(remote.address).await.unwrap();
    let mut garbage = TcpStream::connect(remote.address).await.unwrap();
    garbage.write_all(&[22, 3, 1, 0xff, 0xff, 1, 2, 3]).await.unwrap();
    let mut plain = TcpStream::connect(remote.address).await.unwrap();
    plain.write_all(b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let read = async {
        while !answer.ends_with('}') {
            let mut buffer = [0; 1024];
            let read = plain.read(&mut buffer).await.unwrap();
            assert!(read > 0, "{answer}");
            answer.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
    };
    timeout(SOON, read).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("speaks TLS"), "{answer}");
    assert_eq!(remote.ask(None, "GET", routes::HEALTH, "").await.0, 200);
    api.stop.cancel();
    timeout(SOON, api.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_brings_no_token_in_time_is_cut_and_a_holder_stays() {
    let api = api(Guest::Honest);
    let patience = Duration::from_millis(700);
    let remote = patient(&api, patience).await;
    let (_, text) = token(&api, &["group:agents:ro"]).await;
    let begun = std::time::Instant::now();
    let mut holder = remote.connect().await;
    let head =
        format!("GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {text}\r\n\r\n");
    holder.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut holder, "200 OK").await;
    let mut stranger = remote.connect().await;
    stranger.write_all(b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    read_until(&mut stranger, "200 OK").await;
    let mut rest = Vec::new();
    // An end without a word of TLS is an error too.
    let _ = timeout(SOON, stranger.read_to_end(&mut rest)).await.expect("the stranger stays");
    assert!(begun.elapsed() >= patience);
    api.json("POST", routes::VMS, "{}").await;
    read_until(&mut holder, "vm_created").await;
}

#[tokio::test]
async fn one_addresss_strangers_starve_neither_the_unix_socket_nor_holders() {
    let api = api(Guest::Honest);
    let remote = remote(&api).await;
    let (_, text) = token(&api, &["group:agents:ro"]).await;
    let mut holder = remote.connect().await;
    let list = format!("GET /v1/vms HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {text}\r\n\r\n");
    holder.write_all(list.as_bytes()).await.unwrap();
    read_until(&mut holder, "200 OK").await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(remote.address).await.unwrap());
    }
    let last = silent.last_mut().unwrap();
    let read = timeout(SOON, last.read(&mut [0])).await.expect("one too many is let in");
    assert!(!read.is_ok_and(|read| read > 0));
    assert_eq!(api.json("GET", routes::HEALTH, "").await.0, 200);
    holder.write_all(list.as_bytes()).await.unwrap();
    read_until(&mut holder, "200 OK").await;
    silent.clear();
    // Their ends have to be seen first.
    timeout(SOON, async {
        loop {
            let stream = TcpStream::connect(remote.address).await.unwrap();
            if remote.connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await.is_ok() {
                break;
            }
        }
    })
    .await
    .unwrap();
}
