//! Asks the rows, batch by batch, and gathers what is seen.
//!
//! Owns: the order, and every bound of time. Refuses: verdicts.

use super::frames::{self, TCP, UDP};
use super::judge::{Controls, Evidence};
use super::oracle::{Canary, Place, Sniffers};
use super::probe::{self, Back, Honest, Packet, Run, Via};
use super::rows::Row;
use crate::chain::Chain;
use crate::guest::session;
use crate::parts::Machine;
use enisle_api::verify::Expected;
use enisle_guest_proto::{Probe, ProbeAnswer, ProbeClaim, ProbeItem};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};
use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::ops::Range;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Rows of one batch: their frames fit one message to the guest.
const BATCH: usize = 24;
/// The interface that the agent gave the VM's NIC.
const INTERFACE: &str = "eth0";
/// How long a guest waits for the answers to a batch, in milliseconds.
const GUEST_PATIENCE_MS: u32 = 1000;
/// How long the traces of a batch may take once the guest says that it has sent it. The name server says
/// that no resolver answers after 6 s.
const TRACE_PATIENCE: Duration = Duration::from_secs(9);
/// After the last trace: time for what must not come.
const QUIET: Duration = Duration::from_millis(100);
/// How long the host's own call may take that must not be answered.
const CALL_PATIENCE: Duration = Duration::from_millis(300);
/// The first number of a beacon; there are fewer rows.
const BEACONS: usize = 0xf000;
/// Local experiments (IEEE 802): no stack does anything with it.
const BEACON_TYPE: u16 = 0x88b5;

/// A run under way.
pub(super) struct Examination {
    pub(super) rows: Vec<Row>,
    pub(super) evidence: Vec<Evidence>,
    /// What the guest says about each row.
    pub(super) claims: Vec<String>,
    /// Why the run ended before its last row.
    pub(super) broken: Option<String>,
    run: Run,
    guest: Honest,
    sniffers: Sniffers,
    canary: Canary,
    beacons: usize,
    beacons_seen: BTreeSet<usize>,
    lossless: bool,
}

impl Examination {
    pub(super) fn new(rows: Vec<Row>, run: Run, guest: Honest, sniffers: Sniffers, canary: Canary) -> Self {
        let mut evidence = vec![Evidence::default(); rows.len()];
        for (row, seen) in rows.iter().zip(&mut evidence) {
            let deaf = row.flow.is_some_and(|flow| canary.deaf.contains(flow.to.ip()));
            seen.no_canary = row.canary && deaf;
        }
        Self {
            claims: vec![String::new(); rows.len()],
            evidence,
            rows,
            broken: None,
            run,
            guest,
            sniffers,
            canary,
            beacons: 0,
            beacons_seen: BTreeSet::new(),
            lossless: true,
        }
    }

    /// Asks every row. A guest that breaks the protocol ends it; rows that were not asked prove nothing.
    pub(super) async fn ask_all(&mut self, machine: &dyn Machine) {
        let starts = (0..self.rows.len()).step_by(BATCH);
        for start in starts {
            let batch = start..self.rows.len().min(start + BATCH);
            if let Err(why) = self.ask(machine, batch).await {
                self.broken = Some(why);
                return;
            }
        }
    }

    /// What holds for the whole run.
    pub(super) fn controls(&self) -> Controls {
        let mut allowed =
            self.rows.iter().zip(&self.evidence).filter(|(row, _)| row.expected == Expected::Reached);
        Controls {
            beacons: self.beacons > 0 && self.beacons_seen.len() == self.beacons,
            lossless: self.lossless,
            passes: allowed.all(|(_, seen)| seen.crossed),
        }
    }

