//! `/init` of the initramfs: from nothing to a guest whose sessions are served.
//!
//! Owns: the order of the steps. Each step is a function of its own file and is named when it
//! fails; a guest that cannot be set up says why to the host and on the console and switches
//! itself off. Refuses: threads. PID 1 forks later, and a process that forks has one thread.

pub(crate) mod disk;
mod identity;
mod init;
pub mod link;
mod modules;
mod mounts;
mod net;
mod netlink;

use crate::console::say;
use enisle_guest_proto::{BootConfig, BootEvent};
use link::Link;
use rustix::system::RebootCommand;
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// On the kernel's command line: prove that this machine boots, then switch off.
pub const PROBE_WORD: &str = "enisle.probe";
/// What a probe guest prints on its console.
pub const PROBE_ANSWER: &str = "ENISLE-PROBE-OK";
/// How long a booting guest looks for its daemon.
const HOST_PATIENCE: Duration = Duration::from_secs(300);

/// Why a guest could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
struct StepError {
    /// The step, with its object.
    step: String,
    /// The reason.
    #[source]
    source: anyhow::Error,
}

/// Names the step in a failure.
trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<anyhow::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|e| StepError { step: step(), source: e.into() })
    }
}

/// Runs as PID 1. Returns only when even switching off failed.
#[must_use]
pub fn run() -> ExitCode {
    if let Err(e) = mounts::early() {
        say(format_args!("{}: {:#}", e.step, e.source));
        return switch_off();
    }
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if command_line.split_ascii_whitespace().any(|word| word == PROBE_WORD) {
        say(format_args!("{PROBE_ANSWER}"));
        return switch_off();
    }
    match set_up() {
        Ok((link, config)) => init::hand_over(link, &config),
        Err(e) => {
            say(format_args!("{}: {:#}", e.step, e.source));
            switch_off()
        }
    }
}

/// Everything up to the hand-over. The host hears of a failure once it is connected.
fn set_up() -> Result<(Link, BootConfig), StepError> {
    modules::load_all()?;
    let (mut link, config) = Link::open(false, HOST_PATIENCE).step(|| "connect to the daemon".to_owned())?;
    match apply(&config) {
        Ok(()) => Ok((link, config)),
        Err(e) => {
            let event = BootEvent::Failed { step: e.step.clone(), error: format!("{:#}", e.source) };
            if let Err(lost) = link.send(&event) {
                say(format_args!("the daemon was not told: {lost}"));
            }
            Err(e)
        }
    }
}

fn apply(config: &BootConfig) -> Result<(), StepError> {
    set_clock(config.unix_time_ns).step(|| "set the clock".to_owned())?;
    rustix::system::sethostname(config.hostname.as_bytes())
        .step(|| format!("set host name {:?}", config.hostname))?;
    net::raise_loopback().step(|| "raise lo".to_owned())?;
    if let Some(net) = &config.net {
        net::configure(net).step(|| format!("configure eth0 with {}/{}", net.address, net.prefix_len))?;
    }
    disk::mount().step(|| format!("mount {} on {}", disk::DEVICE, disk::MOUNT_POINT))?;
    mounts::switch_root(disk::MOUNT_POINT)?;
    mounts::complete();
    identity::write(config);
    Ok(())
}

fn set_clock(unix_time_ns: u64) -> anyhow::Result<()> {
    let since_epoch = Duration::from_nanos(unix_time_ns);
    anyhow::ensure!(
        SystemTime::UNIX_EPOCH.checked_add(since_epoch).is_some(),
        "{unix_time_ns} ns is no time"
    );
    let time = rustix::time::Timespec {
        tv_sec: i64::try_from(since_epoch.as_secs())?,
        tv_nsec: i64::from(since_epoch.subsec_nanos()),
    };
    Ok(rustix::time::clock_settime(rustix::time::ClockId::Realtime, time)?)
}

/// Ends the machine; what comes back is for a kernel that refused.
fn switch_off() -> ExitCode {
    rustix::fs::sync();
    for command in [RebootCommand::PowerOff, RebootCommand::Restart] {
        if let Err(e) = rustix::system::reboot(command) {
            say(format_args!("{command:?}: {e}"));
        }
    }
    ExitCode::FAILURE
}
