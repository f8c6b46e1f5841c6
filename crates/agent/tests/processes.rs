//! Background processes, which the agent owns: they are this machine's, and the sessions about them a socket pair's.
//! One test: the table is one for the whole agent.

mod host;

use enisle_agent::session;
use enisle_guest_proto::{
    Control, FailureCode, Kind, MAX_PROCESSES, OutputHead, ProcessInfo, ProcessOp, ProcessState, RING,
    Request, WINDOW,
};
use host::{Session, exec};
use std::os::unix::net::UnixStream;
use std::thread;

fn open(op: ProcessOp) -> Result<Session, FailureCode> {
    let (host, guest) = UnixStream::pair().unwrap();
    thread::spawn(move || session::serve(guest.into()));
    let mut session = Session::new(host);
    session.open(Request::Process(op)).map_err(|failure| failure.code)?;
    Ok(session)
}

/// Does it; what was said on both streams, and how it ended.
fn ask(op: ProcessOp) -> Result<(Vec<u8>, Vec<u8>, Control, u64), FailureCode> {
    let mut session = open(op)?;
    match session.finish() {
        Control::Failed(failure) => Err(failure.code),
        last => Ok((session.stdout, session.stderr, last, session.dropped)),
    }
}

fn infos(op: ProcessOp) -> Result<Vec<ProcessInfo>, FailureCode> {
    let (stdout, ..) = ask(op)?;
    let lines = stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(|line| serde_json::from_slice(line).unwrap()).collect())
}

fn start(script: &str) -> ProcessInfo {
    infos(ProcessOp::Start(exec(&["sh", "-c", script]))).unwrap().remove(0)
}

fn wait(id: u32) -> ProcessState {
    infos(ProcessOp::Wait { id, timeout_ms: 60_000 }).unwrap().remove(0).state
}

fn output(id: u32, since: u64) -> (OutputHead, Vec<u8>, Vec<u8>) {
    let (stdout, stderr, ..) = ask(ProcessOp::Output { id, since }).unwrap();
    let end = stdout.iter().position(|byte| *byte == b'\n').unwrap();
    (serde_json::from_slice(&stdout[..end]).unwrap(), stdout[end + 1..].to_vec(), stderr)
}

const fn ended(code: i32, signal: Option<u8>) -> ProcessState {
    ProcessState::Ended { code, signal, timed_out: false }
}

#[test]
fn processes_outlive_their_sessions_and_are_bounded() {
    streams_are_kept_apart_and_read_again();
    a_ring_that_overflows_counts_exactly_and_holds_nobody_up();
    a_slow_reader_holds_nobody_up_and_is_told_what_it_missed();
    signals_waits_and_time_outs();
    an_attached_session_that_breaks_leaves_the_process();
    no_more_than_there_may_be();
}

