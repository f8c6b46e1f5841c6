//! The name servers of this daemon's VMs: one on each gateway address, for as long as its slot is there.
//!
//! Owns: the sockets in a VM's namespace, and which VM is served. Refuses: what becomes of a query,
//! which is `dns`'s. A socket holds its namespace, so a VM's service ends before its slot.

use super::PartError;
use crate::dns::{DnsHandle, DnsLimits, DnsPolicy, DnsService, Upstreams, VmLabel};
use crate::vm::plan::VmPlan;
use enisle_net::netns;
use enisle_net::plan::Block;
use rustix::net::sockopt::set_tcp_user_timeout;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Where a resolver asks.
const PORT: u16 = 53;
/// Milliseconds a guest has to acknowledge an answer, from its first retransmission on. A killed guest
/// never will, and a connection that waits for it holds the namespace: well below the 2 s that the
/// engine gives a namespace to go.
const ACKNOWLEDGED_WITHIN: u32 = 800;

/// A VM's sockets, bound in its namespace.
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Opens them in `netns`, whose tap has this gateway address.
    pub(super) fn open(netns: BorrowedFd<'_>, gateway: Ipv4Addr) -> Result<Self, PartError> {
        let address = SocketAddrV4::new(gateway, PORT);
        let bind = || -> io::Result<Self> {
            let (udp, tcp) = (UdpSocket::bind(address)?, TcpListener::bind(address)?);
            // Connections inherit it (tcp(7)).
            set_tcp_user_timeout(&tcp, ACKNOWLEDGED_WITHIN)?;
            Ok(Self { udp, tcp })
        };
        let bound = netns::run_in(netns, bind).and_then(|bound| bound);
        bound.map_err(PartError::io("open the name server on", address.to_string()))
    }
}

/// What is served to one VM.
struct Served {
    handle: DnsHandle,
    /// Without it every query is refused.
    policy: watch::Sender<DnsPolicy>,
}

/// The name servers, by block.
pub(crate) struct NameServers {
    service: Arc<DnsService>,
    served: Mutex<BTreeMap<Block, Served>>,
}

impl NameServers {
    /// None yet. Groups that name no resolvers get the host's.
    pub(crate) fn new() -> Self {
        let service = DnsService::new(Upstreams::host(), DnsLimits::default());
        Self { service, served: Mutex::default() }
    }

    /// Serves a VM until [`NameServers::stop`]. Must be called in a tokio runtime.
    pub(super) fn start(&self, plan: &VmPlan, Sockets { udp, tcp }: Sockets) -> Result<(), PartError> {
        // Held until the VM can be found here: a change of its policy waits.
        let lists = plan.group.lists();
        let policy = self.policy(plan, plan.compile(&lists)?.reaches_nothing());
        let (policy, watched) = watch::channel(policy);
        let handle = self.service.serve(VmLabel::new(plan.name()), udp, tcp, watched)?;
        self.served().insert(plan.block(), Served { handle, policy });
        drop(lists);
        Ok(())
    }

    /// Follows a change of a VM's policy, from the next query on; to egress `none` also for queries
    /// under way. A VM that is not served is passed over.
    pub(super) fn follow(&self, plan: &VmPlan, reaches_nothing: bool) {
        if let Some(served) = self.served().get(&plan.block()) {
            served.policy.send_replace(self.policy(plan, reaches_nothing));
        }
    }

    /// A name that is looked up carries data out: where nothing may leave, no query does.
    fn policy(&self, plan: &VmPlan, reaches_nothing: bool) -> DnsPolicy {
        if reaches_nothing { DnsPolicy::Refuse } else { self.service.forward(&plan.group.config.network.dns) }
    }

    /// Ends a VM's service; none is fine. Its sockets are closed afterwards.
    pub(super) async fn stop(&self, block: Block) {
        let served = self.served().remove(&block);
        if let Some(served) = served {
            served.handle.stop().await;
        }
    }

    /// A panic elsewhere leaves a map that is whole: every change of it is one call.
    fn served(&self) -> MutexGuard<'_, BTreeMap<Block, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
