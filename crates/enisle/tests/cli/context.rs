//! Which daemon a command is for.

use crate::world::{World, enisle, text};

#[test]
fn a_context_names_the_daemon_and_what_is_typed_goes_before() {
    let world = World::new();
    let home = world.root().join("home");
    let run = |args: &[&str]| enisle().env("XDG_CONFIG_HOME", &home).args(args).output().unwrap();
    let api = format!("unix:{}", world.daemon.socket.display());
    assert_eq!(run(&["context", "list", "--json"]).stdout, b"[]\n");
    for (name, api) in [("here", api.as_str()), ("away", "unix:/nonexistent/api.sock")] {
        let output = run(&["context", "add", name, "--api", api]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert!(run(&["vm", "list"]).status.success(), "the first is in use");
    assert_eq!(run(&["--context", "away", "vm", "list"]).status.code(), Some(3));
    assert!(run(&["--api", &api, "vm", "list"]).status.success());
    assert!(run(&["context", "use", "away"]).status.success());
    assert_eq!(run(&["vm", "list"]).status.code(), Some(3));
    let by_environment = |name: &str, value: &str| {
        enisle().env("XDG_CONFIG_HOME", &home).env(name, value).args(["vm", "list"]).output().unwrap()
    };
    assert!(by_environment("ENISLE_CONTEXT", "here").status.success());
    assert!(by_environment("ENISLE_API", &api).status.success());
    let output = run(&["--context", "none", "vm", "exec", "a", "--", "true"]);
    assert_eq!(output.status.code(), Some(125), "no process's exit code");
    assert!(text(&output.stderr).contains("there are away, here"), "{}", text(&output.stderr));
    let shown = run(&["context", "show", "here", "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["api"], &shown["in_use"]), (&api.into(), &false.into()));
    assert_eq!(run(&["context", "add", "here", "--api", "unix:/x"]).status.code(), Some(5));
    assert_eq!(run(&["context", "add", "new"]).status.code(), Some(2));
    assert!(run(&["context", "remove", "away"]).status.success());
    assert_eq!(run(&["context", "use", "away"]).status.code(), Some(4));
}
