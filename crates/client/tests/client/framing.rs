//! `docs/streams.md` against the types and an encoder of frames that is not ours.

use enisle_client::api::stream::{Exec, FromDaemon, MAX_DATA, Open, STDIN, STDOUT, ToDaemon, WINDOW};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

const TEXT: &str = include_str!("../../../../docs/streams.md");
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// One message as the page shows it: direction, content, frame.
fn shown(client: bool, kind: Data, payload: &[u8]) -> String {
    let mut frame = Frame::message(payload.to_vec(), OpCode::Data(kind), true);
    frame.header_mut().mask = client.then_some(MASK);
    let mut wire = Vec::new();
    frame.format(&mut wire).unwrap();
    let arrow = if client { '→' } else { '←' };
    let content = match kind {
        Data::Text => format!("text   {}", std::str::from_utf8(payload).unwrap()),
        _ => format!("binary {}", hex(payload)),
    };
    format!("{arrow} {content}\n  {}", hex(&wire))
}

fn from_daemon(message: &FromDaemon) -> String {
    shown(false, Data::Text, serde_json::to_string(message).unwrap().as_bytes())
}

fn to_daemon(message: &ToDaemon) -> String {
    shown(true, Data::Text, serde_json::to_string(message).unwrap().as_bytes())
}

#[test]
fn the_worked_bytes_are_those_of_the_types() {
    let first = r#"{"op":"exec","argv":["cat"]}"#;
    let exec = Open::Exec(Exec { argv: vec!["cat".into()], ..Exec::default() });
    assert!(serde_json::from_str::<Open>(first).unwrap() == exec);
    let session = [
        shown(true, Data::Text, first.as_bytes()),
        from_daemon(&FromDaemon::Opened { pid: Some(7) }),
        shown(true, Data::Binary, &[&[STDIN], &b"hi\n"[..]].concat()),
        from_daemon(&FromDaemon::Window { stream: STDIN, bytes: 3 }),
        shown(false, Data::Binary, &[&[STDOUT], &b"hi\n"[..]].concat()),
        to_daemon(&ToDaemon::Window { stream: STDOUT, bytes: 3 }),
        to_daemon(&ToDaemon::Eof {}),
        from_daemon(&FromDaemon::Eof { stream: 2 }),
        from_daemon(&FromDaemon::Eof { stream: 3 }),
        from_daemon(&FromDaemon::Exit { code: 0, signal: None, timed_out: false }),
    ];
    let block = TEXT.split("```").nth(1).unwrap().trim();
    assert_eq!(block, session.join("\n"));
}

#[test]
fn the_numbers_are_those_of_the_types() {
    let flat = TEXT.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat.contains(&format!("begins with {WINDOW} bytes of credit")));
    assert!(flat.contains(&format!("then 1 to {MAX_DATA} bytes of data")));
}
