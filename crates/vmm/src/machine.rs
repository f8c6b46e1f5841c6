//! Owns the handle on a running microVM: its control, its console, and how it ended.
//! Refuses to know which VMM is behind it: that is [`Control`].

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::console::Console;
use crate::error::{Cause, VmmError};
use crate::estate::Words;
use crate::halt::Halt;
use crate::{Accelerator, BoxFuture, vsock};

/// What a back end must be able to do with a VM it launched.
pub(crate) trait Control: Send + Sync {
    /// Lets the guest run its first instruction.
    fn start(&self) -> BoxFuture<'_, Result<(), Cause>>;
    /// Presses the ACPI power button.
    fn power_button(&self) -> BoxFuture<'_, Result<(), Cause>>;
}

/// One launched microVM. Clones are handles on the same one.
///
/// Dropping the last handle kills the VM and removes all of it: nothing runs unowned.
#[derive(Clone)]
pub struct Machine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) name: String,
    pub(crate) accelerator: Accelerator,
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) vsock_path: PathBuf,
    pub(crate) console: Console,
    pub(crate) control: Box<dyn Control>,
    pub(crate) halt: Halt,
    pub(crate) words: Words,
    /// `true` asks the supervisor to kill the VM, and so does dropping the sender.
    pub(crate) kill: watch::Sender<bool>,
    pub(crate) exit: watch::Receiver<Option<Exit>>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.inner.name)
            .field("pid", &self.inner.pid)
            .finish_non_exhaustive()
    }
}

impl Machine {
    pub(crate) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// The name it was launched with.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// How its guest code is executed.
    pub fn accelerator(&self) -> Accelerator {
        self.inner.accelerator
    }

    /// The VMM's process id. Only a label once the VM has ended.
    pub fn pid(&self) -> u32 {
        self.inner.pid
    }

    /// The unix socket for connections to the guest: `CONNECT <port>\n` is answered with
    /// `OK <n>\n`. Prefer [`Machine::connect_vsock`], which checks who answers.
    ///
    /// A connection **from** the guest to port `p` of CID 2 arrives at the socket
    /// `<this path>_<p>`, which the caller binds before the launch, with the VM's group and
    /// mode 0660.
    pub fn vsock_path(&self) -> &Path {
        &self.inner.vsock_path
    }

    /// Connects to a vsock port of the guest.
    ///
    /// The run directory is writable by the VM's user, so a hostile VMM could put a link to
    /// somebody else's socket in place of its own: the process at the other end must run
    /// as the VM's user, or nothing is sent.
    ///
    /// # Errors
    /// [`VmmError::Control`] when nothing listens, the answer is none, or 5 s have passed.
    pub async fn connect_vsock(&self, port: u32) -> Result<UnixStream, VmmError> {
        vsock::connect_guest(&self.inner.vsock_path, self.inner.uid, port)
            .await
            .map_err(|cause| self.failed("connect to the guest", cause))
    }

    /// Lets the guest run its first instruction.
    ///
    /// # Errors
    /// [`VmmError::Control`] when the VMM refuses or is gone.
    pub async fn start(&self) -> Result<(), VmmError> {
        let done = self.inner.control.start().await;
        done.map_err(|cause| self.failed("run the guest", cause))
    }

    /// Lets a paused guest run on; one that runs is left alone. Its clock has gone on meanwhile.
    ///
    /// # Errors
    /// [`VmmError::Control`] when the VMM is gone.
    pub fn resume(&self) -> Result<(), VmmError> {
        self.inner.halt.resume().map_err(|cause| self.failed("resume the guest", cause))
    }

    /// Halts the VMM, and with it the guest's processors and disks; its memory stays, and what is sent to it
    /// waits. One that is paused is left alone. It stays so when this daemon dies. Asking a paused VMM for
    /// anything but its end takes as long as the pause, or until that request's own bound.
    ///
    /// # Errors
    /// As [`Machine::resume`].
    pub fn pause(&self) -> Result<(), VmmError> {
        self.inner.halt.pause().map_err(|cause| self.failed("pause the guest", cause))
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.inner.halt.is_paused()
    }

    /// Presses the ACPI power button. Whether the guest cares is up to the guest: wait for
    /// its end with a bound.
    ///
    /// # Errors
    /// As [`Machine::start`].
    pub async fn power_button(&self) -> Result<(), VmmError> {
        let done = self.inner.control.power_button().await;
        done.map_err(|cause| self.failed("press the guest's power button", cause))
    }

    /// Kills the VM's processes and resolves when all of it is gone. Idempotent.
    pub async fn kill(&self) -> Exit {
        self.inner.kill.send_replace(true);
        self.wait().await
    }

    /// Resolves when the VM has ended and its processes, sockets and control group are gone.
    /// Any number of callers may wait, also after the end.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.inner.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or_else(Exit::unseen),
            // The supervisor is a task of the runtime: it is lost only with the runtime.
            Err(_) => Exit::unseen(),
        }
    }

    /// What the VMM and its vsock device wrote to their standard error, the last 4 KiB of each, with the
    /// program's name before each line; also after their end. Control characters are dots. Of an adopted VM
    /// what they wrote since.
    #[must_use]
    pub fn vmm_log(&self) -> String {
        self.inner.words.text()
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.inner.exit.borrow().clone()
    }

    /// The serial console.
    pub fn console(&self) -> &Console {
        &self.inner.console
    }

    fn failed(&self, action: &'static str, cause: Cause) -> VmmError {
        let source = if self.exit().is_some() { Cause::Gone } else { cause };
        VmmError::Control { vm: self.inner.name.clone(), action, source }
    }
}

/// How a microVM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// The VMM's exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that ended the VMM, if one did.
    pub signal: Option<i32>,
    /// A sentence for people: which process ended, and how.
    pub detail: String,
    /// The last lines the VM's processes wrote to their standard error.
    pub stderr: String,
    /// What could not be removed afterwards; empty when all is gone.
    pub leftovers: Vec<String>,
}

/// Why a microVM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest reset itself; a microVM is never restarted in place.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The VMM or its vsock device ended without being told to.
    Crash,
    /// It was told to: by [`Machine::kill`], by dropping the handle, or by a signal that
    /// asks a process to end.
    Killed,
    /// The kernel killed it for its control group's memory limit.
    OomKilled,
}

impl Exit {
    fn unseen() -> Self {
        Self {
            reason: ExitReason::Crash,
            code: None,
            signal: None,
            detail: "its end was not seen: the runtime that watched it is gone".into(),
            stderr: String::new(),
            leftovers: Vec::new(),
        }
    }
}

/// `exit code 1` or `signal 9`, for messages.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".into(),
    }
}
