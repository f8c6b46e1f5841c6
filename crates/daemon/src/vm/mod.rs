//! VMs: one owner task each.
//!
//! ```text
//! http ──▶ Registry ──▶ Handle ──mailbox (bounded)──▶ Owner ──▶ create, remove ──▶ parts
//!                          ▲                            │
//!                          └────── Status (watched) ◀───┘ table: state × event → state, effect
//! ```
//!
//! Owns: what the rest of the daemon may know of a VM and ask of it. Refuses: acting on a VM from
//! anywhere but its owner task.

mod adopt;
pub(crate) mod create;
mod error;
pub(crate) mod explain;
pub(crate) mod groups;
pub(crate) mod labels;
pub(crate) mod lifetime;
pub(crate) mod owner;
pub(crate) mod plan;
pub(crate) mod policy;
pub(crate) mod queue;
pub(crate) mod registry;
pub(crate) mod remove;
mod request;
pub(crate) mod table;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use error::VmError;

use crate::parts::Machine;
use enisle_api::{Removal, Vm};
use enisle_guest_proto::Request;
use lifetime::{StreamPlace, Streams};
use plan::VmPlan;
use queue::Ticket;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use table::State;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::Span;

/// What may be asked of an owner task.
pub(crate) enum Command {
    /// Stop the guest in an orderly way and remove everything.
    /// With the request that it is done for, whose id its log lines have.
    Remove(Removal, Option<owner::Waiting>, Span),
    /// Kill the guest now, and remove everything.
    Hurry,
    /// Pause or resume the guest.
    Halt(owner::halt::Wish),
}

/// What an owner task tells about its VM.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) state: State,
    /// Why, when it needs a reason.
    pub(crate) reason: Option<String>,
    pub(crate) pid: Option<u32>,
    pub(crate) ready_after_ms: Option<u64>,
    pub(crate) userdata_exit: Option<i32>,
}

/// A VM as the rest of the daemon knows it. Clones are handles on the same one.
#[derive(Clone)]
pub(crate) struct Handle {
    plan: Arc<VmPlan>,
    mailbox: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    machine: watch::Receiver<Option<Arc<dyn Machine>>>,
    streams: Streams,
    /// Where it stands among those that are to start; none for one that was taken over.
    ticket: Option<Ticket>,
}

impl Handle {
    pub(crate) fn name(&self) -> &str {
        self.plan.name()
    }

    pub(crate) fn plan(&self) -> &Arc<VmPlan> {
        &self.plan
    }

    pub(crate) fn state(&self) -> State {
        self.status.borrow().state
    }