    async fn ask(&mut self, machine: &dyn Machine, batch: Range<usize>) -> Result<(), String> {
        self.beacon()?;
        self.send_inwards(batch.clone()).await?;
        let (places, items): (Vec<usize>, Vec<ProbeItem>) =
            batch.clone().filter_map(|at| Some((at, item(&self.rows[at].via)?))).unzip();
        if !items.is_empty() {
            let count = items.len();
            let probe = Probe { interface: INTERFACE.to_owned(), items, patience_ms: GUEST_PATIENCE_MS };
            let answers = self.watch_while(session::probe(machine, probe)).await;
            let answers = answers.map_err(|error| format!("the guest's agent: {}", Chain(&error)))?;
            if answers.len() != count {
                return Err("the guest's agent did not answer every probe".to_owned());
            }
            for (at, answer) in places.into_iter().zip(answers) {
                self.take_claim(at, answer);
            }
        }
        self.settle(batch).await;
        self.beacon()?;
        self.look_until(Instant::now() + QUIET).await;
        self.lossless &= self.sniffers.lossless();
        Ok(())
    }

    /// A frame of the daemon's own on the wire behind the judge: proof that it is looked at.
    fn beacon(&mut self) -> Result<(), String> {
        let token = self.run.token(BEACONS + self.beacons);
        let frame =
            frames::ethernet(frames::BROADCAST, self.guest.gateway_mac, BEACON_TYPE, token.as_bytes());
        self.beacons += 1;
        self.sniffers.send_out(&frame).map_err(|error| format!("cannot send on the VM's veth: {error}"))
    }

