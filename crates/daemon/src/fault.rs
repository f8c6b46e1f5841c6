//! A test hook: makes one step of a VM's creation fail, with the real binary as well.
//!
//! Owns: the names of the steps and which one is to fail. Refuses: anything a user would want; it
//! is off unless `ENISLE_FAULT` names a step.
//!
//! A step fails *after* its work was done, which is the worst moment: all of it must be undone.

use std::fmt;

/// The steps of a VM's creation, in order. What is undone is undone in reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The row in the store: name and block.
    Reserve,
    /// Namespace, tap, veth, policy.
    Slot,
    /// Directories and the socket of the boot connection.
    Channel,
    /// The writable layer over the image.
    Disk,
    /// The VMM's processes.
    Launch,
    /// The guest's first instruction.
    Start,
    /// The agent's first message and its answer.
    Boot,
    /// The agent's word that the guest is set up.
    Ready,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 8] = [
        Self::Reserve,
        Self::Slot,
        Self::Channel,
        Self::Disk,
        Self::Launch,
        Self::Start,
        Self::Boot,
        Self::Ready,
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reserve => "reserve",
            Self::Slot => "slot",
            Self::Channel => "channel",
            Self::Disk => "disk",
            Self::Launch => "launch",
            Self::Start => "start",
            Self::Boot => "boot",
            Self::Ready => "ready",
        })
    }
}

/// `ENISLE_FAULT` names no step.
#[derive(Debug, thiserror::Error)]
#[error("ENISLE_FAULT={0:?} names no step; known are `list`, and these, also as `die:STEP`: {steps}", steps = names())]
pub struct UnknownFault(String);

/// A step failed because a test asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a test asked for a failure here (ENISLE_FAULT={0})")]
pub(crate) struct InjectedFault(pub Step);

/// Which step is to fail, or to be the daemon's last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultPlan {
    fail: Option<Step>,
    die: Option<Step>,
    list: bool,
}

impl FaultPlan {
    /// Makes `step` fail in every VM's creation.
    #[must_use]
    pub fn failing(step: Step) -> Self {
        Self { fail: Some(step), ..Self::default() }
    }

    /// Reads `ENISLE_FAULT`: unset or empty for none, `list` to have the steps logged, a step, or
    /// `die:STEP` to have the daemon killed at the end of a step.
    ///
    /// # Errors
    /// When it names no step: a test that injects nothing must not pass.
    pub fn from_env() -> Result<Self, UnknownFault> {
        std::env::var("ENISLE_FAULT").map_or_else(|_| Ok(Self::default()), |word| Self::parse(&word))
    }

    fn parse(word: &str) -> Result<Self, UnknownFault> {
        match word {
            "" => Ok(Self::default()),
            "list" => Ok(Self { list: true, ..Self::default() }),
            _ => {
                let (dies, name) = word.strip_prefix("die:").map_or((false, word), |name| (true, name));
                let step = Step::ALL.into_iter().find(|step| step.to_string() == name);
                let step = step.ok_or_else(|| UnknownFault(word.to_owned()))?;
                Ok(if dies { Self { die: Some(step), ..Self::default() } } else { Self::failing(step) })
            }
        }
    }

    /// Called at the end of each step.
    pub(crate) fn check(self, step: Step) -> Result<(), InjectedFault> {
        if self.die == Some(step) {
            die();
        }
        if self.fail == Some(step) { Err(InjectedFault(step)) } else { Ok(()) }
    }

    /// Says at start what is going on: nobody shall wonder why VMs fail.
    pub(crate) fn announce(self) {
        if self.list {
            tracing::info!("fault points: {}", names());
        }
        if let Some(step) = self.die {
            tracing::warn!("ENISLE_FAULT is set: the daemon dies at the end of step `{step}`");
        }
        if let Some(step) = self.fail {
            tracing::warn!("ENISLE_FAULT is set: step `{step}` of every VM's creation will fail");
        }
    }
}

/// As `kill -9` does it: no destructor runs, nothing is undone.
fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal is on its way.
    loop {
        std::thread::park();
    }
}

fn names() -> String {
    Step::ALL.map(|step| step.to_string()).join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_can_be_named_and_nothing_else() {
        for step in Step::ALL {
            let plan = FaultPlan::parse(&step.to_string()).unwrap();
            let failing: Vec<_> = Step::ALL.into_iter().filter(|s| plan.check(*s).is_err()).collect();
            assert_eq!(failing, [step]);
        }
        assert!(FaultPlan::parse("").unwrap().check(Step::Slot).is_ok());
        assert!(FaultPlan::parse("list").unwrap().list);
        assert_eq!(FaultPlan::parse("die:slot").unwrap().die, Some(Step::Slot));
        assert!(FaultPlan::parse("die:nothing").is_err());
        assert!(FaultPlan::parse("Slot").unwrap_err().to_string().contains("reserve slot"));
    }
}
