//! Background processes of a real guest, over the command line and HTTP: they are read from and waited for by many,
//! bounded, and there for the next daemon.

use enisle_tests_vm::{Daemon, Site, fails, ok};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const ONE: &str =
    "- name: agents\n  image: minimal\n  network: { mode: isolated, range: \"169.254.100.0/22\" }";
const VM: &str = "agents-1";
const ALL: &str = "/v1/vms/agents-1/processes";
/// Bytes that are kept of an output.
const RING: u64 = 256 * 1024;
const PATIENCE: Duration = Duration::from_secs(240);

fn http(site: &Site, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(site.api()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Of this version the end of an answer is the end of its connection.
    let length = body.len();
    let ask = format!("{method} {ALL}{path} HTTP/1.0\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(ask.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_slice(&answer[end + 4..]).unwrap_or_default())
}

fn start(daemon: &Daemon<'_>, script: &str) -> String {
    let id = ok(&daemon.run(&["vm", "exec", "-d", VM, "--", "sh", "-c", script]));
    id.trim_end().parse::<u32>().unwrap_or_else(|e| panic!("{id:?}: {e}")).to_string()
}

fn ps(daemon: &Daemon<'_>, id: &str) -> Value {
    let all = daemon.json(&["vm", "ps", VM]);
    let id: u64 = id.parse().unwrap();
    let found = all.as_array().unwrap().iter().find(|process| process["id"] == id);
    found.unwrap_or_else(|| panic!("no process {id} in {all}")).clone()
}

fn forget(daemon: &Daemon<'_>, id: &str) {
    ok(&daemon.run(&["vm", "forget", VM, id]));
}

#[test]
fn background_processes_outlive_who_started_them() {
    let site = Site::new();
    let daemon = site.up(ONE);
    are_listed_read_and_waited_for(&site, &daemon);
    a_full_ring_is_counted_exactly(&site, &daemon);
    are_signalled_and_waited_for_in_time(&site, &daemon);
    the_sixty_fifth_is_refused(&site, &daemon);
    let daemon = are_there_for_the_next_daemon(&site, daemon);
    assert!(daemon.stop().success());
}

fn are_listed_read_and_waited_for(site: &Site, daemon: &Daemon<'_>) {
    let script = "echo out; echo err >&2; until [ -e /root/go ]; do sleep 0.2; done; echo end; exit 7";
    let body = json!({"argv": ["sh", "-c", script], "cwd": "/tmp", "env": [["A", "b"]]}).to_string();
    let (status, started) = http(site, "POST", "", &body);
    assert_eq!((status, &started["state"], &started["cwd"]), (201, &json!("running"), &json!("/tmp")));
    let id = started["id"].to_string();
    let begun = Instant::now();
    while ps(daemon, &id)["output_bytes"] != 8 {
        assert!(begun.elapsed() < PATIENCE, "{}", ps(daemon, &id));
    }
    let (_, output) = http(site, "GET", &format!("/{id}/output"), "");
    assert_eq!((&output["stdout"]["data"], &output["stderr"]["data"]), (&json!("out\n"), &json!("err\n")));
    assert_eq!(
        (&output["next"], &output["dropped"], &output["running"]),
        (&json!(8), &json!(0), &json!(true))
    );
    // Two who are attached, of whom one goes away: the process and the other do not mind.
    let attach = |since: &str| {
        let mut attached = site.enisle(&["vm", "attach", VM, &id, "--since", since]);
        let pipe = std::process::Stdio::piped;
        attached.stdin(std::process::Stdio::null()).stdout(pipe()).stderr(pipe()).spawn().unwrap()
    };
    let (mut first, second, late) = (attach("0"), attach("0"), attach("8"));
    let mut seen = [0; 4];
    first.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"out\n");
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(ps(daemon, &id)["state"], "running");
    assert_eq!(daemon.sh(VM, "touch /root/go; echo touched"), "touched");
    assert_eq!(daemon.run(&["vm", "wait", VM, &id]).status.code(), Some(7));
    let second = second.wait_with_output().unwrap();
    assert_eq!((second.status.code(), &*second.stdout), (Some(7), &b"out\nend\n"[..]));
    assert_eq!(second.stderr, b"err\n");
    let late = late.wait_with_output().unwrap();
    assert_eq!((late.status.code(), &*late.stdout, &*late.stderr), (Some(7), &b"end\n"[..], &b""[..]));
    let (_, output) = http(site, "GET", &format!("/{id}/output?since=8"), "");
    assert_eq!((&output["stdout"]["data"], &output["running"]), (&json!("end\n"), &json!(false)));
    assert_eq!(http(site, "GET", &format!("/{id}/output?since=13"), "").0, 400);
    assert_eq!(http(site, "DELETE", &format!("/{id}"), "").0, 204);
    assert_eq!(http(site, "GET", &format!("/{id}"), "").0, 404);
    let missing = daemon.run(&["vm", "attach", VM, &id]);
    assert_eq!(missing.status.code(), Some(125), "{}", fails(&missing));
}

fn a_full_ring_is_counted_exactly(site: &Site, daemon: &Daemon<'_>) {
    let id = start(daemon, "head -c 3000000 /dev/zero; printf end");
    // Nobody reads, and it ends all the same.
    ok(&daemon.run(&["vm", "wait", VM, &id]));
    let dropped = 3_000_003 - RING;
    let shown = ps(daemon, &id);
    assert_eq!((&shown["output_bytes"], &shown["dropped_bytes"]), (&json!(3_000_003), &json!(dropped)));
    let (_, output) = http(site, "GET", &format!("/{id}/output?since=1000"), "");
    assert_eq!((&output["dropped"], &output["next"]), (&json!(dropped - 1000), &json!(3_000_003)));
    assert_eq!(output["stdout"]["bytes"], RING);
    let attached = daemon.run(&["vm", "attach", VM, &id]);
    assert_eq!(attached.stdout.len() as u64, RING);
    assert!(attached.stdout.ends_with(b"\0end"));
    let told = String::from_utf8(attached.stderr).unwrap();
    assert!(told.contains(&format!("{dropped} bytes")), "{told}");
    forget(daemon, &id);
}

fn are_signalled_and_waited_for_in_time(site: &Site, daemon: &Daemon<'_>) {
    let id = start(daemon, "trap 'echo hup' HUP; echo up; while :; do sleep 0.2; done");
    let begun = Instant::now();
    // The trap stands by then.
    while ps(daemon, &id)["output_bytes"] != 3 {
        assert!(begun.elapsed() < PATIENCE, "{}", ps(daemon, &id));
        std::thread::sleep(Duration::from_millis(100));
    }
    let (status, problem) = http(site, "GET", &format!("/{id}/wait?timeout_ms=300"), "");
    assert_eq!((status, &problem["code"]), (504, &json!("timeout")));
    let late = daemon.run(&["vm", "wait", VM, &id, "--timeout", "1s"]);
    assert_eq!(late.status.code(), Some(124), "{}", fails(&late));
    assert_eq!(http(site, "POST", &format!("/{id}/signal"), r#"{"signal":1}"#).0, 204);
    let begun = Instant::now();
    while http(site, "GET", &format!("/{id}/output"), "").1["stdout"]["data"] != "up\nhup\n" {
        assert!(begun.elapsed() < PATIENCE, "the signal did not come");
    }
    ok(&daemon.run(&["vm", "kill", "-s", "KILL", VM, &id]));
    let (status, ended) = http(site, "GET", &format!("/{id}/wait"), "");
    assert_eq!((status, &ended["state"], &ended["signal"]), (200, &json!("killed"), &json!(9)));
    assert_eq!(daemon.run(&["vm", "wait", VM, &id]).status.code(), Some(137));
    let again = daemon.run(&["vm", "kill", VM, &id]);
    assert_eq!(again.status.code(), Some(5), "{}", fails(&again));
    forget(daemon, &id);
}

fn the_sixty_fifth_is_refused(site: &Site, daemon: &Daemon<'_>) {
    let body = r#"{"argv":["true"]}"#;
    let ids: Vec<u64> = (0..64).map(|_| http(site, "POST", "", body).1["id"].as_u64().unwrap()).collect();
    let (status, problem) = http(site, "POST", "", body);
    assert_eq!((status, &problem["code"]), (422, &json!("exhausted")), "{problem}");
    assert_eq!(http(site, "DELETE", &format!("/{}", ids[0]), "").0, 204);
    let (status, next) = http(site, "POST", "", body);
    assert_eq!((status, next["id"].as_u64()), (201, Some(ids[63] + 1)), "a number is nobody else's");
    let all = daemon.json(&["vm", "ps", VM]);
    let ids: Vec<String> = all.as_array().unwrap().iter().map(|process| process["id"].to_string()).collect();
    let mut words = vec!["vm", "forget", VM];
    words.extend(ids.iter().map(String::as_str));
    ok(&daemon.run(&words));
    assert_eq!(daemon.json(&["vm", "ps", VM]), json!([]));
}

fn are_there_for_the_next_daemon<'site>(site: &'site Site, daemon: Daemon<'site>) -> Daemon<'site> {
    let id = start(&daemon, "echo before; until [ -e /root/next ]; do sleep 0.2; done; echo after");
    let begun = Instant::now();
    while ps(&daemon, &id)["output_bytes"] != 7 {
        assert!(begun.elapsed() < PATIENCE, "{}", ps(&daemon, &id));
    }
    let before = ps(&daemon, &id);
    daemon.kill();
    let daemon = Daemon::start(site, &site.config(ONE), &[]).expect("the daemon comes up again");
    assert_eq!(ps(&daemon, &id), before, "the same process");
    assert_eq!(daemon.sh(VM, "touch /root/next; echo touched"), "touched");
    assert_eq!(ok(&daemon.run(&["vm", "attach", VM, &id])), "before\nafter\n");
    // What runs is killed when it is forgotten.
    let id = start(&daemon, "exec sleep 4321");
    let count = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '[s]leep 4321' || true";
    assert_eq!(daemon.sh(VM, count), "1", "the control");
    forget(&daemon, &id);
    assert_eq!(daemon.sh(VM, count), "0");
    daemon
}
