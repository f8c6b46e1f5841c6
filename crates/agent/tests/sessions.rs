//! Sessions on a socket pair, without a VM: the agent's own session server on one end, a small
//! host on the other.

mod host;

use enisle_agent::session;
use enisle_guest_proto::{
    Control, Exec, FailureCode, Kind, MAX_PAYLOAD, Open, Request, Target, Tty, VERSION, WINDOW, encode,
};
use host::{Session, exec};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A session whose server runs on a thread of this process.
fn connect() -> (Session, JoinHandle<()>) {
    let (host, guest) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || session::serve(guest.into()));
    (Session::new(host), server)
}

fn open(request: Exec) -> Session {
    let (mut session, _) = connect();
    session.open(Request::Exec(request)).unwrap();
    session
}

fn run(argv: &[&str], input: &[u8]) -> (Session, Control) {
    let mut session = open(exec(argv));
    session.write_all(input);
    if session.last.is_none() {
        session.end_input();
    }
    let last = session.finish();
    (session, last)
}

fn exit(code: i32) -> Control {
    Control::Exit { code, signal: None, timed_out: false }
}

fn refusal(request: Request) -> FailureCode {
    let (mut session, server) = connect();
    let failure = session.open(request).unwrap_err();
    drop(session);
    server.join().unwrap();
    failure.code
}

/// Bytes without a pattern a defect could repeat.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not come to pass");
        thread::sleep(Duration::from_millis(10));
    }
}

fn tty(rows: u16, cols: u16) -> Option<Tty> {
    Some(Tty { rows, cols, term: "vt100".to_owned() })
}

#[test]
fn streams_are_apart_and_the_status_is_passed_on() {
    let (session, last) = run(&["sh", "-c", "echo out; echo err >&2; exit 7"], b"");
    assert_eq!(
        (session.stdout.as_slice(), session.stderr.as_slice()),
        (b"out\n".as_slice(), b"err\n".as_slice())
    );
    assert_eq!((last, session.eof), (exit(7), [true, true]));
}

#[test]
fn ten_megabytes_come_back_unchanged() {
    let input = noise(10 << 20);
    let (session, last) = run(&["sh", "-c", "cat; exit 7"], &input);
    assert!(session.stdout == input, "{} of {} bytes", session.stdout.len(), input.len());
    assert_eq!(last, exit(7));
}

#[test]
fn a_signal_ends_it_with_128_and_its_number() {
    let mut session = open(exec(&["sh", "-c", "echo up; exec sleep 100"]));
    session.wait_for("up");
    session.send(&Control::Signal { signal: 15 });
    assert_eq!(session.finish(), Control::Exit { code: 143, signal: Some(15), timed_out: false });
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let mut session = open(exec(&[
        "sh",
        "-c",
        "sh -c 'trap \"echo child; exit\" INT; echo up; sleep 100 & wait'; echo parent $?",
    ]));
    session.wait_for("up");
    session.send(&Control::Signal { signal: 2 });
    session.finish();
    assert!(
        String::from_utf8_lossy(&session.stdout).contains("child"),
        "{:?}",
        String::from_utf8_lossy(&session.stdout)
    );
}

#[test]
fn a_time_out_kills_all_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!("sleep 1000 & echo $! >{}; wait", file.display());
    let mut session = open(Exec { timeout_ms: Some(500), ..exec(&["sh", "-c", &script]) });
    let start = Instant::now();
    assert_eq!(session.finish(), Control::Exit { code: 137, signal: Some(9), timed_out: true });
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_dead(&fs::read_to_string(file).unwrap());
}