fn streams_are_kept_apart_and_read_again() {
    let process = start("echo out; echo err >&2; cat; exit 3");
    assert_eq!((process.id, process.state, process.argv[0].as_str()), (1, ProcessState::Running {}, "sh"));
    assert_eq!(wait(1), ended(3, None), "its standard input has nothing");
    let (head, stdout, stderr) = output(1, 0);
    assert_eq!(
        (head, &*stdout, &*stderr),
        (OutputHead { dropped: 0, running: false }, &b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(output(1, 8).1, b"");
    assert_eq!(ask(ProcessOp::Output { id: 1, since: 9 }).unwrap_err(), FailureCode::Invalid);
    for _ in 0..2 {
        let (stdout, stderr, last, dropped) = ask(ProcessOp::Attach { id: 1, since: 0 }).unwrap();
        assert_eq!((&*stdout, &*stderr, dropped), (&b"out\n"[..], &b"err\n"[..], 0));
        assert_eq!(last, Control::Exit { code: 3, signal: None, timed_out: false });
    }
    assert!(ask(ProcessOp::Remove { id: 1 }).is_ok());
    assert_eq!(ask(ProcessOp::Show { id: 1 }).unwrap_err(), FailureCode::NotFound);
}

fn a_ring_that_overflows_counts_exactly_and_holds_nobody_up() {
    let id = start("head -c 1000000 /dev/zero; printf end").id;
    assert_eq!(wait(id), ended(0, None), "nobody reads, and it ends all the same");
    let info = infos(ProcessOp::Show { id }).unwrap().remove(0);
    let dropped = 1_000_003 - RING as u64;
    assert_eq!((info.written, info.dropped), (1_000_003, dropped));
    let (head, stdout, _) = output(id, 100);
    assert_eq!((head.dropped, stdout.len()), (dropped - 100, RING));
    assert!(stdout.ends_with(b"\0end"));
    let (stdout, _, _, told) = ask(ProcessOp::Attach { id, since: 0 }).unwrap();
    assert_eq!((told, stdout.len()), (dropped, RING));
    assert!(ask(ProcessOp::Remove { id }).is_ok());
}

fn a_slow_reader_holds_nobody_up_and_is_told_what_it_missed() {
    let script = "trap 'go=1' USR1; echo up; until [ $go ]; do sleep 0.05; done; head -c 1000000 /dev/zero; printf end";
    let id = start(script).id;
    let mut session = open(ProcessOp::Attach { id, since: 0 }).unwrap();
    session.give_back = false;
    session.wait_for("up");
    assert!(ask(ProcessOp::Signal { id, signal: 10 }).is_ok());
    assert_eq!(wait(id), ended(0, None), "it does not wait for who is attached");
    while session.stdout.len() < WINDOW as usize {
        session.step();
    }
    assert_eq!(session.stdout.len(), WINDOW as usize, "no more than it has credit for");
    session.give_back = true;
    session.send(&Control::Window { stream: Kind::Stdout as u8, bytes: WINDOW });
    assert_eq!(session.finish(), Control::Exit { code: 0, signal: None, timed_out: false });
    assert!(session.dropped > 500_000 && session.stdout.ends_with(b"end"), "{} lost", session.dropped);
    assert_eq!(session.stdout.len() as u64 + session.dropped, 1_000_006);
    assert!(ask(ProcessOp::Remove { id }).is_ok());
}

fn signals_waits_and_time_outs() {
    let id = start("sleep 1000").id;
    assert_eq!(infos(ProcessOp::Wait { id, timeout_ms: 50 }).unwrap()[0].state, ProcessState::Running {});
    assert_eq!(ask(ProcessOp::Signal { id, signal: 65 }).unwrap_err(), FailureCode::Invalid);
    assert!(ask(ProcessOp::Signal { id, signal: 15 }).is_ok());
    assert_eq!(wait(id), ended(143, Some(15)));
    assert_eq!(ask(ProcessOp::Signal { id, signal: 15 }).unwrap_err(), FailureCode::Ended);
    let mut limited = exec(&["sleep", "1000"]);
    limited.timeout_ms = Some(50);
    let late = infos(ProcessOp::Start(limited)).unwrap()[0].id;
    assert_eq!(wait(late), ProcessState::Ended { code: 137, signal: Some(9), timed_out: true });
    for id in [id, late] {
        assert!(ask(ProcessOp::Remove { id }).is_ok());
    }
    assert_eq!(infos(ProcessOp::Start(exec(&["no-such-program"]))).unwrap_err(), FailureCode::NotFound);
    assert_eq!(infos(ProcessOp::Start(exec(&[]))).unwrap_err(), FailureCode::Invalid);
}

fn an_attached_session_that_breaks_leaves_the_process() {
    let id = start("echo one; sleep 1000").id;
    let mut session = open(ProcessOp::Attach { id, since: 0 }).unwrap();
    session.wait_for("one");
    drop(session);
    let mut session = open(ProcessOp::Attach { id, since: 2 }).unwrap();
    session.wait_for("e");
    assert_eq!(session.stdout, b"e\n");
    assert_eq!(infos(ProcessOp::Show { id }).unwrap()[0].state, ProcessState::Running {});
    // Who is attached sees the end that a removal makes.
    assert!(ask(ProcessOp::Remove { id }).is_ok());
    assert_eq!(session.finish(), Control::Exit { code: 137, signal: Some(9), timed_out: false });
}

fn no_more_than_there_may_be() {
    assert_eq!(infos(ProcessOp::List {}).unwrap(), []);
    let ids: Vec<u32> = (0..MAX_PROCESSES).map(|_| start("true").id).collect();
    assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "{ids:?}");
    assert_eq!(infos(ProcessOp::Start(exec(&["true"]))).unwrap_err(), FailureCode::Exhausted);
    assert!(ask(ProcessOp::Remove { id: ids[5] }).is_ok());
    let next = start("true").id;
    assert!(!ids.contains(&next), "a number is never another's");
    let listed: Vec<u32> = infos(ProcessOp::List {}).unwrap().iter().map(|info| info.id).collect();
    assert_eq!((listed.len(), listed.last()), (MAX_PROCESSES, Some(&next)));
    listed.iter().for_each(|id| assert!(ask(ProcessOp::Remove { id: *id }).is_ok()));
}
