//! DNS for the microVMs: a forwarder on each one's gateway address.
//!
//! Owns: the way of a query from a guest to the upstream resolvers and back, and its limits. Guests
//! are hostile: a query is parsed strictly, encoded anew and bounded in rate, number and time; an
//! upstream that hangs delays only the queries it was asked.
//!
//! Refuses: to make sockets in a microVM's namespace (the caller opens them there; using them needs
//! no switch), to cache, to resolve by itself, and to filter answers. A name that resolves to a
//! forbidden address (rebinding) opens nothing, because packets are judged by address, never by
//! name; answers of type AAAA pass although guests have no IPv6, which their resolvers handle.
//!
//! ```text
//!  guest ─► gateway:53 ─ udp │ tcp ─► vm: rate, parse, policy, place ─► upstream: its own socket,
//!        (VM's namespace)                  │ refused by itself            random id and port, in the
//!        ◄─────────────────────────────────┴──────────◄ answer ◄───────  daemon's namespace
//! ```

mod answer;
mod counters;
mod limits;
mod query;
mod resolvers;
mod tcp;
mod udp;
mod upstream;
mod vm;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::counters::DnsCounters;
pub use self::limits::DnsLimits;
pub use self::resolvers::Upstreams;

use self::limits::InFlight;
use self::vm::VmDns;

/// For the fuzzer: the first half as a guest's query, the second as an upstream's answer to it.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let (asked, answered) = bytes.split_at(bytes.len() / 2);
    if let query::Parsed::Question(question) = query::parse(asked) {
        let id = answered.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
        let _ = answer::read_reply(answered, id, &question);
    }
}

/// What may become of a microVM's queries.
#[derive(Clone, Debug)]
pub enum DnsPolicy {
    /// They go to these upstreams.
    Forward {
        /// Whom to ask, in this order.
        upstreams: Upstreams,
    },
    /// Each is answered with REFUSED and none leaves: the DNS of egress `none` (row 14 of the contract).
    Refuse,
}

/// A microVM's name, as it appears in the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VmLabel(Arc<str>);

impl VmLabel {
    /// A label with this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for VmLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a microVM's DNS cannot be served.
#[derive(Debug, Error)]
pub enum DnsError {
    /// The runtime did not take a socket, as when too many files are open.
    #[error("cannot serve DNS to microVM {vm}: its {transport} socket cannot be registered")]
    Socket {
        /// The microVM.
        vm: VmLabel,
        /// `UDP` or `TCP`.
        transport: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The DNS of all microVMs of one daemon.
///
/// An idle microVM costs two waiting tasks and no timer.
#[derive(Debug)]
pub struct DnsService {
    upstreams: Upstreams,
    limits: DnsLimits,
    in_flight: InFlight,
}

impl DnsService {
    /// A service that forwards to `upstreams` unless a microVM's policy names others.
    ///
    /// Sockets towards the upstreams are made by the threads of the runtime that serves, which must
    /// be in the host's namespace.
    pub fn new(upstreams: Upstreams, limits: DnsLimits) -> Arc<Self> {
        Arc::new(Self { upstreams, limits, in_flight: InFlight::default() })
    }

    /// The policy of a microVM that may ask: `servers` (the group's `network.dns`) on port 53, or the
    /// service's own upstreams where the configuration names none.
    pub fn forward(&self, servers: &[Ipv4Addr]) -> DnsPolicy {
        let upstreams = match servers {
            [] => self.upstreams.clone(),
            named => Upstreams::fixed(named.iter().map(|server| SocketAddr::from((*server, 53)))),
        };
        DnsPolicy::Forward { upstreams }
    }

    /// Serves one microVM on sockets bound to its gateway address in its namespace, until the handle
    /// is dropped or stopped.
    ///
    /// A change of `policy` holds from the next message on, and a change to [`DnsPolicy::Refuse`] also
    /// for queries under way. Once the sender of `policy` is gone every query is refused.
    ///
    /// # Errors
    /// [`DnsError::Socket`] when a socket cannot be made non-blocking or registered.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn serve(
        self: &Arc<Self>,
        vm: VmLabel,
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
        policy: watch::Receiver<DnsPolicy>,
    ) -> Result<DnsHandle, DnsError> {
        let failed = |transport| {
            let vm = vm.clone();
            move |source| DnsError::Socket { vm, transport, source }
        };
        let udp = udp
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UdpSocket::from_std(udp))
            .map_err(failed("UDP"))?;
        let tcp = tcp
            .set_nonblocking(true)
            .and_then(|()| tokio::net::TcpListener::from_std(tcp))
            .map_err(failed("TCP"))?;
        let stop = CancellationToken::new();
        let vm = Arc::new(VmDns::new(vm, Arc::clone(self), policy));
        let tasks = [
            tokio::spawn(udp::serve(Arc::clone(&vm), udp, stop.clone())),
            tokio::spawn(tcp::serve(Arc::clone(&vm), tcp, stop.clone())),
        ];
        Ok(DnsHandle { vm, tasks, stop: stop.drop_guard() })
    }
}

/// One microVM's DNS while it is served. Dropping it ends the service soon; [`DnsHandle::stop`] says when.
#[derive(Debug)]
pub struct DnsHandle {
    vm: Arc<VmDns>,
    tasks: [JoinHandle<()>; 2],
    stop: DropGuard,
}

impl DnsHandle {
    /// What became of the microVM's queries so far.
    pub fn counters(&self) -> DnsCounters {
        self.vm.counters()
    }

    /// Ends the service. Afterwards its sockets are closed, and with them its hold on the microVM's
    /// namespace; queries under way are dropped unanswered.
    pub async fn stop(self) {
        drop(self.stop);
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(vm = %self.vm.label(), %error, "the DNS service of a microVM had broken down");
            }
        }
    }
}