/// A process that does not run any more; zombies count as that.
fn assert_dead(pid: &str) {
    let stat = format!("/proc/{}/stat", pid.trim());
    wait_until("its death", || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z")));
}

#[test]
fn a_lost_connection_kills_the_session_also_its_job_groups() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    // With job control each background job is a group of its own.
    let script = format!(
        "set -m; sleep 1000 & echo $! >{0}; sleep 1000 & echo $! >>{0}; echo up; wait",
        file.display()
    );
    let (mut session, server) = connect();
    let pid = session.open(Request::Exec(exec(&["bash", "-c", &script]))).unwrap().unwrap();
    session.wait_for("up");
    drop(session);
    server.join().unwrap();
    let pids = fs::read_to_string(file).unwrap();
    assert_eq!(pids.lines().count(), 2);
    for pid in pids.lines().chain([pid.to_string().as_str()]) {
        assert_dead(pid);
    }
}

#[test]
fn output_after_the_exit_is_drained_and_a_grandchild_does_not_hold_the_session() {
    let start = Instant::now();
    // The grandchild keeps stdout open and silent.
    let (session, last) = run(&["sh", "-c", "sleep 20 & head -c 60000 /dev/zero; exit 3"], b"");
    assert_eq!((session.stdout.len(), last), (60_000, exit(3)));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());

    // And one that never stops writing.
    let start = Instant::now();
    let (_, last) = run(&["sh", "-c", "yes & exit 4"], b"");
    assert_eq!(last, exit(4));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_slow_reader_gets_everything_after_the_exit() {
    let mut session = open(exec(&["sh", "-c", "head -c 120000 /dev/zero"]));
    session.give_back = false;
    while session.stdout.len() < WINDOW as usize {
        session.step();
    }
    // The process has ended by now or hangs in its last write; either way nothing is lost.
    thread::sleep(Duration::from_millis(500));
    session.give_back = true;
    session.send(&Control::Window { stream: Kind::Stdout as u8, bytes: WINDOW });
    assert_eq!(session.finish(), exit(0));
    assert_eq!(session.stdout.len(), 120_000);
}

#[test]
fn output_stops_at_its_credit_and_signals_still_pass() {
    let mut session = open(exec(&["yes"]));
    session.give_back = false;
    while session.stdout.len() < WINDOW as usize {
        session.step();
    }
    assert_eq!(session.stdout.len(), WINDOW as usize);
    session.send(&Control::Signal { signal: 9 });
    // What was in the pipe is still owed, so the end needs credit.
    session.send(&Control::Window { stream: Kind::Stdout as u8, bytes: 10 * WINDOW });
    assert_eq!(session.finish(), Control::Exit { code: 137, signal: Some(9), timed_out: false });
    assert!(session.stdout.len() <= 3 * WINDOW as usize, "{}", session.stdout.len());
}

#[test]
fn input_beyond_its_credit_ends_the_session() {
    let (mut session, server) = connect();
    let pid = session.open(Request::Exec(exec(&["sleep", "1000"]))).unwrap().unwrap();
    let piece = vec![0; MAX_PAYLOAD];
    // The pipe takes 64 KiB without being read, and as much may be under way; more must not be held.
    for _ in 0..4 * WINDOW as usize / MAX_PAYLOAD {
        if session.send_data(&piece).is_err() {
            break;
        }
    }
    server.join().unwrap();
    assert_dead(&pid.to_string());
}

#[test]
fn input_nobody_reads_is_taken_and_dropped() {
    let (_, last) = run(&["sh", "-c", "exec <&-; sleep 0.3; exit 5"], &noise(1 << 20));
    assert_eq!(last, exit(5));
}

#[test]
fn programs_that_cannot_be_started() {
    let request = |argv: &[&str]| Request::Exec(exec(argv));
    assert_eq!(refusal(request(&["enisle-no-such-program"])), FailureCode::NotFound);
    assert_eq!(refusal(request(&["/no/such/program"])), FailureCode::NotFound);
    assert_eq!(refusal(request(&["/etc/passwd"])), FailureCode::Denied);
    assert_eq!(refusal(request(&["/etc"])), FailureCode::Denied);
    assert_eq!(refusal(request(&["a\0b"])), FailureCode::Invalid);
    let with = |change: fn(&mut Exec)| {
        let mut request = exec(&["true"]);
        change(&mut request);
        refusal(Request::Exec(request))
    };
    assert_eq!(with(|exec| exec.user = Some("enisle-nobody".to_owned())), FailureCode::NotFound);
    assert_eq!(with(|exec| exec.cwd = Some("/no/such/directory".to_owned())), FailureCode::NotFound);
    assert_eq!(with(|exec| exec.cwd = Some("/etc/passwd".to_owned())), FailureCode::Invalid);
    assert_eq!(with(|exec| exec.env = vec![("A=B".to_owned(), String::new())]), FailureCode::Invalid);
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(refusal(request(&[script.to_str().unwrap()])), FailureCode::NotFound);
}