    /// The VM as the API shows it.
    pub(crate) fn show(&self) -> Vm {
        let row = &self.plan.row;
        let net = self.plan.guest_net();
        let mut status = self.status.borrow().clone();
        if status.state == State::Creating && status.reason.is_none() {
            let waiting = self.ticket.as_ref().and_then(Ticket::waiting);
            status.reason = waiting.map(|waiting| waiting.to_string());
        }
        Vm {
            name: row.name.clone(),
            group: row.group.clone(),
            state: status.state.shown(),
            reason: status.reason,
            mode: self.plan.group.config.network.mode.name().to_owned(),
            address: net.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |net| net.address),
            gateway: net.map_or(Ipv4Addr::UNSPECIFIED, |net| net.gateway),
            vcpu: row.vcpu,
            ram_mb: row.ram_mib,
            image: row.image.clone(),
            pid: status.pid,
            created_ms: row.created_ms,
            ready_after_ms: status.ready_after_ms,
            userdata_exit: status.userdata_exit,
            labels: row.labels.clone(),
            expires_ms: lifetime::expires_ms(row),
            idle_timeout_ms: row.lifetime.idle_timeout_ms,
        }
    }

    /// Waits until exec works, or never will.
    pub(crate) async fn ready(&self, patience: Duration) -> Result<(), VmError> {
        let mut status = self.status.clone();
        let settled = status.wait_for(|status| !status.state.is_hopeful());
        let Ok(settled) = timeout(patience, settled).await else {
            return Err(VmError::NotReady { name: self.name().to_owned(), patience });
        };
        // An owner that ended left its last word.
        drop(settled);
        if self.state() == State::Running { Ok(()) } else { Err(self.why_not()) }
    }

    /// Waits until it is made, taken over or given up.
    pub(crate) async fn settled(&self) {
        let mut status = self.status.clone();
        // An owner that ended left its last word.
        let _ = status.wait_for(|status| !matches!(status.state, State::Creating | State::Cancelling)).await;
    }

    /// Whether there is, or may soon be, a guest.
    pub(crate) fn usable(&self) -> Result<(), VmError> {
        let state = self.state();
        if state.is_hopeful() || state.has_guest() { Ok(()) } else { Err(self.why_not()) }
    }

    /// Whether there is, or may soon be, a guest that answers: a paused one does not.
    pub(crate) fn answers(&self) -> Result<(), VmError> {
        if self.state() == State::Paused { Err(self.why_not()) } else { self.usable() }
    }

    /// Why there is no guest to talk to.
    fn why_not(&self) -> VmError {
        let name = self.name().to_owned();
        let status = self.status.borrow();
        match status.state {
            State::Failing | State::Failed => {
                VmError::Failed { name, reason: status.reason.clone().unwrap_or_default() }
            }
            State::Paused => VmError::Paused { name },
            _ => VmError::Stopping { name },
        }
    }

    /// Stops the guest and removes everything; resolves when that is over.
    pub(crate) async fn remove(&self, why: Removal) -> Result<(), VmError> {
        let (done, outcome) = oneshot::channel();
        if self.mailbox.send(Command::Remove(why, Some(done), Span::current())).await.is_err() {
            // The owner has ended: the VM is gone.
            return Ok(());
        }
        match outcome.await {
            Ok(Err(reason)) => Err(VmError::Stuck { name: self.name().to_owned(), reason }),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    /// Has the VM removed without waiting, for a caller that cannot wait. A full mailbox holds
    /// such a wish already.
    pub(crate) fn give_up(&self) {
        let _ = self.mailbox.try_send(Command::Remove(Removal::Abandoned, None, Span::current()));
    }

    /// Kills the guest now and removes everything.
    pub(crate) async fn hurry(&self) {
        // As for `remove`.
        let _ = self.mailbox.send(Command::Hurry).await;
    }

    /// A place among the VM's streams, for as long as the value lives.
    pub(crate) fn stream_place(&self) -> Result<StreamPlace, VmError> {
        self.streams.place(self.name())
    }

    /// A turn to have the guest do what `request` asks, held until it has begun. What may wait for somebody else's
    /// host, a connection, needs none and keeps nobody waiting. Bounded; cancel-safe.
    pub(crate) async fn turn(&self, request: &Request) -> Result<Option<OwnedSemaphorePermit>, VmError> {
        match request {
            Request::Connect(_) => Ok(None),
            _ => self.streams.turn(self.name()).await.map(Some),
        }
    }

    /// How many streams are open.
    pub(crate) fn open_streams(&self) -> usize {
        self.streams.open()
    }

    /// The VMM, once there is one; `None` when there will be none.
    pub(crate) async fn machine(&self) -> Option<Arc<dyn Machine>> {
        let mut machine = self.machine.clone();
        machine.wait_for(Option::is_some).await.ok().and_then(|machine| machine.clone())
    }

    /// The VMM, if there is or was one.
    pub(crate) fn machine_now(&self) -> Option<Arc<dyn Machine>> {
        self.machine.borrow().clone()
    }

    /// Resolves with the reason when the guest cannot be talked to any more.
    pub(crate) async fn guest_ended(&self) -> VmError {
        let mut status = self.status.clone();
        // An error means that the owner is gone, and the VM with it.
        let _ = status.wait_for(|status| !status.state.is_hopeful() && !status.state.has_guest()).await;
        self.why_not()
    }
}
