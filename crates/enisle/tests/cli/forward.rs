//! `vm port-forward`.

use crate::world::{Running, World, eventually, text};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};

/// Sends back what it gets, once it got it all.
fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || echo(stream.unwrap()));
        }
    });
    port
}

fn echo(mut stream: impl Read + Write) {
    let mut all = Vec::new();
    // A client that resets gets no answer.
    if stream.read_to_end(&mut all).is_ok() {
        let _ = stream.write_all(&all);
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Where `ADDRESS:PORT -> …` says that it listens.
fn port_of(line: &str) -> u16 {
    line.split(" -> ").next().unwrap().rsplit(':').next().unwrap().parse().unwrap()
}

fn ask(port: u16, sent: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    got
}

#[test]
fn many_connections_at_once_each_closed_by_halves() {
    let world = World::new();
    let spec = format!("0:127.0.0.1:{}", echo_server());
    let mut running = Running::start(&mut world.command(&["vm", "port-forward", "agents-1", &spec]));
    let line = running.line();
    assert!(
        line.starts_with("127.0.0.1:") && line.ends_with(&format!("-> agents-1 {}", &spec[2..])),
        "{line}"
    );
    let port = port_of(&line);
    let clients: Vec<_> = (0..30u8)
        .map(|n| std::thread::spawn(move || assert!(ask(port, &vec![n; 200_000]) == vec![n; 200_000])))
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    running.signal(Signal::INT);
    assert_eq!(running.code(), 0);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody listens any more");
    world.daemon.assert_obeyed();
}

/// The server ends its direction first and is slow; the client's last bytes still arrive.
#[test]
fn the_last_bytes_arrive_after_the_other_side_has_ended() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = format!("0:{}", listener.local_addr().unwrap().port());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let (mut got, mut part) = (0, vec![0; 20_000]);
        while let Ok(bytes @ 1..) = stream.read(&mut part) {
            got += bytes;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        got
    });
    let mut running = Running::start(&mut world.command(&["vm", "port-forward", "agents-1", &spec]));
    let mut stream = TcpStream::connect(("127.0.0.1", port_of(&running.line()))).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    stream.write_all(&vec![7; 3_000_000]).unwrap();
    drop(stream);
    assert_eq!(server.join().unwrap(), 3_000_000);
}

#[test]
fn a_refused_port_ends_its_connection_and_not_the_forward() {
    let world = World::new();
    let (refused, served) = (format!("0:127.0.0.1:{}", free_port()), format!("0:{}", echo_server()));
    let mut running =
        Running::start(&mut world.command(&["vm", "port-forward", "agents-1", &refused, &served]));
    let mut ports = Vec::new();
    while ports.len() < 2 {
        // Each is told for ::1 too, where there is one.
        let line = running.line();
        if line.starts_with("127.") {
            ports.push(port_of(&line));
        }
    }
    let mut stream = TcpStream::connect(("127.0.0.1", ports[0])).unwrap();
    let read = stream.read(&mut [0; 10]);
    assert!(read.is_err(), "a reset, not an empty answer: {read:?}");
    assert_eq!(ask(ports[1], b"still here"), b"still here");
    running.signal(Signal::TERM);
    assert_eq!(running.code(), 0);
    let mut said = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("refused"), "{said}");
}

#[test]
fn unix_sockets_on_both_sides_and_json() {
    let world = World::new();
    let listener = UnixListener::bind(world.root().join("guest.sock")).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(|stream| echo(stream.unwrap())));
    let local = world.root().join("local.sock");
    let spec = format!("{}:/guest.sock", local.display());
    let mut running =
        Running::start(&mut world.command(&["vm", "port-forward", "--json", "agents-1", &spec]));
    let line: serde_json::Value = serde_json::from_str(&running.line()).unwrap();
    assert_eq!(line, serde_json::json!({ "vm": "agents-1", "listen": local, "target": "/guest.sock" }));
    let mut stream = UnixStream::connect(&local).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "hello");
    running.signal(Signal::INT);
    assert_eq!(running.code(), 0);
    assert!(!local.exists());
}

#[test]
fn it_ends_when_the_vm_is_gone() {
    let world = World::new();
    let spec = format!("0:{}", echo_server());
    let mut running = Running::start(&mut world.command(&["vm", "port-forward", "agents-1", &spec]));
    let port = port_of(&running.line());
    assert!(world.run(&["vm", "delete", "agents-1"]).status.success());
    drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
    assert_eq!(running.code(), 4);
}

#[test]
fn what_cannot_be_listened_on_says_why() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = format!("{}:80", taken.local_addr().unwrap().port());
    let output = world.run(&["vm", "port-forward", "agents-1", &spec]);
    assert_eq!(output.status.code(), Some(5));
    assert!(text(&output.stderr).contains("hint: another program listens there"), "{}", text(&output.stderr));
    let file = world.root().join("file");
    std::fs::write(&file, "kept").unwrap();
    let output = world.run(&["vm", "port-forward", "agents-1", &format!("{}:80", file.display())]);
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "kept");
    let output = world.run(&["vm", "port-forward", "nobody", "0:80"]);
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn it_listens_on_loopback_alone_unless_told_otherwise() {
    let world = World::new();
    let listening = |port: u16| -> Vec<String> {
        let hex = format!(":{port:04X}");
        ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .flat_map(|file| {
                std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .filter_map(|line| {
                line.split_whitespace().nth(1).and_then(|a| a.strip_suffix(&hex).map(str::to_owned))
            })
            .collect()
    };
    let mut running = Running::start(&mut world.command(&["vm", "port-forward", "agents-1", "0:80"]));
    let port = port_of(&running.line());
    eventually("it listens", || !listening(port).is_empty());
    for address in listening(port) {
        assert!(["0100007F", "00000000000000000000000001000000"].contains(&address.as_str()), "{address}");
    }
    let mut running = Running::start(&mut world.command(&["vm", "port-forward", "agents-1", "0.0.0.0:0:80"]));
    let port = port_of(&running.line());
    assert_eq!(listening(port), ["00000000"]);
}
