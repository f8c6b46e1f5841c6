//! The owner task of one VM: the only one that acts on it.
//!
//! Owns: turning what happens into events, and effects of the [`table`](super::table) into work.
//! Everything it waits for is an event or has a bound. Refuses: choosing the next state.

pub(crate) mod halt;

use super::adopt::{Adoption, Found};
use super::create::{CreateError, Creation, Made, Workshop};
use super::lifetime::{self, Clocks, Streams};
use super::plan::VmPlan;
use super::queue::Place;
use super::remove::{self, Leftovers};
use super::table::{self, Effect, Event, State};
use super::{Command, Handle, Status};
use crate::chain::Chain;
use crate::fault::Step;
use crate::guest::boot::{BootChannel, BootNews, Stopper};
use crate::guest::printable;
use crate::parts::{Machine, PartError};
use crate::store::StoreError;
use enisle_api::{EventKind, Removal};
use enisle_guest_proto::VERSION;
use enisle_vmm::{BoxFuture, Exit, ExitReason};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

/// Time a guest has for an orderly stop.
const GRACE: Duration = Duration::from_secs(10);
/// After this part of it the power button is pressed as well.
const BUTTON_AFTER: Duration = Duration::from_secs(5);
/// A guest that says nothing for this long never will. Emulated guests on a busy machine are slow.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// After this part of it others are let start: a few guests that say nothing must not stop all launches.
const TURN_LIMIT: Duration = Duration::from_secs(60);
/// Commands that may wait: each is served at once, whatever the state.
const MAILBOX: usize = 16;

/// Somebody who waits for a removal.
pub(crate) type Waiting = oneshot::Sender<Result<(), String>>;

/// What a creation comes to.
type Created = (Made, Result<(), CreateError>);

/// What an adoption comes to.
type Adopted = (Made, Result<Found, PartError>);

