//! Owns the task that watches one microVM from its launch to its end: it notices the end of
//! either process at once, finds the reason, removes everything, and tells.

use std::convert::Infallible;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::console::Console;
use crate::error::Cause;
use crate::estate::{Ended, Estate, Process};
use crate::machine::{Exit, ExitReason};

/// The last event of a dead VMM is in its socket already; only reading it takes time.
const LAST_EVENT_LIMIT: Duration = Duration::from_secs(2);

/// What a VMM reported about its guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GuestReport {
    /// Why the guest stopped for good, if the VMM said so.
    pub(crate) end: Option<GuestEnd>,
    /// The host could not read or write a disk of the guest's.
    pub(crate) disk_failed: bool,
    /// The VMM's control connection has been read to its end.
    pub(crate) complete: bool,
}

/// The ends of a guest that a VMM can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestEnd {
    PoweredOff,
    Reset,
    Panicked,
    /// Somebody on the host told the VMM to end.
    HostRequest,
}

/// What the supervisor watches.
pub(crate) struct Watched {
    pub(crate) vm: String,
    pub(crate) estate: Estate,
    pub(crate) report: watch::Receiver<GuestReport>,
    pub(crate) console: Console,
    pub(crate) kill: watch::Receiver<bool>,
}

/// What ended first.
enum First {
    Vmm(Ended),
    Vsock(Ended),
    Asked,
}

impl Watched {
    /// Watches until the end and publishes it. Consumes the VM.
    pub(crate) async fn run(mut self, publish: watch::Sender<Option<Exit>>) {
        let first = self.first_end().await;
        let exit = self.obituary(first).await;
        tracing::info!(vm = %self.vm, reason = ?exit.reason, "{}", exit.detail);
        publish.send_replace(Some(exit));
    }

    async fn first_end(&mut self) -> First {
        let Self { vm, estate, report, kill, .. } = self;
        // An error means that the last handle was dropped: the same as being asked.
        let asked = async { kill.wait_for(|asked| *asked).await.map(drop).unwrap_or(()) };
        tokio::select! {
            ended = end_of(&mut estate.vmm) => First::Vmm(ended),
            ended = end_of(&mut estate.vsock) => First::Vsock(ended),
            () = asked => First::Asked,
            never = tell_of_disk(vm, report.clone()) => match never {},
        }
    }

    async fn obituary(&mut self, first: First) -> Exit {
        if let First::Vmm(_) = first {
            let complete = self.report.wait_for(|report| report.complete);
            // Without the last event the exit status still tells most of it.
            let _ = timeout(LAST_EVENT_LIMIT, complete).await;
        }
        let report = *self.report.borrow();
        let oom = self.estate.oom_kills() > 0;
        let (mut reason, detail) = judge(&first, report, oom);
        if reason == ExitReason::GuestReset && self.console.panicked() {
            // Without a panic device a kernel that panics can only reset the machine.
            reason = ExitReason::GuestPanic;
        }
        let leftovers = self.estate.dismantle().await;
        for left in &leftovers {
            tracing::warn!(vm = %self.vm, left, "something of a microVM that ended stays");
        }
        let status = match &first {
            First::Vmm(ended) => ended.status(),
            First::Vsock(_) | First::Asked => None,
        };
        Exit {
            reason,
            code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            detail,
            stderr: self.estate.said().0,
            leftovers,
        }
    }
}

/// Says once that the host failed a disk. The guest sees errors of its own and runs on.
async fn tell_of_disk(vm: &str, mut report: watch::Receiver<GuestReport>) -> Infallible {
    if report.wait_for(|report| report.disk_failed).await.is_ok() {
        tracing::error!(vm, "the host cannot read or write the VM's disk: is its file system full?");
    }
    std::future::pending().await
}

/// Pends forever for a process that was never started.
async fn end_of(process: &mut Option<Process>) -> Ended {
    match process {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}

fn judge(first: &First, report: GuestReport, oom: bool) -> (ExitReason, String) {
    let (process, ended) = match first {
        First::Asked => return (ExitReason::Killed, "killed on request".into()),
        First::Vmm(ended) => ("the VMM", ended),
        First::Vsock(ended) => ("the vsock device", ended),
    };
    // What is adopted tells nobody here how it ended; its last report has to do.
    let killed = match ended.status() {
        Some(status) => status.signal() == Some(libc::SIGKILL),
        None => report.end.is_none(),
    };
    if oom && killed {
        let detail = format!("{process} was killed for the control group's memory limit");
        return (ExitReason::OomKilled, detail);
    }
    let clean = ended.status().is_none_or(|status| status.success());
    match report.end {
        Some(GuestEnd::PoweredOff) if clean => {
            (ExitReason::GuestShutdown, "the guest powered itself off".into())
        }
        Some(GuestEnd::Reset) if clean => (ExitReason::GuestReset, "the guest reset itself".into()),
        Some(GuestEnd::Panicked) => (ExitReason::GuestPanic, "the guest's kernel panicked".into()),
        Some(GuestEnd::HostRequest) if clean => {
            (ExitReason::Killed, "the VMM was told to end by a signal".into())
        }
        _ => (ExitReason::Crash, format!("{process} ended: {ended}")),
    }
}

/// The first end of any process during a launch, as an error; pends while all live.
pub(crate) async fn early_end(estate: &mut Estate) -> Cause {
    let Estate { vmm, vsock, .. } = estate;
    let end = async |process: &mut Option<Process>| match process {
        Some(process) => process.ended_early().await,
        None => std::future::pending().await,
    };
    tokio::select! {
        cause = end(vmm) => cause,
        cause = end(vsock) => cause,
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    fn vmm(raw: i32) -> First {
        First::Vmm(Ended::With(ExitStatus::from_raw(raw)))
    }

    fn reason(first: &First, end: Option<GuestEnd>, oom: bool) -> ExitReason {
        let report = GuestReport { end, complete: true, ..GuestReport::default() };
        judge(first, report, oom).0
    }

    #[test]
    fn the_reason_follows_from_status_report_and_memory_limit() {
        let (clean, failed, sigkill) = (vmm(0), vmm(1 << 8), vmm(libc::SIGKILL));
        let off = Some(GuestEnd::PoweredOff);
        assert_eq!(reason(&clean, off, false), ExitReason::GuestShutdown);
        assert_eq!(reason(&clean, Some(GuestEnd::Reset), false), ExitReason::GuestReset);
        assert_eq!(reason(&clean, Some(GuestEnd::HostRequest), false), ExitReason::Killed);
        assert_eq!(reason(&clean, None, false), ExitReason::Crash);
        assert_eq!(reason(&failed, off, false), ExitReason::Crash);
        assert_eq!(reason(&sigkill, None, true), ExitReason::OomKilled);
        assert_eq!(reason(&sigkill, None, false), ExitReason::Crash);
        assert_eq!(reason(&First::Asked, None, true), ExitReason::Killed);
        let unknown = First::Vmm(Ended::Unknown("adopted".into()));
        assert_eq!(reason(&unknown, off, false), ExitReason::GuestShutdown);
        assert_eq!(reason(&unknown, Some(GuestEnd::HostRequest), true), ExitReason::Killed);
        assert_eq!(reason(&unknown, None, true), ExitReason::OomKilled);
        assert_eq!(reason(&unknown, None, false), ExitReason::Crash);
        let device = First::Vsock(Ended::With(ExitStatus::from_raw(libc::SIGKILL)));
        assert_eq!(reason(&device, None, false), ExitReason::Crash);
    }
}
