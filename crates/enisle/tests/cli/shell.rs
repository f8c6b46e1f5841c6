//! `vm shell` and `vm exec --tty` on a real terminal.

use crate::screen::Screen;
use crate::world::{World, eventually, text};
use rustix::process::Signal;

fn shell(world: &World) -> Screen {
    let screen = Screen::start(world, &["vm", "shell", "agents-1"]);
    screen.expect("Ctrl-] disconnects");
    screen.wait_for_raw();
    screen
}

#[test]
fn a_session_from_size_to_exit_code() {
    let world = World::new();
    let mut screen = shell(&world);
    screen.type_in("stty size; echo $TERM $GUEST_USER; tty >/dev/null && echo t''ty\r");
    screen.expect("30 90");
    screen.expect("vt100 root");
    screen.expect("\ntty");
    screen.resize(41, 133);
    eventually("the new size arrives", || {
        world.daemon.shared.seen.lock().unwrap().sizes.contains(&(41, 133))
    });
    screen.type_in("stty size\r");
    screen.expect("41 133");
    screen.type_in("exit 3\r");
    assert_eq!(screen.program.code(), 3);
    screen.assert_restored();
    world.daemon.assert_obeyed();
}

#[test]
fn ctrl_c_stops_what_runs_in_the_guest_and_nothing_else() {
    let world = World::new();
    let mut screen = shell(&world);
    screen.type_in("echo st''art; sleep 1000; echo code $?\r");
    screen.expect("start");
    screen.type_in("\x03");
    screen.type_in("echo ali''ve; exit 0\r");
    screen.expect("alive");
    assert_eq!(screen.program.code(), 0);
    assert!(world.daemon.shared.seen.lock().unwrap().signals.is_empty(), "a byte, not a signal");
}

#[test]
fn ctrl_bracket_detaches_and_ends_the_session() {
    let world = World::new();
    let mut screen = shell(&world);
    screen.type_in("echo h''ere; sleep 1000\r");
    screen.expect("here");
    screen.type_in("abc\x1dnot sent");
    assert_eq!(screen.program.code(), 0);
    screen.expect("Disconnected from agents-1");
    screen.assert_restored();
    eventually("the connection closes", || world.daemon.shared.seen.lock().unwrap().abandoned == 1);
}

#[test]
fn every_way_out_restores_the_terminal() {
    let world = World::new();
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut screen = shell(&world);
        screen.program.signal(signal);
        assert_eq!(screen.program.code(), code);
        screen.assert_restored();
    }
    for (vm, code) in [("abrupt", 125), ("garbage", 125), ("overrun", 125)] {
        let mut screen = Screen::start(&world, &["vm", "shell", vm]);
        assert_eq!(screen.program.code(), code);
        screen.expect("error: ");
        screen.assert_restored();
    }
}

#[test]
fn a_deaf_guest_can_be_left() {
    let world = World::new();
    let mut screen = Screen::start(&world, &["vm", "exec", "-t", "deaf", "--", "x"]);
    screen.wait_for_raw();
    screen.type_in("hello?\r\x1d");
    assert_eq!(screen.program.code(), 0);
    screen.assert_restored();
}

#[test]
fn a_stop_gives_the_terminal_back_and_a_continue_takes_it_again() {
    let world = World::new();
    let mut screen = shell(&world);
    screen.program.signal(Signal::TSTP);
    eventually("the settings come back", || !screen.is_raw());
    screen.assert_restored();
    screen.resize(50, 100);
    screen.program.signal(Signal::CONT);
    screen.wait_for_raw();
    screen.type_in("stty size; exit\r");
    screen.expect("50 100");
    assert_eq!(screen.program.code(), 0);
    screen.assert_restored();
}

#[test]
fn exec_with_a_terminal_is_one_stream_and_passes_the_code_on() {
    let world = World::new();
    let script = "test -t 0 && test -t 1 && test -t 2 && echo all; exit 9";
    let mut screen = Screen::start(&world, &["vm", "exec", "-t", "agents-1", "--", "sh", "-c", script]);
    assert_eq!(screen.program.code(), 9);
    screen.expect("all\r\n");
    screen.assert_restored();
}

#[test]
fn without_a_terminal_a_shell_reads_its_commands() {
    let world = World::new();
    let output = world
        .run_with(&["vm", "shell", "-u", "ubuntu", "agents-1"], b"echo $GUEST_USER; test -t 0 || exit 4\n");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(4), "ubuntu\n".into()));
}

#[test]
fn logs_on_a_terminal_hold_no_commands_to_it() {
    let world = World::new();
    let mut screen = Screen::start(&world, &["vm", "logs", "-f", "agents-1"]);
    assert_eq!(screen.program.code(), 0);
    screen.expect("boot \x1b[1mok\x1b[0m");
    screen.expect("followed");
    assert!(!screen.shown().contains("owned"), "{:?}", screen.shown());
}
