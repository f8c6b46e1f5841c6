//! What a guest asked, read strictly, and the answers the forwarder gives by itself.
//!
//! Owns: the decision whether bytes from a guest are one question that may go upstream, and the
//! encoding of what goes there: a message of our own making, never the guest's bytes.
//! Refuses: anything but one uncompressed question of class IN and at most one OPT record.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable};

/// Longest message taken from a guest, in bytes. A question needs 271 and an OPT record with
/// cookie and padding (RFC 8467: blocks of 128) a few hundred.
pub(super) const MAX_QUERY: usize = 2048;

/// Size of the header, in bytes (RFC 1035 §4.1.1).
pub(super) const HEADER: usize = 12;

/// Largest answer sent or asked for over UDP, in bytes: fits one packet everywhere (DNS flag day 2020).
pub(super) const MAX_UDP_ANSWER: u16 = 1232;

/// Size of a UDP answer every client takes, in bytes (RFC 1035 §2.3.4).
const MIN_UDP_ANSWER: u16 = 512;

/// OPT version understood (RFC 6891 §6.1.3).
const EDNS_VERSION: u8 = 0;

/// One question that may go upstream.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The header of the guest's message: its id and flags go into the answer.
    header: Metadata,
    query: Query,
    /// Name, type and class as they were sent, without the header.
    wire: Vec<u8>,
    edns: Option<ClientEdns>,
}

/// What the guest's OPT record said. Its options stay here: none of them is the upstream's business.
#[derive(Clone, Copy, Debug)]
struct ClientEdns {
    max_payload: u16,
    dnssec_ok: bool,
}

/// Why the forwarder answers by itself; each kind has its response code and extended error (RFC 8914).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The policy of the microVM lets no query out.
    Policy,
    /// A type or class that is no plain look-up: zone transfers, meta types, classes other than IN.
    Kind,
    /// More queries a second than the microVM may ask.
    Rate,
    /// More queries under way than the microVM may have.
    Busy,
    /// No upstream answered in time.
    Upstream,
}

impl Refusal {
    fn response_code(self) -> ResponseCode {
        match self {
            Self::Policy | Self::Kind | Self::Rate => ResponseCode::Refused,
            Self::Busy | Self::Upstream => ResponseCode::ServFail,
        }
    }

    /// Info-code of RFC 8914 §5.2 and a text for whoever debugs a guest.
    fn extended_error(self) -> (u16, &'static str) {
        match self {
            Self::Policy => (18, "the policy of this microVM lets no query out"),
            Self::Kind => (21, "only look-ups of class IN are forwarded"),
            Self::Rate => (0, "this microVM asks more queries a second than it may"),
            Self::Busy => (0, "this microVM has too many queries under way"),
            Self::Upstream => (22, "no upstream resolver answered in time"),
        }
    }
}

/// What became of a guest's bytes.
#[derive(Debug)]
pub(super) enum Parsed {
    /// One question that may go upstream.
    Question(Question),
    /// One well-formed question that never goes upstream.
    Refused(Question),
    /// No question, but a header to answer to: the whole answer.
    Malformed(Vec<u8>),
    /// Not even a query's header, or an answer: silence, so that two servers never talk to each other.
    Noise,
}

/// Reads the bytes of one message from a guest.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut decoder = BinDecoder::new(bytes);
    let Ok(header) = hickory_proto::op::Header::read(&mut decoder) else { return Parsed::Noise };
    if header.metadata.message_type != MessageType::Query {
        return Parsed::Noise;
    }
    if header.metadata.op_code != OpCode::Query {
        return malformed(&header.metadata, ResponseCode::NotImp);
    }
    // Counted before they are read: the decoder reserves memory for what the header promises.
    let counts = header.counts;
    let plain =
        counts.queries == 1 && counts.answers == 0 && counts.authorities == 0 && counts.additionals <= 1;
    if !plain || bytes.len() > MAX_QUERY {
        return malformed(&header.metadata, ResponseCode::FormErr);
    }
    match read_question(header.metadata, &mut decoder, counts.additionals) {
        Ok(question) if is_lookup(&question.query) => Parsed::Question(question),
        Ok(question) => Parsed::Refused(question),
        Err(code) => malformed(&header.metadata, code),
    }
}

