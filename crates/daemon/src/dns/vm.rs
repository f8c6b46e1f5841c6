//! One microVM's side of the service: what is done with each of its messages, whatever carried it.
//!
//! Owns: policy, limits and counters of one microVM, and which upstream it prefers.
//! Refuses: to read or write the guest's sockets. Nothing but the common number of places is shared
//! with other microVMs: what one guest asks never changes whom another's queries go to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::counters::{DnsCounters, Event, Tally};
use super::limits::{Admission, DnsLimits, InFlight, Place, Throttle};
use super::query::{Parsed, Question, Refusal, parse};
use super::resolvers::Upstreams;
use super::upstream::{self, Answered, Timing};
use super::{DnsPolicy, DnsService, VmLabel};

/// The state of one microVM's DNS.
#[derive(Debug)]
pub(super) struct VmDns {
    label: VmLabel,
    service: Arc<DnsService>,
    policy: watch::Receiver<DnsPolicy>,
    throttle: Mutex<Throttle>,
    in_flight: InFlight,
    preferred: Mutex<Option<Preferred>>,
    tally: Tally,
}

/// The upstream that answered when an earlier one in the list did not.
#[derive(Clone, Copy, Debug)]
struct Preferred {
    server: SocketAddr,
    until: Instant,
}

/// What is to be done with one message.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing is answered.
    Silence,
    /// This is answered.
    Answer(Vec<u8>),
    /// To be passed to [`VmDns::forward`], which takes its time.
    Forward(Forward),
}

/// A question that may go upstream, with its place among those under way.
#[derive(Debug)]
pub(super) struct Forward {
    question: Question,
    upstreams: Upstreams,
    _place: Place,
}

impl Forward {
    /// Largest answer the guest takes over UDP, in bytes.
    pub(super) fn udp_limit(&self) -> usize {
        self.question.udp_limit()
    }
}

impl VmDns {
    pub(super) fn new(label: VmLabel, service: Arc<DnsService>, policy: watch::Receiver<DnsPolicy>) -> Self {
        let throttle = Mutex::new(Throttle::new(&service.limits, Instant::now()));
        Self {
            label,
            service,
            policy,
            throttle,
            in_flight: InFlight::default(),
            preferred: Mutex::new(None),
            tally: Tally::default(),
        }
    }

    pub(super) fn label(&self) -> &VmLabel {
        &self.label
    }

    pub(super) fn limits(&self) -> &DnsLimits {
        &self.service.limits
    }

    pub(super) fn counters(&self) -> DnsCounters {
        self.tally.read()
    }

    /// What the rate says to one more message, or connection, now.
    pub(super) fn admit(&self) -> Admission {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now())
    }

    /// Counts a message that is dropped unread because the guest sends too many.
    pub(super) fn drop_message(&self) {
        self.tally.count(Event::Query);
        self.tally.count(Event::Limited);
    }

    /// Counts a connection that is closed because the guest has too many.
    pub(super) fn drop_connection(&self) {
        self.tally.count(Event::ConnectionRefused);
    }

    /// Decides about one message; over the rate if not `within_rate`.
    pub(super) fn take(&self, bytes: &[u8], within_rate: bool) -> Step {
        self.tally.count(Event::Query);
        let question = match parse(bytes) {
            Parsed::Question(question) => question,
            Parsed::Refused(question) => return self.refuse(&question, Refusal::Kind, Event::Refused),
            Parsed::Malformed(answer) => {
                self.tally.count(Event::Malformed);
                return Step::Answer(answer);
            }
            Parsed::Noise => {
                self.tally.count(Event::Malformed);
                return Step::Silence;
            }
        };
        if !within_rate {
            return self.refuse(&question, Refusal::Rate, Event::Limited);
        }
        let Some(upstreams) = self.allowed_upstreams() else {
            return self.refuse(&question, Refusal::Policy, Event::Refused);
        };
        match Place::take(&self.in_flight, &self.service.in_flight, &self.service.limits) {
            Some(place) => Step::Forward(Forward { question, upstreams, _place: place }),
            None => self.refuse(&question, Refusal::Busy, Event::Limited),
        }
    }

    fn refuse(&self, question: &Question, refusal: Refusal, event: Event) -> Step {
        self.tally.count(event);
        Step::Answer(question.refuse(refusal))
    }

    /// The upstreams of this instant's policy; `None` when nothing may go out.
    fn allowed_upstreams(&self) -> Option<Upstreams> {
        match &*self.policy.borrow() {
            DnsPolicy::Forward { upstreams } => Some(upstreams.clone()),
            DnsPolicy::Refuse => None,
        }
    }

    /// Asks upstream and returns the answer for the guest, of at most `limit` bytes. Ends within
    /// [`DnsLimits::overall`], and at once when the policy turns to refusing.
    pub(super) async fn forward(&self, forward: Forward, limit: usize) -> Vec<u8> {
        let question = &forward.question;
        let outcome = tokio::select! {
            // First the policy, so that nothing is sent when it already refuses.
            biased;
            () = self.policy_refuses() => Err(Refusal::Policy),
            answered = self.ask(question, &forward.upstreams) => answered.ok_or(Refusal::Upstream),
        };
        match outcome {
            Ok(answered) => {
                self.tally.count(Event::Answered);
                answered.answer.into_bytes(question, limit)
            }
            Err(refusal) => {
                let event = if refusal == Refusal::Policy { Event::Refused } else { Event::FailedUpstream };
                self.tally.count(event);
                question.refuse(refusal)
            }
        }
    }

    /// Ends when the policy is to refuse. So does one that nobody can change any more: its owner is
    /// gone, and so should the microVM be.
    async fn policy_refuses(&self) {
        let mut policy = self.policy.clone();
        // Both ways to end mean the same, and an error carries nothing.
        let _ = policy.wait_for(|policy| matches!(policy, DnsPolicy::Refuse)).await;
    }

    async fn ask(&self, question: &Question, upstreams: &Upstreams) -> Option<Answered> {
        let limits = &self.service.limits;
        let now = Instant::now();
        let mut servers = upstreams.servers().to_vec();
        let first = servers.first().copied();
        if let Some(preferred) = self.preferred_at(now) {
            // Stable: the others keep their order.
            servers.sort_by_key(|server| *server != preferred);
        }
        let timing = Timing { attempt: limits.attempt, deadline: now + limits.overall };
        let answered = upstream::ask(question, &servers, timing).await;
        match &answered {
            Some(answered) if Some(answered.by) != first => self.prefer(answered.by),
            Some(_) => {}
            None => tracing::debug!(vm = %self.label, ?servers, "no DNS upstream answered"),
        }
        answered
    }

    fn preferred_at(&self, now: Instant) -> Option<SocketAddr> {
        let preferred = self.preferred.lock().unwrap_or_else(PoisonError::into_inner);
        preferred.filter(|preferred| now < preferred.until).map(|preferred| preferred.server)
    }

    /// Remembers a server for a while from when it first stood in; being preferred does not prolong it.
    fn prefer(&self, server: SocketAddr) {
        let now = Instant::now();
        let mut preferred = self.preferred.lock().unwrap_or_else(PoisonError::into_inner);
        if !preferred.is_some_and(|of| of.server == server && now < of.until) {
            *preferred = Some(Preferred { server, until: now + self.service.limits.prefer });
        }
    }
}
