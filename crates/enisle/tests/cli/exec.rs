//! `vm exec` without a terminal: bytes, exit codes, signals, ends.

use crate::world::{Running, World, eventually, text};
use rustix::process::Signal;
use std::process::Stdio;

fn pattern(bytes: u64) -> Vec<u8> {
    (0..bytes).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[test]
fn ten_megabytes_through_and_the_exit_code() {
    let world = World::new();
    let sent = pattern(10 << 20);
    let output =
        world.run_with(&["vm", "exec", "agents-1", "--", "sh", "-c", "cat; echo e >&2; exit 7"], &sent);
    assert!(output.stdout == sent, "{} bytes came back", output.stdout.len());
    assert_eq!(text(&output.stderr), "e\n");
    assert_eq!(output.status.code(), Some(7));
    world.daemon.assert_obeyed();
}

#[test]
fn exit_codes() {
    let world = World::new();
    for (args, code) in [
        (&["agents-1", "--", "true"][..], 0),
        (&["agents-1", "--", "sh", "-c", "exit 255"], 255),
        (&["agents-1", "--", "sh", "-c", "kill -TERM $$"], 143),
        (&["agents-1", "--timeout", "100ms", "--", "sleep", "100"], 124),
        (&["agents-1", "--", "/etc/passwd"], 126),
        (&["agents-1", "--", "no-such-program"], 127),
        (&["nobody", "--", "true"], 125),
        (&["garbage", "--", "true"], 125),
        (&["abrupt", "--", "true"], 125),
    ] {
        let output = world.run(&[&["vm", "exec"], args].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        assert_eq!(output.stderr.is_empty(), !(125..=127).contains(&code), "{args:?}");
    }
}

#[test]
fn a_command_line_that_no_request_holds_says_what_to_do() {
    let world = World::new();
    let output = world.run(&["vm", "exec", "agents-1", "--", "echo", &"x".repeat(100_000)]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("hint: pass long arguments by standard input"));
}

#[test]
fn environment_directory_and_user_reach_the_process() {
    let world = World::new();
    let args = ["vm", "exec", "agents-1", "-u", "ubuntu", "-w", "/tmp", "-e", "A=b=c", "--", "sh", "-c"];
    let output = world.run(&[&args[..], &["echo $GUEST_USER $PWD $A"]].concat());
    assert_eq!(text(&output.stdout), "ubuntu /tmp b=c\n");
}

#[test]
fn it_ends_with_the_process_whatever_standard_input_does() {
    let world = World::new();
    let args = ["vm", "exec", "agents-1", "--", "true"];
    let mut never = Running::start(&mut world.command(&args));
    assert_eq!(never.code(), 0, "standard input is open and silent");
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let endless = world.command(&args).stdin(zero).status().unwrap();
    assert_eq!(endless.code(), Some(0));
    let mut closed = std::process::Command::new("sh");
    closed.args(["-c", "exec \"$@\" <&-", "sh"]).arg(env!("CARGO_BIN_EXE_enisle"));
    closed.args(["--api", &format!("unix:{}", world.daemon.socket.display())]).args(args);
    assert_eq!(closed.status().unwrap().code(), Some(0), "standard input is closed");
    let cat = world.run(&["vm", "exec", "-n", "agents-1", "--", "cat"]);
    assert_eq!(cat.status.code(), Some(0));
}

#[test]
fn signals_reach_the_process_and_not_the_program() {
    let world = World::new();
    for (signal, number) in [(Signal::INT, 2), (Signal::TERM, 15), (Signal::HUP, 1), (Signal::QUIT, 3)] {
        let script = format!("trap 'echo got; exit 40' {number}; echo up; while :; do sleep 0.01; done");
        let mut running =
            Running::start(&mut world.command(&["vm", "exec", "agents-1", "--", "sh", "-c", &script]));
        assert_eq!(running.line(), "up");
        running.signal(signal);
        assert_eq!(running.line(), "got", "{signal:?}");
        assert_eq!(running.code(), 40);
    }
    let mut running = Running::start(&mut world.command(&[
        "vm",
        "exec",
        "agents-1",
        "--",
        "sh",
        "-c",
        "echo up; sleep 100",
    ]));
    assert_eq!(running.line(), "up");
    running.signal(Signal::INT);
    assert_eq!(running.code(), 130);
}

#[test]
fn three_quick_signals_let_the_user_out() {
    let world = World::new();
    let script = "trap '' INT; echo up; while :; do sleep 0.01; done";
    let mut running =
        Running::start(&mut world.command(&["vm", "exec", "agents-1", "--", "sh", "-c", script]));
    assert_eq!(running.line(), "up");
    for count in 1..=3 {
        running.signal(Signal::INT);
        if count < 3 {
            eventually("it is passed on", || world.daemon.shared.seen.lock().unwrap().signals.len() == count);
        }
    }
    assert_eq!(running.code(), 130);
    eventually("the connection closes", || world.daemon.shared.seen.lock().unwrap().abandoned == 1);
}

#[test]
fn a_reader_that_went_away_ends_the_process() {
    let world = World::new();
    let mut running = Running::start(&mut world.command(&["vm", "exec", "agents-1", "--", "yes"]));
    assert_eq!(running.line(), "y");
    drop(running.0.stdout.take());
    assert_eq!(running.code(), 141);
    assert_eq!(world.daemon.shared.seen.lock().unwrap().signals, [13]);

    let script = "echo lost >&2; echo lost >&2; echo kept";
    let mut command = world.command(&["vm", "exec", "agents-1", "--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "kept\n".into()));
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let world = World::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = world.command(&["vm", "exec", "agents-1", "--", "echo", "x"]);
    let output = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("No space left"), "{}", text(&output.stderr));
}