/// What the owner is busy with, beside listening.
enum Work {
    None,
    Creating(BoxFuture<'static, Created>),
    Adopting(BoxFuture<'static, Adopted>),
    Asking(BoxFuture<'static, ()>),
    Clearing(BoxFuture<'static, Result<(), Leftovers>>),
    Forgetting(BoxFuture<'static, Result<(), Leftovers>>),
}

/// What an owner task heard.
enum Heard {
    Command(Option<Command>),
    News(BootNews),
    Created(Created),
    Adopted(Adopted),
    Asked,
    Cleared(Result<(), Leftovers>),
    Forgotten(Result<(), Leftovers>),
    Ended(Exit),
    Deadline,
    TurnOver,
    /// Its own time is over.
    Over(Removal),
}

/// The owner of one VM.
pub(crate) struct Owner {
    plan: Arc<VmPlan>,
    workshop: Workshop,
    begun: Instant,
    mailbox: mpsc::Receiver<Command>,
    news: mpsc::Receiver<BootNews>,
    status: watch::Sender<Status>,
    machine: watch::Sender<Option<Arc<dyn Machine>>>,
    called_off: CancellationToken,
    made: Made,
    work: Work,
    /// When the boot, or the orderly stop, has taken too long.
    deadline: Option<Instant>,
    /// When others have waited long enough for this one's boot.
    turn_ends: Option<Instant>,
    waiting: Vec<Waiting>,
    clocks: Clocks,
    /// Who wished for what is being applied, and hears so afterwards.
    fulfilled: Option<halt::Reply>,
    /// Why it is being removed: the first reason there was.
    why: Option<Removal>,
    /// The request it works for, until the VM is ready, and again when it is removed.
    span: Span,
    /// Said once that the agent speaks another version; a guest could say so for ever.
    told_of_version: bool,
}

impl Owner {
    /// An owner for a VM that has its row and a place in the queue, and the handle on it.
    pub(crate) fn new(plan: Arc<VmPlan>, workshop: Workshop, place: Place) -> (Self, Handle) {
        let ticket = place.ticket();
        let creation = |news, called_off| Creation {
            plan: Arc::clone(&plan),
            workshop: workshop.clone(),
            news,
            called_off,
            place,
        };
        let work = |news, called_off| {
            Work::Creating(Box::pin(creation(news, called_off).run().instrument(Span::current())))
        };
        let (owner, mut handle) = Self::busy_with(work, Arc::clone(&plan), workshop.clone());
        handle.ticket = Some(ticket);
        (owner, handle)
    }

    /// An owner for a VM of an earlier run that lives, and the handle on it.
    pub(crate) fn adopting(plan: Arc<VmPlan>, workshop: Workshop) -> (Self, Handle) {
        let adoption = |news| Adoption { plan: Arc::clone(&plan), workshop: workshop.clone(), news };
        let work = |news, _| Work::Adopting(Box::pin(adoption(news).run()));
        Self::busy_with(work, Arc::clone(&plan), workshop.clone())
    }

    fn busy_with(
        work: impl FnOnce(mpsc::Sender<BootNews>, CancellationToken) -> Work,
        plan: Arc<VmPlan>,
        workshop: Workshop,
    ) -> (Self, Handle) {
        let (commands, mailbox) = mpsc::channel(MAILBOX);
        let (tell, news) = mpsc::channel(MAILBOX);
        let initial = Status {
            state: State::Creating,
            reason: None,
            pid: None,
            ready_after_ms: plan.row.ready_after_ms,
            userdata_exit: plan.row.userdata_exit,
        };
        let (status, watched) = watch::channel(initial);
        let (machine, machine_watched) = watch::channel(None);
        let called_off = CancellationToken::new();
        let streams = Streams::new();
        let clocks = Clocks::new(&plan.row, &streams);
        let handle = Handle {
            plan: Arc::clone(&plan),
            mailbox: commands,
            status: watched,
            machine: machine_watched,
            streams,
            ticket: None,
        };
        let owner = Self {
            plan,
            workshop,
            begun: Instant::now(),
            mailbox,
            news,
            status,
            machine,
            work: work(tell, called_off.clone()),
            called_off,
            made: Made::default(),
            deadline: None,
            turn_ends: None,
            waiting: Vec::new(),
            clocks,
            fulfilled: None,
            why: None,
            span: Span::current(),
            told_of_version: false,
        };
        (owner, handle)
    }

    /// Runs until nothing is left of the VM. Returns those who wait for that, and why it went.
    pub(crate) async fn run(mut self) -> (Vec<Waiting>, Removal) {
        while self.state() != State::Gone {
            let heard = self.hear().await;
            if let Heard::Command(Some(Command::Remove(_, _, asked))) = &heard
                && !asked.is_none()
            {
                self.span = asked.clone();
            }
            self.span.clone().in_scope(|| {
                if let Some(event) = self.understand(heard) {
                    self.apply(event);
                }
            });
        }
        let why = self.why.unwrap_or(Removal::Lost);
        self.span.in_scope(|| tracing::info!(vm = self.plan.name(), %why, "gone"));
        (self.waiting, why)
    }

    fn state(&self) -> State {
        self.status.borrow().state
    }

    async fn hear(&mut self) -> Heard {
        tokio::select! {
            // Commands first: a flood of news must not delay them.
            biased;
            command = self.mailbox.recv(), if !self.mailbox.is_closed() => Heard::Command(command),
            heard = progress(&mut self.work) => heard,
            exit = end_of(self.made.machine.as_ref()) => Heard::Ended(exit),
            () = at(self.deadline) => Heard::Deadline,
            () = at(self.turn_ends) => Heard::TurnOver,
            why = self.clocks.over() => Heard::Over(why),
            Some(news) = self.news.recv() => Heard::News(news),
        }
    }

    /// What was heard as events, with what has to be remembered of it.
    fn understand(&mut self, heard: Heard) -> Option<Event> {
        match heard {
            Heard::Command(None) => {
                // Nobody can ask any more, so nobody will remove it: the registry is gone.
                self.mailbox.close();
                self.why.get_or_insert(Removal::Shutdown);
                Some(Event::Hurry)
            }
            Heard::Command(Some(Command::Hurry)) => Some(Event::Hurry),
            Heard::Command(Some(Command::Halt(wish))) => self.take_wish(wish),
            Heard::Command(Some(Command::Remove(why, waiting, _))) => {
                self.waiting.extend(waiting);
                self.why.get_or_insert(why);
                Some(Event::Remove)
            }
            Heard::News(news) => self.take_news(news),
            Heard::Created((made, outcome)) => Some(self.take_creation(made, outcome)),
            Heard::Adopted((made, outcome)) => Some(self.take_adoption(made, outcome)),
            Heard::Asked => None,
            Heard::TurnOver => {
                tracing::info!(vm = self.plan.name(), "still boots: the next in the queue starts");
                self.settle_turn();
                None
            }
            Heard::Cleared(outcome) => Some(self.take_removal(outcome, Event::Cleared)),
            Heard::Forgotten(outcome) => Some(self.take_removal(outcome, Event::Forgotten)),
            Heard::Ended(exit) => {
                self.take_end(&exit);
                Some(Event::Ended)
            }
            Heard::Over(why) => Some(self.take_over(why)),
            Heard::Deadline => {
                self.deadline = None;
                if self.state() == State::Stopping {
                    tracing::warn!(
                        vm = self.plan.name(),
                        "the guest did not stop in {} s: killing it",
                        GRACE.as_secs()
                    );
                    let reason = format!("killed: it did not stop within {} s", GRACE.as_secs());
                    self.tell(|vm, group| EventKind::VmStopped { vm, group, reason });
                    return Some(Event::GraceOver);
                }
                self.set_reason(format!(
                    "its agent said nothing for {} s after the start",
                    BOOT_LIMIT.as_secs()
                ));
                Some(Event::Broke)
            }
        }
    }

    fn take_made(&mut self, made: Made) {
        self.work = Work::None;
        self.made = made;
        let machine = self.made.machine.clone();
        self.status.send_modify(|status| status.pid = machine.as_ref().map(|machine| machine.pid()));
        self.machine.send_replace(machine);
    }

    fn take_adoption(&mut self, made: Made, outcome: Result<Found, PartError>) -> Event {
        self.take_made(made);
        let vm = self.plan.name();
        match outcome {
            Ok(found) => {
                let paused = found == Found::Paused;
                tracing::info!(vm, address = %self.plan.address(), paused, "adopted");
                self.tell(|vm, group| EventKind::VmAdopted { vm, group });
                if paused { Event::Halted } else { Event::Adopted }
            }
            Err(error) => {
                let reason = format!("it could not be adopted: {}", Chain(&error));
                tracing::error!(vm, "{reason}; removing it");
                self.set_reason(reason);
                Event::Lost
            }
        }
    }

    fn take_creation(&mut self, made: Made, outcome: Result<(), CreateError>) -> Event {
        self.take_made(made);
        match outcome {
            Ok(()) => {
                self.deadline = Some(Instant::now() + BOOT_LIMIT);
                self.turn_ends = Some(Instant::now() + TURN_LIMIT);
                Event::Launched
            }
            Err(error) => {
                self.set_reason(error.to_string());
                Event::Broke
            }
        }
    }

    fn take_news(&mut self, news: BootNews) -> Option<Event> {
        let vm = self.plan.name();
        match news {
            BootNews::Greeted { agent } => {
                tracing::debug!(vm, agent, "the agent said hello");
                self.fault_at(Step::Boot)
            }
            BootNews::Ready => self.fault_at(Step::Ready).or_else(|| self.take_ready()),
            BootNews::SetupFailed { reason } if self.state() == State::Booting => {
                self.set_reason(format!("the guest's set-up failed: {reason}"));
                Some(Event::Broke)
            }
            BootNews::OtherVersion { agent } if self.state() == State::Booting => {
                self.set_reason(other_version(agent));
                Some(Event::Broke)
            }
            // It was adopted and runs on; what needs its agent is refused by the agent itself.
            BootNews::OtherVersion { agent } => {
                if !std::mem::replace(&mut self.told_of_version, true) {
                    tracing::warn!(vm, "it runs on, but exec does not work: {}", other_version(agent));
                }
                None
            }
            // From here on a guest could say so for ever: no log line, no state.
            BootNews::SetupFailed { .. } => None,
            BootNews::UserdataDone { code } => {
                // Told again on each new connection; the first word counts.
                if self.plan.userdata.is_some() && self.status.borrow().userdata_exit.is_none() {
                    tracing::info!(vm, code, "the first-boot script ended");
                    self.status.send_modify(|status| status.userdata_exit = Some(code));
                    self.remember(self.workshop.store.set_userdata(self.plan.name(), code));
                }
                None
            }
        }
    }

    /// A fault that a test asked for at a step of the boot.
    fn fault_at(&mut self, step: Step) -> Option<Event> {
        let fault = self.workshop.faults.check(step).err().filter(|_| self.state() == State::Booting)?;
        self.set_reason(format!("step `{step}` of its creation failed: {fault}"));
        Some(Event::Broke)
    }

    /// The next in the queue may start.
    fn settle_turn(&mut self) {
        self.turn_ends = None;
        if let Some(turn) = &mut self.made.turn {
            turn.settle();
        }
    }

    fn take_ready(&mut self) -> Option<Event> {
        if self.state() != State::Booting {
            return None;
        }
        self.deadline = None;
        self.settle_turn();
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.status.send_modify(|status| status.ready_after_ms = Some(ms));
        self.workshop.metrics.launched(&self.plan.row.group, self.begun.elapsed());
        self.remember(self.workshop.store.set_running(self.plan.name(), ms));
        tracing::info!(vm = self.plan.name(), address = %self.plan.address(), ms, "ready");
        self.tell(|vm, group| EventKind::VmReady { vm, group, after_ms: ms });
        // What it does from here on, nobody has asked for.
        self.span = Span::none();
        Some(Event::Ready)
    }

    fn take_end(&mut self, exit: &Exit) {
        // The handle stays with the watchers: the console's log is read through it.
        self.made.machine = None;
        self.status.send_modify(|status| status.pid = None);
        let reason = describe(exit);
        let own = matches!(exit.reason, ExitReason::GuestShutdown | ExitReason::GuestReset);
        if self.state().is_hopeful() || matches!(self.state(), State::Running | State::Paused) {
            self.set_reason(reason.clone());
        }
        self.tell(|vm, group| match own || self.state() == State::Stopping {
            true => EventKind::VmStopped { vm, group, reason },
            false => EventKind::VmCrashed { vm, group, reason },
        });
    }

    fn take_over(&mut self, why: Removal) -> Event {
        if self.why.is_none() {
            self.why = Some(why);
            if let Some(reason) = lifetime::words(why, &self.plan.row) {
                tracing::info!(vm = self.plan.name(), "{reason}: removing it");
                self.set_reason(reason);
            }
        }
        Event::Remove
    }

    fn take_removal(&mut self, outcome: Result<(), Leftovers>, done: Event) -> Event {
        self.work = Work::None;
        match outcome {
            Ok(()) => done,
            Err(left) => {
                self.set_reason(left.to_string());
                let reason = left.to_string();
                self.tell(|vm, group| EventKind::VmFailed { vm, group, reason });
                for waiting in self.waiting.drain(..) {
                    // Who asked may have gone away.
                    let _ = waiting.send(Err(left.to_string()));
                }
                Event::Stuck
            }
        }
    }

    fn apply(&mut self, event: Event) {
        let before = self.state();
        let (state, effect) = table::next(before, event);
        if state != before {
            tracing::debug!(vm = self.plan.name(), ?before, ?event, ?state, "state");
            self.status.send_modify(|status| status.state = state);
            match state {
                State::Running => self.clocks.set_ready(),
                _ => self.clocks.set_unready(),
            }
            if state == State::Failing {
                let reason = self.status.borrow().reason.clone().unwrap_or_default();
                tracing::error!(vm = self.plan.name(), "failed: {reason}");
                if event == Event::Broke {
                    self.tell(|vm, group| EventKind::VmFailed { vm, group, reason });
                }
            }
        }
        self.settle_wish();
        match effect {
            Effect::Nothing => {}
            Effect::CallOff => self.called_off.cancel(),
            Effect::Ask => self.ask(),
            Effect::Clear => self.clear(),
            Effect::Forget => {
                let (workshop, plan) = (self.workshop.clone(), Arc::clone(&self.plan));
                let work = async move { remove::forget(&workshop, &plan).await };
                self.work = Work::Forgetting(Box::pin(work.instrument(Span::current())));
            }
        }
    }

    fn ask(&mut self) {
        self.remember(self.workshop.store.mark_delete(self.plan.name()).map(drop));
        self.deadline = Some(Instant::now() + GRACE);
        let stopper = self.made.boot.as_ref().map(BootChannel::stopper);
        let ask = ask_to_stop(stopper, self.made.machine.clone(), Arc::clone(&self.plan));
        self.work = Work::Asking(Box::pin(ask.instrument(Span::current())));
    }

    fn clear(&mut self) {
        self.deadline = None;
        self.status.send_modify(|status| status.pid = None);
        let made = std::mem::take(&mut self.made);
        let (workshop, plan) = (self.workshop.clone(), Arc::clone(&self.plan));
        let work = async move { remove::clear(&workshop, &plan, made).await };
        self.work = Work::Clearing(Box::pin(work.instrument(Span::current())));
    }

    fn tell(&self, what: impl FnOnce(String, String) -> EventKind) {
        self.workshop.events.tell(what(self.plan.name().to_owned(), self.plan.row.group.clone()));
    }

    fn set_reason(&self, reason: String) {
        self.status.send_modify(|status| status.reason = Some(reason));
    }

    /// The VM works without its row being up to date; the next start of the daemon clears by
    /// block and name, which never change.
    fn remember(&self, outcome: Result<(), StoreError>) {
        if let Err(error) = outcome {
            tracing::error!(vm = self.plan.name(), "cannot write the state: {}", Chain(&error));
        }
    }
}

fn other_version(agent: u16) -> String {
    format!(
        "its agent speaks protocol {agent}, this daemon {VERSION}: build the boot files again with `enisle \
         image build`, and the VM"
    )
}

/// The agent first; then, or where it does not listen, the power button.
async fn ask_to_stop(stopper: Option<Stopper>, machine: Option<Arc<dyn Machine>>, plan: Arc<VmPlan>) {
    let begun = Instant::now();
    // One that is paused hears nothing; one that runs does not notice.
    if let Some(machine) = &machine
        && let Err(error) = machine.resume()
    {
        tracing::debug!(vm = plan.name(), "resuming it: {}", Chain(&error));
    }
    let told = match stopper {
        Some(stopper) => timeout(BUTTON_AFTER, stopper.ask()).await.unwrap_or(false),
        None => false,
    };
    if told {
        sleep_until(begun + BUTTON_AFTER).await;
    }
    if let Some(machine) = machine
        && let Err(error) = machine.power_button().await
    {
        tracing::debug!(vm = plan.name(), "the power button: {}", Chain(&error));
    }
}

async fn progress(work: &mut Work) -> Heard {
    match work {
        Work::None => std::future::pending().await,
        Work::Creating(creation) => Heard::Created(creation.await),
        Work::Adopting(adoption) => Heard::Adopted(adoption.await),
        Work::Asking(asking) => {
            asking.await;
            *work = Work::None;
            Heard::Asked
        }
        Work::Clearing(clearing) => Heard::Cleared(clearing.await),
        Work::Forgetting(forgetting) => Heard::Forgotten(forgetting.await),
    }
}

async fn end_of(machine: Option<&Arc<dyn Machine>>) -> Exit {
    match machine {
        Some(machine) => machine.wait().await,
        None => std::future::pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// How a VM ended by itself, for people.
fn describe(exit: &Exit) -> String {
    let how = match exit.reason {
        ExitReason::GuestShutdown => return "guest powered off".to_owned(),
        ExitReason::GuestReset => {
            return "guest rebooted; a microVM is not started again in place".to_owned();
        }
        ExitReason::GuestPanic => "the guest's kernel panicked; see its console",
        ExitReason::OomKilled => "killed by the kernel for its memory limit",
        ExitReason::Killed => "its VMM was killed",
        _ => "its VMM crashed",
    };
    // QEMU tells of its sockets on the same channel.
    let lines: Vec<&str> = exit.stderr.lines().filter(|line| !line.contains(": info: ")).collect();
    let said = printable(&lines.join("; "));
    let said = if said.is_empty() { String::new() } else { format!(" (it said: {said})") };
    format!("{how}: {}{said}", exit.detail)
}
