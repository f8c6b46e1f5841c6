//! The decoder against bytes nobody vouches for: it is the daemon's first line towards a guest.

use enisle_guest_proto::frame::HEADER;
use enisle_guest_proto::{
    BootCommand, BootConfig, BootEvent, Control, Decoder, Failure, FailureCode, Frame, FrameError, Hello,
    Kind, MAX_FRAME, MAX_PAYLOAD, Open, Reply, encode, encode_control,
};
use proptest::prelude::*;

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::Control, Kind::Stdin, Kind::Stdout, Kind::Stderr])
}

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let payload = prop_oneof![
        9 => prop::collection::vec(any::<u8>(), 0..200),
        1 => (MAX_PAYLOAD - 2..=MAX_PAYLOAD).prop_map(|length| vec![0xa5; length]),
    ];
    prop::collection::vec((kind(), payload).prop_map(|(kind, payload)| Frame { kind, payload }), 0..12)
}

/// Cuts `wire` at `cuts` and feeds the pieces; the frames, and the error that ended it.
fn decode(wire: &[u8], cuts: &[usize]) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = Decoder::default();
    let mut seen = Vec::new();
    let mut rest = wire;
    for cut in cuts.iter().cycle().map(|cut| cut % 5000 + 1) {
        let (piece, after) = rest.split_at(cut.min(rest.len()));
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => seen.push(frame),
                Ok(None) => break,
                Err(e) => return (seen, Some(e)),
            }
        }
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    (seen, None)
}

/// Every message type, read from the same bytes.
fn read_as_everything(frame: &Frame) -> [bool; 7] {
    [
        frame.control::<Hello>().is_ok(),
        frame.control::<BootConfig>().is_ok(),
        frame.control::<BootEvent>().is_ok(),
        frame.control::<BootCommand>().is_ok(),
        frame.control::<Open>().is_ok(),
        frame.control::<Reply>().is_ok(),
        frame.control::<Control>().is_ok(),
    ]
}

proptest! {
    #[test]
    fn frames_survive_any_cut(frames in frames(), cuts in prop::collection::vec(any::<usize>(), 1..20)) {
        let mut wire = Vec::new();
        for frame in &frames {
            encode(frame.kind, &frame.payload, &mut wire);
        }
        prop_assert_eq!(decode(&wire, &cuts), (frames, None));
    }

    #[test]
    fn any_bytes_decode_the_same_however_they_arrive(
        wire in prop::collection::vec(any::<u8>(), 0..3000),
        cuts in prop::collection::vec(any::<usize>(), 1..20),
    ) {
        let whole = decode(&wire, &[4999]);
        prop_assert_eq!(&decode(&wire, &cuts), &whole);
        for frame in whole.0 {
            prop_assert!(frame.payload.len() <= MAX_PAYLOAD);
            // Not a panic, whatever they say.
            read_as_everything(&frame);
        }
    }

    /// Random bytes hardly ever pass the header: here the header is right and the JSON is not.
    #[test]
    fn damaged_messages_are_refused_or_read_but_never_harm(
        at in any::<prop::sample::Index>(),
        value: u8,
        which in 0_usize..4,
    ) {
        let mut wire = Vec::new();
        let failure = Failure { code: FailureCode::Failed, message: "why\u{0}\u{ff}".to_owned() };
        match which {
            0 => encode_control(&Reply::Refused(failure), &mut wire),
            1 => encode_control(&Control::Window { stream: 2, bytes: 7 }, &mut wire),
            2 => encode_control(&BootEvent::UserdataDone { code: -1 }, &mut wire),
            _ => encode_control(&Hello { version: 1, agent: "x".to_owned(), booted: true }, &mut wire),
        }.unwrap();
        let at = HEADER + at.index(wire.len() - HEADER);
        wire[at] = value;
        let (frames, error) = decode(&wire, &[3]);
        prop_assert_eq!((frames.len(), error), (1, None));
        let readings = read_as_everything(&frames[0]);
        prop_assert!(readings.iter().filter(|read| **read).count() <= 1, "one message, two meanings: {:?}", readings);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_from_its_header_alone(length in MAX_PAYLOAD as u32 + 1.., kind in 0_u8..4) {
        let mut decoder = Decoder::default();
        let [a, b, c, d] = length.to_le_bytes();
        decoder.feed(&[a, b, c, d, kind]);
        prop_assert_eq!(decoder.next_frame(), Err(FrameError::TooLong(length as usize)));
    }
}

#[test]
fn nested_json_is_refused_without_exhausting_the_stack() {
    let deep = "[".repeat(MAX_PAYLOAD);
    let mut wire = Vec::new();
    encode(Kind::Control, deep.as_bytes(), &mut wire);
    let (frames, _) = decode(&wire, &[4999]);
    assert_eq!(read_as_everything(&frames[0]), [false; 7]);
}

#[test]
fn unknown_and_missing_fields_are_refused() {
    for json in [
        r#"{"type":"window","stream":1,"bytes":5,"more":1}"#,
        r#"{"type":"window","stream":1}"#,
        r#"{"type":"window","stream":256,"bytes":5}"#,
        r#"{"type":"window","stream":1,"bytes":-5}"#,
        r#"{"type":"window","stream":1,"bytes":4294967296}"#,
        r#"{"event":"ready","x":1}"#,
        r#"{"event":"userdata_done","code":2147483648}"#,
        r#"{"version":1,"agent":"x"}"#,
        r#"{"version":1,"agent":"x","booted":true,"booted":true}"#,
        r#"{"reply":"refused","code":"other","message":""}"#,
        "null",
        "",
    ] {
        let frame = Frame { kind: Kind::Control, payload: json.as_bytes().to_vec() };
        assert_eq!(read_as_everything(&frame), [false; 7], "{json}");
    }
    let known = Frame { kind: Kind::Control, payload: br#"{"event":"ready"}"#.to_vec() };
    assert_eq!(known.control::<BootEvent>().unwrap(), BootEvent::Ready {});
}

#[test]
fn a_message_too_large_for_a_frame_is_the_senders_error() {
    let mut wire = Vec::new();
    let part = "x".repeat(MAX_FRAME);
    let refused = encode_control(&BootCommand::Userdata { part, last: true }, &mut wire);
    assert!(matches!(refused, Err(FrameError::TooLong(_))));
    assert!(wire.is_empty(), "nothing of it is sent");
}

#[test]
fn data_is_no_control_message() {
    let frame = Frame { kind: Kind::Stdout, payload: br#"{"event":"ready"}"#.to_vec() };
    assert_eq!(read_as_everything(&frame), [false; 7]);
}
