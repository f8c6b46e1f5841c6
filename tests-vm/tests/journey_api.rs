//! What the HTTP API does with a real guest: processes and files in one request and answer each, events,
//! and a VM that goes by itself.

use enisle_tests_vm::{Daemon, Site, ok};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ONE: &str = "- name: agents\n  network: { mode: isolated, range: \"169.254.100.0/22\" }";
const VM: &str = "/v1/vms/agents-1";

/// Sends a request; what is read from the connection is its answer.
fn send(site: &Site, method: &str, path: &str, body: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(site.api()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(240))).unwrap();
    // Of this version the end of an answer is the end of its connection.
    let head = format!("{method} {path} HTTP/1.0\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream
}

fn http(site: &Site, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut answer = Vec::new();
    send(site, method, path, body).read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), answer[end + 4..].to_vec())
}

fn get(site: &Site, path: &str) -> Value {
    let (status, body) = http(site, "GET", path, b"");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

fn run(site: &Site, body: &Value) -> Value {
    let (status, answer) = http(site, "POST", &format!("{VM}/exec"), body.to_string().as_bytes());
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    serde_json::from_slice(&answer).unwrap()
}

#[test]
fn processes_and_files_over_plain_http() {
    let site = Site::new();
    let daemon = site.up(ONE);
    let told = run(
        &site,
        &json!({"argv": ["sh", "-c", "cat; id -un; echo oops >&2; exit 3"], "stdin": "in\n", "timeout_ms": 60_000}),
    );
    assert_eq!((&told["exit_code"], &told["stdout"]["data"]), (&json!(3), &json!("in\nroot\n")));
    assert_eq!(told["stderr"]["data"], "oops\n");
    let told = run(&site, &json!({"argv": ["sleep", "1000"], "timeout_ms": 500}));
    assert_eq!((&told["timed_out"], &told["signal"]), (&json!(true), &json!(9)));
    let told = run(&site, &json!({"argv": ["head", "-c", "2000000", "/dev/zero"]}));
    assert_eq!((&told["stdout"]["truncated"], &told["stdout"]["bytes"]), (&json!(true), &json!(2_000_000)));
    files_go_both_ways(&site);
    trees_are_made_listed_and_removed(&site);
    files_are_watched(&site, &daemon);
    archives_go_both_ways(&site);
    who_hangs_up_leaves_no_process(&site, &daemon);
    let events = ok(&daemon.run(&["events", "--vm", "agents-1", "--json"]));
    let kinds: Vec<Value> =
        events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone()).collect();
    assert_eq!(kinds, ["vm_created", "vm_ready"]);
    assert!(daemon.stop().success());
}

