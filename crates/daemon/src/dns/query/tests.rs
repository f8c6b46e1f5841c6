//! What may go upstream, held against a reader written from RFC 1035 alone.

use hickory_proto::rr::Name;
use proptest::prelude::*;

use super::*;

/// `www.example.com A IN`, id 0x1234, RD.
fn plain() -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(b"\x03www\x07example\x03com\x00\x00\x01\x00\x01");
    bytes
}

/// Reads the bytes as RFC 1035 §4.1 and RFC 6891 §6.1.2 describe one question with at most one OPT.
fn is_one_question(bytes: &[u8]) -> bool {
    let Some((header, mut rest)) = bytes.split_first_chunk::<12>() else { return false };
    // QR and opcode are zero; one question, no answer, no authority, at most one additional.
    if header[2] & 0xf8 != 0 || header[4..10] != [0, 1, 0, 0, 0, 0] || header[10] != 0 || header[11] > 1 {
        return false;
    }
    let start = rest.len();
    loop {
        match rest {
            [0, after @ ..] => {
                rest = after;
                break;
            }
            [length @ 1..=63, after @ ..] if after.len() >= usize::from(*length) => {
                rest = &after[usize::from(*length)..];
            }
            _ => return false,
        }
    }
    if start - rest.len() > 255 {
        return false;
    }
    let [kind_high, kind_low, 0, 1, additional @ ..] = rest else { return false };
    if matches!(u16::from_be_bytes([*kind_high, *kind_low]), 0 | 41 | 128..=254) {
        return false;
    }
    match (header[11], additional) {
        (0, []) => true,
        // Root, type 41, any size, any code, version 0, any flags, length.
        (1, [0, 0, 41, _, _, _, 0, _, _, high, low, options @ ..]) => {
            options.len() == usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ => false,
    }
}

#[test]
fn the_oracle_knows_a_question() {
    assert!(is_one_question(&plain()));
    assert!(matches!(parse(&plain()), Parsed::Question(_)));
}

/// As a number: 16 is BADVERS here and BADSIG elsewhere (RFC 6895 §2.3).
fn code_of(parsed: &Parsed) -> Option<u16> {
    match parsed {
        Parsed::Malformed(answer) => Some(Message::from_vec(answer).unwrap().metadata.response_code.into()),
        _ => None,
    }
}

#[test]
fn a_wrong_version_of_edns_is_named() {
    let mut bytes = plain();
    bytes[11] = 1;
    bytes.extend_from_slice(&[0, 0, 41, 4, 208, 0, 1, 0, 0, 0, 0]);
    assert_eq!(code_of(&parse(&bytes)), Some(16));
}

#[test]
fn counts_are_judged_before_memory_is_reserved() {
    let mut bytes = plain();
    bytes[4..6].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(code_of(&parse(&bytes)), Some(1));
}

#[test]
fn an_answer_and_half_a_header_meet_silence() {
    let mut answer = plain();
    answer[2] |= 0x80;
    for bytes in [&answer[..], &plain()[..11], &[]] {
        assert!(matches!(parse(bytes), Parsed::Noise), "{bytes:?}");
    }
}

#[test]
fn nothing_but_the_question_goes_upstream() {
    let mut bytes = plain();
    bytes[2] = 0; // no recursion asked for
    bytes[11] = 1;
    let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    bytes.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 12]);
    bytes.extend_from_slice(&cookie);
    let Parsed::Question(question) = parse(&bytes) else { panic!("refused") };
    assert_eq!(question.udp_limit(), 1232);
    let sent = Message::from_vec(&question.encode_upstream(7).unwrap()).unwrap();
    assert_eq!((sent.metadata.id, sent.metadata.recursion_desired), (7, true));
    let edns = sent.edns.unwrap();
    assert!(edns.options().as_ref().is_empty());
    assert!(edns.flags().dnssec_ok);
    assert_eq!(edns.max_payload(), MAX_UDP_ANSWER);
    let refused = Message::from_vec(&question.refuse(Refusal::Policy)).unwrap();
    assert_eq!((refused.metadata.id, refused.metadata.recursion_desired), (0x1234, false));
}

/// A name's labels: up to four of up to 63 bytes of any kind.
fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let label = prop_oneof![
        "[a-zA-Z0-9_-]{1,63}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 1..=63),
    ];
    prop::collection::vec(label, 0..4)
}

proptest! {
    #[test]
    fn noise_never_panics_and_only_questions_pass(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let passes = matches!(parse(&bytes), Parsed::Question(_));
        prop_assert!(!passes || is_one_question(&bytes));
    }

    #[test]
    fn a_mangled_question_passes_only_if_it_still_is_one(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        tail in prop::collection::vec(any::<u8>(), 0..12),
    ) {
        let mut bytes = plain();
        for (at, value) in &changes {
            *at.get_mut(&mut bytes) = *value;
        }
        bytes.truncate(cut.index(bytes.len() + 40).min(bytes.len()));
        bytes.extend_from_slice(&tail);
        let passes = matches!(parse(&bytes), Parsed::Question(_));
        prop_assert!(!passes || is_one_question(&bytes));
    }

    #[test]
    fn every_plain_look_up_goes_upstream_as_it_was_asked(
        labels in labels(), kind in prop_oneof![1u16..41, 42u16..128, 255u16..], id in any::<u16>(),
    ) {
        let name = Name::from_labels(labels.iter().map(Vec::as_slice));
        prop_assume!(name.as_ref().is_ok_and(|name| name.len() < 255));
        let query = Query::query(name.unwrap(), RecordType::from(kind));
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.add_query(query.clone());
        let bytes = message.to_vec().unwrap();
        prop_assert!(is_one_question(&bytes));
        let Parsed::Question(question) = parse(&bytes) else { panic!("{query} did not pass") };
        let sent = question.encode_upstream(!id).unwrap();
        prop_assert!(is_one_question(&sent));
        prop_assert_eq!(&sent[HEADER..], &bytes[HEADER..]);
        prop_assert_eq!(&sent[..2], &(!id).to_be_bytes()[..]);
    }
}
