//! What an operator sees of a real guest: `/metrics` as `promtool` wants it, counts that stay when a VM goes, a
//! dashboard whose every query has something to show, and refused flows as events. One boot.

use enisle_tests_vm::{Daemon, Site, ok};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Unpacked by `./test`.
const PROMTOOL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/prometheus/usr/bin/promtool");
const DASHBOARD: &str = include_str!("../../contrib/grafana/enisle.json");
const GROUP: &str = "- name: agents\n  image: minimal\n  network: { mode: isolated, range: \"169.254.100.0/22\", \
                     drop: [\"93.184.216.34\"] }";
/// `OTHER_SERVER` of the world.
const ALLOWED: &str = "151.101.1.69";
const DROPPED: &str = "93.184.216.34";

fn scrape(site: &Site) -> String {
    let (head, body) = get(site, "/metrics", "*/*");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    body
}

fn get(site: &Site, path: &str, accept: &str) -> (String, String) {
    let mut stream = UnixStream::connect(site.api()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nhost: x\r\naccept: {accept}\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    (head.to_owned(), body.to_owned())
}

/// Each refused packet is told or counted, with the words of `net why`, while it happens.
fn refusals_are_told(site: &Site, daemon: &Daemon<'_>) {
    let mut follower = site
        .enisle(&["events", "-f", "--only", "refused", "--vm", "agents-1", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut events = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let knock = format!("for i in $(seq 60); do timeout 5 nc {DROPPED} 25 </dev/null; done; echo done");
    assert_eq!(daemon.sh("agents-1", &knock), "done");
    let why = daemon.json(&["net", "why", "agents-1", &format!("{DROPPED}:25/tcp")]);
    let mut told = Vec::new();
    let mut sum = 0;
    // The last word is how many more there were, once it is quiet.
    for event in events.by_ref() {
        sum += match event["type"].as_str() {
            Some("flow_refused") => 1 + event["not_reported"].as_u64().unwrap(),
            Some("flows_not_reported") => event["count"].as_u64().unwrap(),
            _ => panic!("{event}"),
        };
        let last = event["type"] == "flows_not_reported";
        told.push(event);
        if last {
            break;
        }
    }
    let mail = told.iter().find(|event| event["destination_port"] == 25).unwrap();
    for (key, expected) in [
        ("vm", json!("agents-1")),
        ("group", json!("agents")),
        ("direction", json!("out")),
        ("protocol", json!("tcp")),
        ("source", json!("169.254.100.2")),
        ("destination", json!(DROPPED)),
        ("origin", why["rule"]["origin"].clone()),
        ("rule", why["rule"]["rule"].clone()),
    ] {
        assert_eq!(mail[key], expected, "{key}: {mail}");
    }
    assert_eq!(mail["origin"], "group drop[0]");
    let refused = &daemon.json(&["net", "show", "agents-1"])["counters"]["out_refused"];
    assert_eq!(json!(sum), *refused, "told and counted are all there were: {told:?}");
    assert!(told.len() < 60, "of many some are counted only: {}", told.len());
    let seen = ok(&daemon.run(&["events", "--only", "refused"]));
    assert!(seen.contains(&format!("to {DROPPED}:25: group drop[0], {DROPPED}")), "{seen}");
    let kinds = ok(&daemon.run(&["events", "--only", "lifecycle", "--json"]));
    assert!(kinds.contains("vm_ready") && !kinds.contains("refused"), "{kinds}");
    let (head, sse) = get(site, "/v1/events?only=refused", "text/event-stream");
    assert!(
        head.contains("text/event-stream") && sse.contains("\nevent: flow_refused\ndata: {\"seq\":"),
        "{head}\n{sse}"
    );
    follower.kill().unwrap();
    follower.wait().unwrap();
}

/// The value of the one series of this name and these labels.
#[track_caller]
fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let of = |line: &&str| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']));
        rest.is_some_and(|rest| labels.iter().all(|label| rest.contains(label)))
    };
    let found: Vec<&str> = text.lines().filter(of).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}\n{text}");
    found[0].rsplit(' ').next().unwrap().parse().unwrap()
}