#[test]
fn environment_directory_and_user() {
    let mut request =
        exec(&["sh", "-c", "echo $HOME $USER $A $(pwd) $(id -u):$(id -g):$(id -G) $(ulimit -n) $TERM"]);
    request.env = vec![("A".to_owned(), "1".to_owned()), ("A".to_owned(), "2 3".to_owned())];
    request.user = Some("daemon".to_owned());
    request.cwd = Some("/usr".to_owned());
    let mut session = open(request);
    assert_eq!(session.finish(), exit(0));
    // Debian's and Ubuntu's daemon: uid 1, gid 1, home /usr/sbin.
    assert_eq!(String::from_utf8_lossy(&session.stdout).trim_end(), "/usr/sbin daemon 2 3 /usr 1:1:1 1024");
}

#[test]
fn a_user_cannot_enter_a_directory_of_root() {
    let directory = tempfile::tempdir().unwrap();
    let mut request = exec(&["pwd"]);
    request.user = Some("daemon".to_owned());
    request.cwd = Some(directory.path().to_str().unwrap().to_owned());
    let mode = |mode| {
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap()
    };
    mode(0o755);
    let mut allowed = open(request.clone());
    assert_eq!(allowed.finish(), exit(0));
    mode(0o700);
    assert_eq!(refusal(Request::Exec(request)), FailureCode::Denied);
}

#[test]
fn no_program_is_a_login_shell() {
    let mut session = open(exec(&[]));
    session.write_all(b"echo shell is $0\n");
    session.end_input();
    assert_eq!(session.finish(), exit(0));
    let said = String::from_utf8_lossy(&session.stdout).into_owned();
    assert!(said.contains("shell is -"), "{said:?}");
}

#[test]
fn a_terminal_has_a_size_a_name_and_a_hang_up() {
    let mut session = open(Exec { tty: tty(30, 90), ..exec(&["sh"]) });
    session.write_all(b"stty size; tty; echo $TERM; echo err >&2; echo ready-$((1+1))\n");
    session.wait_for("ready-2");
    let said = String::from_utf8_lossy(&session.stdout).into_owned();
    for part in ["30 90\r\n", "/dev/pts/", "vt100\r\n", "err\r\n"] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    assert!(session.stderr.is_empty(), "a terminal is one stream");
    session.send(&Control::Resize { rows: 50, cols: 132 });
    session.write_all(b"stty size; echo resized-$((1+1))\n");
    session.wait_for("resized-2");
    assert!(String::from_utf8_lossy(&session.stdout).contains("50 132"));
    // Ctrl-C reaches the foreground job, not the shell.
    session.write_all(b"echo asleep-$((1+1)); sleep 1000; echo woken-$?\n");
    session.wait_for("asleep-2");
    thread::sleep(Duration::from_millis(300));
    session.write_all(b"\x03");
    session.write_all(b"echo after-$((1+1))\n");
    session.wait_for("after-2");
    // The end of the input is Ctrl-D.
    session.end_input();
    assert!(matches!(session.finish(), Control::Exit { .. }));
}

#[test]
fn a_lost_connection_hangs_up_the_terminal() {
    let (mut session, server) = connect();
    let pid = session.open(Request::Exec(Exec { tty: tty(24, 80), ..exec(&["sh", "-i"]) })).unwrap().unwrap();
    session.write_all(b"sleep 1000 & echo up-$((1+1))\n");
    session.wait_for("up-2");
    drop(session);
    server.join().unwrap();
    assert_dead(&pid.to_string());
}