fn read_question(
    header: Metadata,
    decoder: &mut BinDecoder<'_>,
    additionals: u16,
) -> Result<Question, ResponseCode> {
    let start = decoder.index();
    let query = Query::read(decoder).map_err(|_| ResponseCode::FormErr)?;
    let wire = query.to_bytes().map_err(|_| ResponseCode::FormErr)?;
    // Sent verbatim or not at all: what was understood is what was sent, without pointers into the header.
    let sent = decoder.slice_from(start).map_err(|_| ResponseCode::FormErr)?;
    if sent != wire {
        return Err(ResponseCode::FormErr);
    }
    let (others, edns, _) = Message::read_records(decoder, usize::from(additionals), true, OpCode::Query)
        .map_err(|_| ResponseCode::FormErr)?;
    if !others.is_empty() || !decoder.is_empty() {
        return Err(ResponseCode::FormErr);
    }
    if edns.as_ref().is_some_and(|edns| edns.version() != EDNS_VERSION) {
        return Err(ResponseCode::BADVERS);
    }
    let edns =
        edns.map(|edns| ClientEdns { max_payload: edns.max_payload(), dnssec_ok: edns.flags().dnssec_ok });
    Ok(Question { header, query, wire, edns })
}

/// Whether a query is a look-up of data: not OPT, not a meta or transfer type (RFC 6895 §3.1: 128 to
/// 254; 255 is ANY), not type 0, and of class IN.
fn is_lookup(query: &Query) -> bool {
    let kind = u16::from(query.query_type());
    let meta = kind == 0 || (128..=254).contains(&kind) || query.query_type() == RecordType::OPT;
    query.query_class() == DNSClass::IN && !meta
}

fn malformed(header: &Metadata, code: ResponseCode) -> Parsed {
    let mut message = Message::error_msg(header.id, header.op_code, code);
    message.metadata.recursion_desired = header.recursion_desired;
    message.metadata.recursion_available = true;
    if code.high() != 0 {
        // The upper bits of the code have their place in the OPT record only (RFC 6891 §6.1.3).
        message.set_edns(own_edns(false, code));
    }
    message.to_vec().map_or(Parsed::Noise, Parsed::Malformed)
}

fn own_edns(dnssec_ok: bool, code: ResponseCode) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP_ANSWER).set_dnssec_ok(dnssec_ok).set_rcode_high(code.high());
    edns
}

impl Question {
    /// Name, type and class as sent.
    pub(super) fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// Id of the guest's message.
    pub(super) fn client_id(&self) -> u16 {
        self.header.id
    }

    /// Whether the guest asked for recursion: copied into the answer.
    pub(super) fn recursion_desired(&self) -> bool {
        self.header.recursion_desired
    }

    /// Largest answer the guest takes over UDP, in bytes: 512 to [`MAX_UDP_ANSWER`].
    pub(super) fn udp_limit(&self) -> usize {
        let limit =
            self.edns.map_or(MIN_UDP_ANSWER, |edns| edns.max_payload.clamp(MIN_UDP_ANSWER, MAX_UDP_ANSWER));
        usize::from(limit)
    }

    /// The message for an upstream, with `id` and the same question.
    ///
    /// Recursion is always asked for: without it a guest could look into the resolver's cache and
    /// see what its neighbours asked. `None` if the message cannot be encoded.
    pub(super) fn encode_upstream(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.authentic_data = self.header.authentic_data;
        message.metadata.checking_disabled = self.header.checking_disabled;
        message.add_query(self.query.clone());
        // Only when the guest has an OPT record of its own: the answer then passes as it is.
        if let Some(client) = self.edns {
            message.set_edns(own_edns(client.dnssec_ok, ResponseCode::NoError));
        }
        message.to_vec().ok()
    }

    /// The forwarder's own answer. Empty if it cannot be encoded, which is not sent.
    pub(super) fn refuse(&self, refusal: Refusal) -> Vec<u8> {
        let code = refusal.response_code();
        let mut message = self.own_answer(code);
        if let Some(edns) = &mut message.edns {
            let (info, text) = refusal.extended_error();
            let mut option = info.to_be_bytes().to_vec();
            option.extend_from_slice(text.as_bytes());
            edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, option));
        }
        message.to_vec().unwrap_or_default()
    }

    /// An answer with nothing but the truncation bit and `code`: the guest comes again over TCP.
    pub(super) fn truncated(&self, code: ResponseCode) -> Vec<u8> {
        let mut message = self.own_answer(code);
        message.metadata.truncation = true;
        message.to_vec().unwrap_or_default()
    }

    fn own_answer(&self, code: ResponseCode) -> Message {
        let mut message = Message::error_msg(self.header.id, OpCode::Query, code);
        message.metadata.recursion_desired = self.header.recursion_desired;
        message.metadata.checking_disabled = self.header.checking_disabled;
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        if let Some(client) = self.edns {
            message.set_edns(own_edns(client.dnssec_ok, code));
        }
        message
    }
}

/// Option code of an extended error (RFC 8914 §2).
const EXTENDED_ERROR: u16 = 15;

#[cfg(test)]
mod tests;