fn files_go_both_ways(site: &Site) {
    let mut data = vec![0; 3 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    let path = format!("{VM}/files?path=/root/a%20file");
    assert_eq!(http(site, "PUT", &path, &data).0, 204);
    let (status, back) = http(site, "GET", &path, b"");
    assert!(status == 200 && back == data, "{status}, {} bytes", back.len());
    let found = get(site, &format!("{VM}/files/stat?path=/root/a%20file"));
    assert_eq!((&found["kind"], &found["size"]), (&json!("file"), &json!(data.len())));
    assert_eq!(http(site, "GET", &format!("{VM}/files?path=/no/such"), b"").0, 404);
    assert_eq!(http(site, "PUT", &format!("{VM}/files?path=/no/such/file"), b"x").0, 404);
}

fn trees_are_made_listed_and_removed(site: &Site) {
    let at = |verb: &str, path: &str| format!("{VM}/files{verb}?path={path}");
    assert_eq!(http(site, "POST", &format!("{}&parents=true", at("/mkdir", "/root/t/deep")), b"").0, 204);
    assert_eq!(http(site, "PUT", &at("", "/root/t/b"), b"1").0, 204);
    let found = get(site, &at("/list", "t"));
    let names: Vec<&str> =
        found["entries"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["b", "deep"]);
    assert_eq!(http(site, "DELETE", &at("", "/root/t"), b"").0, 400, "it is not empty");
    assert_eq!(http(site, "DELETE", &format!("{}&recursive=true", at("", "/root/t")), b"").0, 204);
    assert_eq!(http(site, "GET", &at("/stat", "/root/t"), b"").0, 404);
}

/// What happens is told with real files, by the API and the command, and nothing is left of a watch in the guest.
fn files_are_watched(site: &Site, daemon: &Daemon<'_>) {
    // The agent is the parent of what it runs.
    let descriptors = || -> u32 {
        let count = "cat /proc/$PPID/fdinfo/* 2>/dev/null | grep -c '^inotify' || true";
        run(site, &json!({"argv": ["sh", "-c", count]}))["stdout"]["data"]
            .as_str()
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    let at = |verb: &str, path: &str| format!("{VM}/files{verb}?path={path}");
    assert_eq!(http(site, "GET", &at("/watch", "w"), b"").0, 404);
    assert_eq!(daemon.sh("agents-1", "mkdir -p /root/w/below"), "");
    assert_eq!(descriptors(), 0);
    let mut answer =
        BufReader::new(send(site, "GET", &format!("{}&recursive=true", at("/watch", "/root/w")), b""));
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        answer.read_line(&mut line).unwrap();
    }
    let mut told = answer.lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    assert_eq!(told.next().unwrap(), json!({"type": "watching"}));
    assert_eq!(descriptors(), 2, "a directory and the one in it");
    assert_eq!(
        daemon.sh(
            "agents-1",
            "cd /root/w; echo 1 > below/a; mv below/a b; rm b; mkdir -p new/deep; mv new old"
        ),
        ""
    );
    for (kind, path) in [("created", "below/a"), ("modified", "below/a")] {
        assert_eq!(told.next().unwrap(), json!({"type": kind, "path": path, "directory": false}));
    }
    assert_eq!(
        told.next().unwrap(),
        json!({"type": "moved", "from": "below/a", "to": "b", "directory": false})
    );
    assert_eq!(told.next().unwrap(), json!({"type": "removed", "path": "b", "directory": false}));
    assert_eq!(told.next().unwrap(), json!({"type": "created", "path": "new", "directory": true}));
    while told.next().unwrap() != json!({"type": "moved", "from": "new", "to": "old", "directory": true}) {}
    assert_eq!(daemon.sh("agents-1", "echo 1 > /root/w/old/deep/file"), "");
    while told.next().unwrap() != json!({"type": "modified", "path": "old/deep/file", "directory": false}) {}
    drop(told);
    let begun = Instant::now();
    while descriptors() != 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "a watch outlived its reader");
    }
    let mut command = site
        .enisle(&["vm", "watch", "agents-1", "w"])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(command.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "watching");
    assert_eq!(daemon.sh("agents-1", "rm -r /root/w"), "");
    let mut rest: Vec<String> = lines.collect();
    rest.sort();
    assert_eq!(rest, ["removed below/", "removed old/"]);
    assert_eq!(command.wait().unwrap().code(), Some(0), "it ends with what it watches");
}

fn archives_go_both_ways(site: &Site) {
    let source = site.dir().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let tar = Command::new("tar").arg("-C").arg(site.dir()).args(["-c", "source"]).output().unwrap();
    assert_eq!(http(site, "PUT", &format!("{VM}/archive?path=/root"), &tar.stdout).0, 204);
    let (status, archive) = http(site, "GET", &format!("{VM}/archive?path=/root/source"), b"");
    assert_eq!(status, 200);
    assert_eq!(http(site, "PUT", &format!("{VM}/archive?path=/root/copy"), &archive).0, 204);
    assert_eq!(http(site, "GET", &format!("{VM}/files?path=copy/file"), b"").1, b"content");
}

fn who_hangs_up_leaves_no_process(site: &Site, daemon: &Daemon<'_>) {
    let running = || {
        daemon.sh(
            "agents-1",
            "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '[s]leep 4321' || true",
        )
    };
    let body = json!({"argv": ["sleep", "4321"]}).to_string();
    let request = send(site, "POST", &format!("{VM}/exec"), body.as_bytes());
    let until = |expected: &str| {
        let begun = Instant::now();
        while running() != expected {
            assert!(begun.elapsed() < Duration::from_secs(60), "not {expected} in a minute");
        }
    };
    until("1");
    drop(request);
    until("0");
}

#[test]
fn an_idle_vm_goes_and_says_why() {
    let site = Site::new();
    let daemon =
        site.up("- name: agents\n  count: 0\n  network: { mode: isolated, range: \"169.254.100.0/22\" }");
    let mut follower = site
        .enisle(&["events", "-f", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let name = ok(&daemon.run(&[
        "vm",
        "new",
        "--label",
        "job=1",
        "--idle-timeout",
        "5s",
        "--wait",
        "--timeout",
        "4m",
    ]));
    assert_eq!(ok(&daemon.run(&["vm", "list", "-q", "--label", "job=1"])), name);
    // Longer than it may be idle: it is in use.
    assert_eq!(daemon.sh(name.trim(), "sleep 8; echo done"), "done");
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let events = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let mut removed = None;
    for event in events {
        if event["type"] == "vm_removed" {
            removed = Some(event);
            break;
        }
    }
    assert_eq!(removed.unwrap()["removal"], "idle");
    assert_eq!(daemon.json(&["vm", "list"]), json!([]));
    assert!(daemon.stop().success());
    // It ends with the daemon.
    assert_eq!(follower.wait().unwrap().code(), Some(0));
}
