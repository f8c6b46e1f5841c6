//! Which bytes are taken for an upstream's answer.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use proptest::prelude::*;

use super::super::query::{Parsed, parse};
use super::*;

const ID: u16 = 0x5555;

fn name() -> Name {
    Name::from_ascii("wWw.eXample.com.").unwrap()
}

fn question() -> Question {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name(), RecordType::A));
    let Parsed::Question(question) = parse(&message.to_vec().unwrap()) else { panic!("no question") };
    question
}

/// An answer with one address, spelt in lower case.
fn good() -> Message {
    let mut message = Message::response(ID, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name().to_lowercase(), RecordType::A));
    let address = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
    message.add_answer(Record::from_rdata(name().to_lowercase(), 60, address));
    message
}

fn read(message: &Message) -> Reply {
    read_reply(&message.to_vec().unwrap(), ID, &question())
}

#[test]
fn the_answer_becomes_the_guests() {
    let Reply::Answer(answer) = read(&good()) else { panic!("not taken") };
    let bytes = answer.into_bytes(&question(), 512);
    let seen = Message::from_vec(&bytes).unwrap();
    assert_eq!((seen.metadata.id, seen.metadata.recursion_desired), (0x1234, false));
    assert!(seen.queries[0].name().eq_case(&name()));
    assert_eq!(seen.answers.len(), 1);
}

#[test]
fn what_follows_the_last_record_is_cut() {
    let mut bytes = good().to_vec().unwrap();
    let length = bytes.len();
    bytes.extend_from_slice(b"trailing");
    let Reply::Answer(answer) = read_reply(&bytes, ID, &question()) else { panic!("not taken") };
    assert_eq!(answer.into_bytes(&question(), 512).len(), length);
}

#[test]
fn only_the_same_question_and_id_are_taken() {
    let change = |change: &dyn Fn(&mut Message)| {
        let mut message = good();
        change(&mut message);
        matches!(read(&message), Reply::Stray)
    };
    assert!(!change(&|_| {}));
    assert!(change(&|m| m.metadata.id ^= 1));
    assert!(change(&|m| m.metadata.message_type = MessageType::Query));
    assert!(change(&|m| m.metadata.op_code = OpCode::Status));
    assert!(change(&|m| m.queries.clear()));
    assert!(change(&|m| m.queries.push(m.queries[0].clone())));
    assert!(change(&|m| m.queries[0] = Query::query(name(), RecordType::AAAA)));
    let other = Name::from_ascii("www.example.org.").unwrap();
    assert!(change(&|m| m.queries[0] = Query::query(other.clone(), RecordType::A)));
}

#[test]
fn letters_match_in_either_case_in_the_name_alone() {
    assert!(same_question(b"\x01a\0\0\x41\0\x01", b"\x01A\0\0\x41\0\x01"));
    assert!(!same_question(b"\x01a\0\0\x41\0\x01", b"\x01a\0\0\x61\0\x01"));
}

#[test]
fn records_that_do_not_fit_are_no_answer() {
    let whole = good().to_vec().unwrap();
    for length in 0..whole.len() {
        assert!(matches!(read_reply(&whole[..length], ID, &question()), Reply::Stray), "{length}");
    }
    let mut promised = whole;
    promised[7] = 2;
    assert!(matches!(read_reply(&promised, ID, &question()), Reply::Stray));
}

#[test]
fn a_cut_answer_and_a_bare_error_are_told_apart() {
    let mut cut = good();
    cut.metadata.truncation = true;
    assert!(matches!(read(&cut), Reply::Truncated));
    let bare = Message::error_msg(ID, OpCode::Query, ResponseCode::FormErr);
    assert!(matches!(read(&bare), Reply::Failed(ResponseCode::FormErr)));
}

proptest! {
    #[test]
    fn bytes_from_an_upstream_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        tail in prop::collection::vec(any::<u8>(), 0..64),
        limit in 512usize..1300,
    ) {
        let mut bytes = good().to_vec().unwrap();
        for (at, value) in &changes {
            *at.get_mut(&mut bytes) = *value;
        }
        bytes.extend_from_slice(&tail);
        if let Reply::Answer(answer) = read_reply(&bytes, ID, &question()) {
            let question = question();
            let sent = answer.into_bytes(&question, limit);
            prop_assert!(sent.len() <= limit);
            prop_assert_eq!(&sent[..2], &[0x12, 0x34]);
            prop_assert_eq!(&sent[HEADER..HEADER + question.wire().len()], question.wire());
        }
    }
}
