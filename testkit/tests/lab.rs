//! `enisle-lab` as a user sees it: up, exec, the table, and nothing left behind.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const LAB: &str = env!("CARGO_BIN_EXE_enisle-lab");

/// A running `up`; killed if a test fails.
struct Up(Child);

impl Up {
    fn start(state: &Path) -> Up {
        let child = Command::new(LAB)
            .args(["up", "--state"])
            .arg(state)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let up = Up(child);
        let end = Instant::now() + Duration::from_secs(20);
        while !state.exists() {
            assert!(Instant::now() < end, "the world did not come up in 20 s");
            std::thread::sleep(Duration::from_millis(20));
        }
        up
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn exec(state: &Path, namespace: &str, command: &[&str]) -> Output {
    let state = state.to_str().unwrap();
    Command::new(LAB).args(["exec", "--state", state, namespace, "--"]).args(command).output().unwrap()
}

#[test]
fn a_world_lives_as_long_as_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("lab.json");
    let mut up = Up::start(&state);

    let addresses = exec(&state, "host", &["ip", "-br", "addr"]);
    let text = String::from_utf8(addresses.stdout).unwrap();
    assert!(text.contains("45.83.104.10/24") && text.contains("192.168.1.1/24"), "{text}");
    let code = exec(&state, "lan", &["sh", "-c", "exit 7"]).status.code();
    assert_eq!(code, Some(7));
    let unknown = exec(&state, "moon", &["true"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there are host, internet, lan"));

    drop(up.0.stdin.take());
    assert!(up.0.wait().unwrap().success(), "ends by itself when its stdin closes");
    assert!(!state.exists());
    let gone = exec(&state, "host", &["true"]);
    assert_eq!(gone.status.code(), Some(2));
}

#[test]
fn sigterm_ends_it_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("lab.json");
    let mut up = Up::start(&state);
    let pid = rustix::process::Pid::from_child(&up.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(up.0.wait().unwrap().success());
    assert!(!state.exists());
}

/// The table must be able to say WRONG: this guest is the host itself and reaches everything.
#[test]
fn the_table_condemns_a_guest_without_isolation() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("lab.json");
    let _up = Up::start(&state);
    let enisle = dir.path().join("enisle");
    let script = format!("#!/bin/sh\nshift 4\nexec {LAB} exec --state {} host -- \"$@\"\n", state.display());
    std::fs::write(&enisle, script).unwrap();
    std::fs::set_permissions(&enisle, std::fs::Permissions::from_mode(0o755)).unwrap();

    let output = Command::new(LAB)
        .args(["probe", "--json", "--vm", "a-1", "--state"])
        .arg(&state)
        .arg("--enisle")
        .arg(&enisle)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(rows.len() > 20, "{} rows", rows.len());
    for row in rows {
        assert_eq!(row["control"]["answer"], "reached", "{row}");
        assert_eq!(row["guest"]["answer"], "reached", "{row}");
        let right = if row["expected"] == "reached" { "ok" } else { "WRONG" };
        assert_eq!(row["verdict"], right, "{row}");
    }
}