#[test]
fn a_version_it_does_not_speak() {
    let (mut session, _) = connect();
    session.send(&Open { version: VERSION + 1, request: Request::Exec(exec(&["true"])) });
    let reply = session.frame().control::<enisle_guest_proto::Reply>().unwrap();
    assert!(
        matches!(reply, enisle_guest_proto::Reply::Refused(failure) if failure.code == FailureCode::Version)
    );
}

/// Whatever comes instead of the protocol, the server ends and the process with it.
#[test]
fn garbage_ends_a_session_and_nothing_else() {
    let mut oversized = Vec::new();
    oversized.extend_from_slice(&u32::MAX.to_le_bytes());
    oversized.push(0);
    let frame = |kind, payload: &[u8]| {
        let mut wire = Vec::new();
        encode(kind, payload, &mut wire);
        wire
    };
    let garbage = [
        oversized,
        vec![1, 0, 0, 0, 200, 0],
        frame(Kind::Stdout, b"x"),
        frame(Kind::Control, b"{}"),
        frame(Kind::Control, b"\xff"),
        frame(Kind::Control, br#"{"type":"exit","code":0,"signal":null,"timed_out":false}"#),
        frame(Kind::Control, br#"{"type":"window","stream":1,"bytes":5}"#),
        frame(Kind::Control, br#"{"type":"window","stream":77,"bytes":5}"#),
        frame(Kind::Control, br#"{"type":"eof","stream":2}"#),
        noise(5000),
    ];
    for bytes in &garbage {
        let (mut session, server) = connect();
        session.send_raw(bytes).unwrap();
        drop(session);
        server.join().unwrap();

        let (mut session, server) = connect();
        let pid = session.open(Request::Exec(exec(&["sleep", "1000"]))).unwrap().unwrap();
        // A server that has hung up already is what this is about.
        let _ = session.send_raw(bytes);
        server.join().unwrap();
        assert_dead(&pid.to_string());
    }
    // Data after its end as well.
    let (mut session, server) = connect();
    session.open(Request::Exec(exec(&["sleep", "1000"]))).unwrap();
    session.end_input();
    let _ = session.send_data(b"more");
    server.join().unwrap();
    assert_eq!(run(&["true"], b"").1, exit(0));
}

#[test]
fn sessions_do_not_wait_for_each_other() {
    let mut stuck: Vec<Session> = (0..64).map(|_| open(exec(&["yes"]))).collect();
    let start = Instant::now();
    for _ in 0..5 {
        assert_eq!(run(&["true"], b"").1, exit(0));
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    for session in &mut stuck {
        session.send(&Control::Signal { signal: 9 });
        assert!(matches!(session.finish(), Control::Exit { code: 137, .. }));
    }
}

fn archive_in(path: &Path, raw: bool) -> Session {
    let (mut session, _) = connect();
    session.open(Request::ArchiveIn { path: path.to_str().unwrap().to_owned(), raw }).unwrap();
    session
}

fn archive_out(path: &Path, raw: bool) -> (Session, Control) {
    let (mut session, _) = connect();
    session.open(Request::ArchiveOut { path: path.to_str().unwrap().to_owned(), raw }).unwrap();
    let last = session.finish();
    (session, last)
}

#[test]
fn a_tree_goes_out_and_comes_in() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    for index in 0..300 {
        fs::write(source.join(format!("sub/file-{index}")), noise(index * 10)).unwrap();
    }
    fs::write(source.join("large"), noise(3 << 20)).unwrap();
    let (out, last) = archive_out(&source, false);
    assert_eq!(last, exit(0));
    let mut session = archive_in(&directory.path().join("copy"), false);
    session.write_all(&out.stdout);
    session.end_input();
    assert_eq!(session.finish(), exit(0));
    let same =
        std::process::Command::new("diff").arg("-r").args([&source, &directory.path().join("copy")]).status();
    assert!(same.unwrap().success());
}

#[test]
fn raw_files_go_both_ways_and_half_ones_are_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let contents = noise(1 << 20);
    let mut session = archive_in(&file, true);
    session.write_all(&contents);
    session.end_input();
    assert_eq!(session.finish(), exit(0));
    assert!(fs::read(&file).unwrap() == contents);
    let (out, last) = archive_out(&file, true);
    assert_eq!(last, exit(0));
    assert!(out.stdout == contents);

    let mut session = archive_in(&file, true);
    session.write_all(b"half");
    drop(session);
    let tidy = || fs::read_dir(directory.path()).unwrap().count() == 1;
    wait_until("the removal of the half file", tidy);
    assert!(fs::read(&file).unwrap() == contents, "the old file stays until the new one is whole");
}

#[test]
fn archives_that_cannot_be_are_refused_or_failed() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let out = |path: String, raw| refusal(Request::ArchiveOut { path, raw });
    assert_eq!(out(path("none"), false), FailureCode::NotFound);
    assert_eq!(out(path("none"), true), FailureCode::NotFound);
    assert_eq!(out(path("."), true), FailureCode::Invalid);
    assert_eq!(out("/dev/zero".to_owned(), true), FailureCode::Invalid, "it would never end");
    assert_eq!(out(String::new(), false), FailureCode::Invalid);
    assert_eq!(refusal(Request::ArchiveIn { path: path("no/such"), raw: false }), FailureCode::NotFound);
    let mut session = archive_in(directory.path(), false);
    session.write_all(&noise(2000));
    session.end_input();
    assert!(matches!(session.finish(), Control::Failed(failure) if failure.code == FailureCode::Invalid));
    // A fifo stands for all that is no regular file; a test must not aim at the machine's devices.
    let fifo = directory.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let mut session = archive_in(&fifo, true);
    session.end_input();
    assert!(matches!(session.finish(), Control::Failed(failure) if failure.code == FailureCode::Invalid));
}

fn forward(target: Target) -> Session {
    let (mut session, _) = connect();
    session.open(Request::Connect(target)).unwrap();
    session
}

#[test]
fn a_tcp_forward_carries_both_half_closes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let mut stream: TcpStream = listener.accept().unwrap().0;
        let mut seen = Vec::new();
        // Ends with the half-close of the other side; the answer comes after it.
        stream.read_to_end(&mut seen).unwrap();
        stream.write_all(&seen).unwrap();
    });
    let mut session = forward(Target::Tcp { host: "localhost".to_owned(), port });
    let input = noise(2 << 20);
    session.write_all(&input);
    session.end_input();
    assert_eq!(session.finish(), exit(0));
    assert!(session.stdout == input);
    server.join().unwrap();
}

#[test]
fn the_guest_side_may_close_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(b"greeting").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).unwrap();
        seen
    });
    let mut session = forward(Target::Unix { path: path.to_str().unwrap().to_owned() });
    while !session.eof[0] {
        session.step();
    }
    assert_eq!(session.stdout, b"greeting");
    session.write_all(b"afterwards");
    session.end_input();
    assert_eq!(session.finish(), exit(0));
    assert_eq!(server.join().unwrap(), b"afterwards");
}

#[test]
fn a_socket_that_is_not_there() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let connect = |target| refusal(Request::Connect(target));
    assert_eq!(connect(Target::Tcp { host: "127.0.0.1".to_owned(), port: free }), FailureCode::Unreachable);
    assert_eq!(connect(Target::Unix { path: "/no/such/socket".to_owned() }), FailureCode::NotFound);
    assert_eq!(connect(Target::Tcp { host: "not a name".to_owned(), port: 1 }), FailureCode::Invalid);
}

#[test]
fn a_lost_connection_closes_the_forwarded_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let session =
        forward(Target::Tcp { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() });
    let mut stream = listener.accept().unwrap().0;
    drop(session);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
}
