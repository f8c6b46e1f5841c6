//! Errors, tables, JSON and help.

use crate::world::{World, enisle, text};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

#[test]
fn without_a_daemon_it_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let api = format!("unix:{}/no.sock", dir.path().display());
    let output = enisle().args(["--api", &api, "vm", "list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stderr);
    assert!(
        said.starts_with("error: the daemon is not running at ")
            && said.contains("\nhint: start it with `sudo enisle up`"),
        "{said}"
    );
    let output = enisle().env("ENISLE_API", &api).args(["vm", "list", "--json"]).output().unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        (problem["code"].as_str(), problem["exit_code"].as_u64()),
        (Some("daemon_unreachable"), Some(3))
    );
    assert!(output.stdout.is_empty());
    let output = enisle().args(["--api", &api, "vm", "exec", "x", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn without_permission_it_says_how_to_get_it() {
    let world = World::new();
    std::fs::set_permissions(&world.daemon.socket, PermissionsExt::from_mode(0o000)).unwrap();
    let mut command = world.command(&["vm", "list"]);
    if rustix::process::geteuid().is_root() {
        // Nothing is forbidden to root: another user asks.
        command.uid(65_534).gid(65_534);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("no permission") && said.contains("hint: run it with sudo"), "{said}");
}

#[test]
fn bad_usage_is_refused_before_anything_is_asked() {
    for (line, code) in [
        ("--api tcp:1 vm list", 2),
        ("vm new --ram 512", 2),
        ("vm new --cpus 0", 2),
        ("vm new --timeout 1s", 2),
        ("vm new --label x", 2),
        ("vm new --label x=1 --label x=2", 2),
        ("vm new --ttl 0", 2),
        ("vm delete", 2),
        ("vm delete a --all", 2),
        ("vm delete --group agents", 2),
        ("vm port-forward a", 2),
        ("vm port-forward a 0", 2),
        ("vm port-forward a x:1", 2),
        ("vm cp a", 2),
        ("vm cp a b", 2),
        ("vm cp - -", 2),
        ("vm exec a --env K -- true", 125),
        ("vm exec a", 125),
        ("nonsense", 2),
        ("", 2),
    ] {
        let output = enisle().args(line.split_whitespace()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {}", text(&output.stderr));
        assert!(!output.stderr.is_empty(), "{line}");
    }
}

#[test]
fn vms_are_made_listed_and_deleted() {
    let world = World::new();
    let script = world.root().join("setup.sh");
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    let args = ["vm", "new", "--cpus", "2", "--ram", "1G", "--wait", "--timeout", "90s", "--userdata"];
    let made = world.run(&[&args[..], &[script.to_str().unwrap()]].concat());
    assert_eq!(text(&made.stdout), "agents-2\n", "{}", text(&made.stderr));
    let asked = world.daemon.shared.seen.lock().unwrap().created.take().unwrap();
    assert_eq!(
        (asked.vcpu, asked.ram_mb, asked.timeout_ms, asked.wait),
        (Some(2), Some(1024), Some(90_000), true)
    );
    assert_eq!(asked.userdata.as_deref(), Some("#!/bin/sh\n"));
    let args =
        ["vm", "new", "--label", "job=17", "--label", "team=a=b", "--ttl", "30m", "--idle-timeout", "10m"];
    assert!(world.run(&args).status.success());
    let asked = world.daemon.shared.seen.lock().unwrap().created.take().unwrap();
    assert_eq!((asked.ttl_ms, asked.idle_timeout_ms), (Some(1_800_000), Some(600_000)));
    assert_eq!(asked.labels.get("team").map(String::as_str), Some("a=b"));
    let found = world.run(&["vm", "list", "-q", "--label", "job=17", "--label", "team=a=b"]);
    assert_eq!(text(&found.stdout), "agents-3\n");
    assert_eq!(text(&world.run(&["vm", "list", "-q", "--label", "job=1"]).stdout), "");
    assert!(world.run(&["vm", "delete", "agents-3"]).status.success());

    let table = text(&world.run(&["vm", "list"]).stdout);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().take(7).collect()).collect();
    assert_eq!(rows[0], ["NAME", "GROUP", "STATE", "ADDRESS", "CPUS", "RAM", "MODE"]);
    assert_eq!(rows[2], ["agents-2", "agents", "running", "169.254.100.2", "2", "1G", "isolated"]);
    let json: serde_json::Value = serde_json::from_slice(&world.run(&["vm", "ls", "--json"]).stdout).unwrap();
    assert_eq!(json[1]["ram_mb"], 1024);

    let output = world.run(&["vm", "delete", "agents-1", "nobody", "agents-2"]);
    assert_eq!(text(&output.stdout), "agents-1\nagents-2\n", "the others are deleted all the same");
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("no VM `nobody`"));
    assert_eq!(text(&world.run(&["vm", "list", "-q"]).stdout), "");
}

#[test]
fn deleting_all_takes_a_group_or_everything() {
    let world = World::new();
    assert!(world.run(&["vm", "new"]).status.success());
    assert_eq!(text(&world.run(&["vm", "delete", "--all", "--group", "others"]).stdout), "");
    let output = world.run(&["vm", "delete", "--all", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, serde_json::json!({ "deleted": ["agents-1", "agents-2"], "failed": [] }));
}

#[test]
fn problems_of_the_daemon_are_passed_on() {
    let world = World::new();
    let output = world.run(&["vm", "new", "nobody"]);
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(text(&output.stderr), "error: no such group\nhint: there is: agents\n");
    let output = world.run(&["vm", "new", "--name", "agents-1", "--json"]);
    let problem: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((output.status.code(), problem["code"].as_str()), (Some(5), Some("name_taken")));
}

#[test]
fn logs_are_raw_in_a_pipe_and_lines_in_json() {
    let world = World::new();
    let raw = world.run(&["vm", "logs", "agents-1"]).stdout;
    assert_eq!(text(&raw), "boot \x1b[1mok\x1b[0m\x1b]0;owned\x07\r\n");
    let json = text(&world.run(&["vm", "logs", "-f", "agents-1", "--json"]).stdout);
    assert_eq!(json.lines().count(), 2);
    assert_eq!(json.lines().nth(1), Some("{\"line\":\"followed\"}"));
}

#[test]
fn events_are_lines_for_people_and_for_programs() {
    let world = World::new();
    assert_eq!(
        text(&world.run(&["events"]).stdout),
        "2023-11-14T22:13:20Z 7 -: 3 events are not kept any more\n\
         2023-11-14T22:13:20Z 8 agents-1: ready after 1234 ms\n\
         2023-11-14T22:13:20Z 9 agents-1: crashed: x\u{fffd}[2J\n"
    );
    let json = text(&world.run(&["events", "-f", "--since", "9", "--json"]).stdout);
    let event: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((event["type"].as_str(), event["removal"].as_str()), (Some("vm_removed"), Some("ttl")));
    assert_eq!(text(&world.run(&["events", "--vm", "other", "--since", "7"]).stdout), "");
}

#[test]
fn help_of_every_command() {
    let mut all = String::new();
    for command in [
        "",
        "up",
        "doctor",
        "vm",
        "vm new",
        "vm list",
        "vm delete",
        "vm logs",
        "vm exec",
        "vm cp",
        "vm shell",
        "vm port-forward",
        "events",
        "gc",
        "image",
        "image build",
        "net",
        "net show",
        "net set",
        "net why",
        "net routes",
        "net verify",
        "image list",
        "schema",
        "completions",
        "man",
    ] {
        let output =
            enisle().args(command.split_whitespace()).arg("--help").env("COLUMNS", "100").output().unwrap();
        assert!(output.status.success(), "{command}");
        all.push_str(&format!("## enisle {command}\n{}\n", text(&output.stdout)));
    }
    insta::assert_snapshot!(all);
}

#[test]
fn schema_images_completions_and_pages_need_no_daemon() {
    let run = |args: &[&str]| enisle().args(args).output().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&run(&["schema"]).stdout).unwrap();
    assert!(schema["properties"]["config"].is_object(), "{schema}");
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().to_str().unwrap();
    assert_eq!(text(&run(&["image", "list", "--image-dir", place]).stdout), "NAME  SIZE  DESCRIPTION\n");
    assert_eq!(text(&run(&["image", "list", "--image-dir", place, "--json"]).stdout), "[]\n");
    let unknown = run(&["image", "build", "no-such-recipe", "--image-dir", place]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("no-such-recipe"), "{}", text(&unknown.stderr));
    assert!(text(&run(&["completions", "zsh"]).stdout).starts_with("#compdef enisle"));
    assert!(run(&["man", place]).status.success());
    assert!(dir.path().join("enisle-vm-cp.1").exists());
    assert_eq!(run(&["man", "/no/such/dir"]).status.code(), Some(4));
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    // Gone before the program starts: a reader that goes later may have taken everything.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = enisle().args(["completions", "bash"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(141), String::new()));
}

#[test]
fn a_configuration_file_is_judged_without_starting_anything() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("enisle.yaml");
    std::fs::write(&file, "config:\n  host_group: []\n").unwrap();
    for (args, whole) in [(&["up", "--check"][..], false), (&["up", "--check", "--json"], true)] {
        let output = enisle().args(args).current_dir(dir.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("host_group"), "{}", text(&output.stderr));
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stderr).is_ok(), whole);
    }
    let output = enisle().args(["up", "--check", "/no/such/file"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let output = enisle().env("ENISLE_FAULT", "no-such-step").args(["up", "--check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "a fault that is none is not ignored");
}
