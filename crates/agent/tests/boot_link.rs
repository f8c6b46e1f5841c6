//! The boot connection's reading, on a socket pair.

use enisle_agent::boot::link::{Link, LinkError};
use enisle_guest_proto::{BootCommand, BootEvent, FrameError, Kind, encode, encode_control};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

fn pair() -> (UnixStream, Link) {
    let (host, guest) = UnixStream::pair().unwrap();
    (host, Link::from_fd(guest.into()))
}

/// PID 1 hands the descriptor on: what it has not asked for must still be in the socket.
#[test]
fn a_frame_is_read_and_not_a_byte_more() {
    let (mut host, mut link) = pair();
    let mut wire = Vec::new();
    let first = BootCommand::Userdata { part: "echo".to_owned(), last: true };
    encode_control(&first, &mut wire).unwrap();
    encode(Kind::Control, b"", &mut wire);
    encode_control(&BootCommand::Shutdown {}, &mut wire).unwrap();
    wire.extend_from_slice(b"rest");
    host.write_all(&wire).unwrap();
    let read: BootCommand = link.receive().unwrap().control().unwrap();
    assert!(read == first);
    assert_eq!(link.receive().unwrap().payload, b"");
    assert!(matches!(link.receive().unwrap().control(), Ok(BootCommand::Shutdown {})));
    drop(host);
    let mut rest = Vec::new();
    let fd = std::os::fd::AsFd::as_fd(&link).try_clone_to_owned().unwrap();
    UnixStream::from(fd).read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"rest");
}

#[test]
fn what_is_no_frame_ends_it() {
    let (mut host, mut link) = pair();
    host.write_all(&[0xff; 5]).unwrap();
    assert!(matches!(link.receive(), Err(LinkError::Frame(FrameError::TooLong(_)))));
    let (mut host, mut link) = pair();
    host.write_all(&[9, 0, 0, 0, 0, b'{']).unwrap();
    drop(host);
    assert!(matches!(link.receive(), Err(LinkError::Io(_))), "the connection ended in the middle");
}

#[test]
fn events_go_out_as_whole_frames() {
    let (mut host, mut link) = pair();
    link.send(&BootEvent::Ready {}).unwrap();
    drop(link);
    let mut wire = Vec::new();
    host.read_to_end(&mut wire).unwrap();
    assert_eq!(wire.len(), 5 + usize::from(wire[0]));
    assert_eq!(&wire[5..], br#"{"event":"ready"}"#);
}