/// What the real checker has to say; nothing is right.
fn promtool(text: &str) -> (bool, String) {
    let mut child = Command::new(PROMTOOL)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, which ./test unpacks");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// Names of series in the dashboard's queries.
fn asked_for() -> BTreeSet<String> {
    fn walk(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match value.as_str() {
                        Some(text) if key == "expr" || key == "query" => found.extend(
                            text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                                .filter(|word| word.starts_with("enisle_") || word.starts_with("process_"))
                                .map(str::to_owned),
                        ),
                        _ => walk(value, found),
                    }
                }
            }
            Value::Array(list) => list.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    walk(&serde_json::from_str(DASHBOARD).unwrap(), &mut found);
    found
}

fn talk(daemon: &Daemon<'_>) {
    let script = format!(
        "(echo x; sleep 1) | timeout 20 nc {ALLOWED} 7 | head -n 1; for i in 1 2 3; do timeout 5 nc {DROPPED} 7 </dev/null; done; true"
    );
    assert_eq!(daemon.sh("agents-1", &script), "x", "the control is answered");
}

#[test]
fn an_operator_sees_a_guest_and_what_was_counted_stays() {
    let site = Site::new();
    let daemon = site.up(GROUP);
    talk(&daemon);
    refusals_are_told(&site, &daemon);
    let text = scrape(&site);
    let (right, said) = promtool(&text);
    assert!(right && said.is_empty(), "{said}\n{text}");
    let (right, said) = promtool("# TYPE bad_total gauge\nbad_total 1\n");
    assert!(!right || !said.is_empty(), "promtool finds nothing wrong in what is");

    assert_eq!(value(&text, "enisle_vms", &["group=\"agents\"", "state=\"running\""]), 1.0);
    assert_eq!(value(&text, "enisle_vm_launch_seconds_count", &["group=\"agents\""]), 1.0);
    assert_eq!(value(&text, "enisle_slots", &["state=\"used\""]), 1.0);
    assert_eq!(value(&text, "enisle_slots", &["state=\"free\""]), 255.0);
    assert_eq!(value(&text, "enisle_events_total", &["type=\"vm_ready\""]), 1.0);
    assert!(
        value(
            &text,
            "enisle_api_request_seconds_count",
            &["route=\"/v1/vms/{name}/stream\"", "status=\"1xx\""]
        ) >= 1.0
    );
    assert!(value(&text, "process_resident_memory_bytes", &[]) > 1e6);
    let allowed = ["direction=\"out\"", "verdict=\"allowed\""];
    let (packets, bytes) =
        (value(&text, "enisle_packets_total", &allowed), value(&text, "enisle_bytes_total", &allowed));
    assert!(
        packets >= 3.0 && bytes >= 54.0 * packets && bytes < 1514.0 * packets,
        "{packets} packets, {bytes} bytes"
    );
    let refused = value(&text, "enisle_refused_packets_total", &["rule=\"drop[0]\""]);
    assert!(refused >= 3.0, "{refused}");
    for hidden in ["agents-1", DROPPED, ALLOWED, "169.254."] {
        assert!(!text.contains(hidden), "a label holds {hidden}");
    }
    let there: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let asked = asked_for();
    assert!(asked.len() > 20, "{asked:?}");
    for name in asked {
        assert!(there.contains(name.as_str()), "the dashboard asks for {name}, which is not there:\n{text}");
    }

    // Other lists: what the old rules counted stays, and so does everything when the VM goes.
    ok(&daemon.run(&["net", "set", "agents", "--clear"]));
    let cleared = scrape(&site);
    assert_eq!(value(&cleared, "enisle_refused_packets_total", &["rule=\"drop[0]\""]), refused);
    ok(&daemon.run(&["vm", "delete", "agents-1"]));
    assert_eq!(daemon.json(&["vm", "list"]), json!([]));
    let gone = scrape(&site);
    assert_eq!(value(&gone, "enisle_vms", &["state=\"running\""]), 0.0);
    assert_eq!(value(&gone, "enisle_refused_packets_total", &["rule=\"drop[0]\""]), refused);
    assert!(value(&gone, "enisle_packets_total", &allowed) >= packets);
    assert!(value(&gone, "enisle_bytes_total", &allowed) >= bytes);
    let left = |to: &str| value(&gone, "enisle_slots_left_total", &[&format!("to=\"{to}\"")]);
    assert_eq!(left("recycled") + left("removed"), 1.0);
    assert!(daemon.stop().success());
}