    async fn send_inwards(&mut self, batch: Range<usize>) -> Result<(), String> {
        for at in batch {
            match &self.rows[at].via {
                Via::Injected(frame) => {
                    let sent = self.sniffers.send_in(frame);
                    sent.map_err(|error| format!("cannot send on the host's end of the veth: {error}"))?;
                }
                Via::FromHost(protocol, to) => {
                    let (protocol, to, token) = (*protocol, *to, self.run.token(at));
                    let work = tokio::task::spawn_blocking(move || from_host(protocol, to, &token));
                    let said = self.watch_while(work).await.unwrap_or_else(|_| "a defect".to_owned());
                    // There is no place to see it before the host's table: that it was tried is all.
                    self.evidence[at].sent = true;
                    self.claims[at] = format!("(host: {said})");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits for `work` and looks at the wires meanwhile.
    async fn watch_while<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = self.sniffers.ready() => {}
            }
            self.look();
        }
    }

    /// Looks until every row of the batch has left the traces it should, or the time is over.
    async fn settle(&mut self, batch: Range<usize>) {
        let deadline = Instant::now() + TRACE_PATIENCE;
        while !batch.clone().all(|at| has_its_traces(&self.rows[at], &self.evidence[at])) {
            tokio::select! {
                () = self.sniffers.ready() => {}
                () = sleep_until(deadline) => break,
            }
            self.look();
        }
    }

    async fn look_until(&mut self, end: Instant) {
        loop {
            tokio::select! {
                () = self.sniffers.ready() => {}
                () = sleep_until(end) => break,
            }
            self.look();
        }
        self.look();
    }

    fn look(&mut self) {
        let Self { rows, evidence, run, guest, beacons_seen, sniffers, canary, .. } = self;
        sniffers.drain(|place, frame| {
            let marked = run.row_in(frame);
            if let (Place::Out, Some(beacon @ BEACONS..)) = (place, marked) {
                beacons_seen.insert(beacon);
            }
            for (at, (row, seen)) in rows.iter_mut().zip(evidence.iter_mut()).enumerate() {
                note(row, seen, (place, marked == Some(at), marked.is_some()), (guest, frame));
            }
        });
        let (called, datagrams) = canary.heard(guest.address, *run);
        for (at, (row, seen)) in rows.iter().zip(evidence.iter_mut()).enumerate() {
            let was_called = matches!(row.via, Via::Tcp(to) if row.canary && called.contains(to.ip()));
            seen.arrived |= was_called || datagrams.contains(&at);
        }
    }

    fn take_claim(&mut self, at: usize, answer: ProbeAnswer) {
        let ms = answer.after_ms;
        self.evidence[at].claims_answer = matches!(answer.claim, ProbeClaim::Answered {});
        self.claims[at] = match answer.claim {
            ProbeClaim::Sent {} => "sent".to_owned(),
            ProbeClaim::Answered {} => format!("answered, {ms} ms"),
            ProbeClaim::Refused { errno } => {
                format!("refused ({}), {ms} ms", io::Error::from_raw_os_error(errno))
            }
            ProbeClaim::Silent {} => "silence".to_owned(),
            ProbeClaim::Failed { errno } => format!("not sent: {}", io::Error::from_raw_os_error(errno)),
        };
    }
}

/// What one frame tells about one row. `marks` are where it was seen, whether it carries this row's
/// token, and whether it carries any.
fn note(row: &mut Row, seen: &mut Evidence, marks: (Place, bool, bool), (guest, frame): (&Honest, &[u8])) {
    let (place, marked, foreign) = marks;
    let inwards = matches!(row.via, Via::Injected(_) | Via::FromHost(..));
    // Only a call through a socket has no token.
    let of_flow = |row: &Row| match &row.flow {
        Some(flow) if !foreign => probe::is_of_flow(flow, frame),
        _ => false,
    };
    match place {
        Place::FromGuest if !seen.sent && row.via.is_asked(guest, frame) => {
            seen.sent = true;
            if let (Via::Tcp(_), Some(flow)) = (&row.via, &mut row.flow) {
                flow.from = Packet::in_frame(frame).and_then(|packet| packet.source_port());
            }
        }
        Place::FromGuest => {}
        Place::FromHost => seen.sent |= row.via.is_injected(frame),
        Place::Out => seen.crossed |= !inwards && (marked || of_flow(row)),
        Place::ToGuest if inwards => seen.crossed |= marked || of_flow(row),
        Place::ToGuest => match probe::back(row.flow.as_ref(), marked, frame) {
            Some(Back::Refused(refusal)) => seen.refusal = Some(refusal),
            Some(Back::Answered(answer)) => {
                let refused = answer == probe::DNS_REFUSED;
                seen.misanswered |= row.dns_refused.is_some_and(|expected| expected != refused);
                seen.answer = Some(answer);
            }
            None => {}
        },
    }
}

/// Whether nothing more that should come can come.
fn has_its_traces(row: &Row, seen: &Evidence) -> bool {
    match row.expected {
        Expected::Reached | Expected::Delivered => seen.crossed,
        Expected::Served => seen.answer.is_some(),
        Expected::Refused => seen.refusal.is_some(),
        Expected::Dropped | Expected::Stopped => seen.sent,
    }
}

fn item(via: &Via) -> Option<ProbeItem> {
    match via {
        Via::Tcp(to) => Some(ProbeItem::Tcp { to: *to }),
        Via::Udp(to, payload) => Some(ProbeItem::Udp { to: *to, payload: payload.clone() }),
        Via::Frame { bytes, .. } => Some(ProbeItem::Frame { bytes: bytes.clone() }),
        Via::Injected(_) | Via::FromHost(..) => None,
    }
}

/// Sends to the guest as any program of the host could; what the host's kernel said.
fn from_host(protocol: u8, to: SocketAddrV4, token: &str) -> String {
    let sent = match protocol {
        TCP => TcpStream::connect_timeout(&SocketAddr::V4(to), CALL_PATIENCE).map(drop),
        UDP => {
            UdpSocket::bind(("0.0.0.0", 0)).and_then(|socket| socket.send_to(token.as_bytes(), to)).map(drop)
        }
        _ => ping(to, token),
    };
    sent.map_or_else(|error| error.to_string(), |()| "sent".to_owned())
}

fn ping(to: SocketAddrV4, token: &str) -> io::Result<()> {
    let socket =
        socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMP))?;
    let message = frames::icmp_message(8, token.as_bytes());
    let to = SocketAddrV4::new(*to.ip(), 0);
    sendto(&socket, &message, SendFlags::empty(), &to)?;
    Ok(())
}
