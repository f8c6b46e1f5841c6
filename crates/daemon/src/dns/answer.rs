//! Whether bytes from an upstream are the answer to what was asked.
//!
//! Owns: matching id and question, the framing of the records, and turning the answer into the
//! guest's: its id, its spelling of the name.
//! Refuses: to judge the records' contents. They are the upstream's words and pass byte for byte;
//! an answer that points into a forbidden network opens nothing, since packets are judged by address.

use hickory_proto::op::{Header, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::Name;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, DecodeError};

use super::query::{HEADER, Question};

/// An upstream's answer to a question, ready for the guest that asked it.
#[derive(Debug)]
pub(super) struct Answer {
    bytes: Vec<u8>,
    code: ResponseCode,
}

/// What bytes from an upstream are.
#[derive(Debug)]
pub(super) enum Reply {
    /// The whole answer.
    Answer(Answer),
    /// The right answer, cut short: to be asked for again over TCP.
    Truncated,
    /// A header with our id and an error, and no question: the upstream did not understand us.
    Failed(ResponseCode),
    /// Not an answer to this question.
    Stray,
}

/// Compares the bytes of a message from an upstream with the question that was sent with `id`.
pub(super) fn read_reply(bytes: &[u8], id: u16, question: &Question) -> Reply {
    let mut decoder = BinDecoder::new(bytes);
    let Ok(header) = Header::read(&mut decoder) else { return Reply::Stray };
    let ours =
        header.id == id && header.message_type == MessageType::Response && header.op_code == OpCode::Query;
    if !ours {
        return Reply::Stray;
    }
    if header.counts.queries == 0 && header.response_code != ResponseCode::NoError {
        return Reply::Failed(header.response_code);
    }
    let end = HEADER + question.wire().len();
    let asked = bytes.get(HEADER..end).is_some_and(|sent| same_question(sent, question.wire()));
    if header.counts.queries != 1 || !asked {
        return Reply::Stray;
    }
    if header.truncation {
        return Reply::Truncated;
    }
    let counts = header.counts;
    let records = [counts.answers, counts.authorities, counts.additionals];
    let count = records.into_iter().map(u32::from).sum();
    match end_of_records(bytes, end, count) {
        Ok(end) => Reply::Answer(for_guest(&bytes[..end], header.response_code, question)),
        Err(_) => Reply::Stray,
    }
}

/// Equal but for the case of the name; type and class, the last four bytes, are compared exactly.
fn same_question(a: &[u8], b: &[u8]) -> bool {
    let (Some((a_name, a_kind)), Some((b_name, b_kind))) =
        (a.split_last_chunk::<4>(), b.split_last_chunk::<4>())
    else {
        return false;
    };
    a_name.eq_ignore_ascii_case(b_name) && a_kind == b_kind
}

/// Walks `count` records from `start` (RFC 1035 §4.1.3) and returns where the last one ends.
fn end_of_records(bytes: &[u8], start: usize, count: u32) -> Result<usize, DecodeError> {
    // A decoder that has seen the start knows where compressed names may point.
    let mut decoder = BinDecoder::new(bytes);
    decoder.read_slice(start)?;
    for _ in 0..count {
        Name::read(&mut decoder)?;
        decoder.read_slice(TYPE_CLASS_TTL)?;
        let length = decoder.read_u16()?.unverified(/* bounded by the next read */);
        decoder.read_slice(usize::from(length))?;
    }
    Ok(decoder.index())
}

/// Bytes of a record between its name and its length.
const TYPE_CLASS_TTL: usize = 8;

/// The guest's id, its RD bit (ours was always set) and its spelling of the name, which a guest
/// that mixes case against forgery compares.
fn for_guest(bytes: &[u8], code: ResponseCode, question: &Question) -> Answer {
    let mut bytes = bytes.to_vec();
    bytes[..2].copy_from_slice(&question.client_id().to_be_bytes());
    if !question.recursion_desired() {
        bytes[2] &= !RECURSION_DESIRED;
    }
    bytes[HEADER..HEADER + question.wire().len()].copy_from_slice(question.wire());
    Answer { bytes, code }
}

/// RD in the third byte of the header.
const RECURSION_DESIRED: u8 = 1;

impl Answer {
    /// Whether another upstream may know better: the codes on which stub resolvers go on (as glibc does).
    pub(super) fn is_lame(&self) -> bool {
        matches!(self.code, ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused)
    }

    /// The answer as it goes to the guest; `limit` is the largest message it takes, in bytes.
    pub(super) fn into_bytes(self, question: &Question, limit: usize) -> Vec<u8> {
        if self.bytes.len() > limit { question.truncated(self.code) } else { self.bytes }
    }
}

#[cfg(test)]
mod tests;
