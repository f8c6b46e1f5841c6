//! Owns everything a microVM has on the host while it lives, and the one way to remove it:
//! the same after a failed launch, a kill, a crash, and an orderly end.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::cgroup::Cgroup;
use crate::confine::Spawned;
use crate::error::{Cause, OnPath, Said};
use crate::machine::describe;
use crate::pace::Pace;
use crate::survivor::Pinned;
use crate::vsock::register;

/// How much of what a process said is kept for its obituary.
const SAID_BYTES: usize = 4 << 10;
/// A process that floods its standard error is read at this rate and waits.
const SAID_BYTES_PER_SECOND: u32 = 64 << 10;
/// What QEMU says in every start, and what explains no end.
const WAITING: &str = "info: QEMU waiting for connection on: ";
/// What a killed process may need to die: the kernel frees its memory, which for a large
/// guest on a loaded machine takes seconds.
const DEATH_LIMIT: Duration = Duration::from_secs(30);
/// What is in a dead process's pipe is read at once; only a heir of it could hold it open.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(500);

/// The last bytes of a stream.
#[derive(Debug, Clone, Default)]
struct Tail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
}

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let surplus = kept.len().saturating_sub(SAID_BYTES);
        kept.drain(..surplus);
    }

    /// As text for people: control characters could repaint their terminal.
    fn text(&self) -> String {
        let kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        let printable = |letter: char| match letter {
            '\n' => '\n',
            other if other.is_control() => '.',
            other => other,
        };
        let text: String = String::from_utf8_lossy(&bytes).chars().map(printable).collect();
        // QEMU tells each start that it waits for our side of the console's socket.
        text.split_inclusive('\n').filter(|line| !line.contains(WAITING)).collect()
    }
}

/// What the processes of a VM said last, also after their end.
#[derive(Debug)]
pub(crate) struct Words(Vec<(&'static str, Tail)>);

impl Words {
    /// Each line with the name of the program that said it.
    pub(crate) fn text(&self) -> String {
        let mut all = String::new();
        for (name, tail) in &self.0 {
            for line in tail.text().lines().filter(|line| !line.trim().is_empty()) {
                // Some say their name themselves.
                let line = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(line);
                all.push_str(&format!("{name}: {line}\n"));
            }
        }
        all
    }
}

/// How a process is waited for and killed.
#[derive(Debug)]
enum Handle {
    /// We started it.
    Child(Child),
    /// A daemon that is dead started it: it is init's child now, and tells its status to init.
    Adopted(AsyncFd<OwnedFd>),
}

/// One process of the VM.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: &'static str,
    pub(crate) pid: u32,
    handle: Handle,
    said: Tail,
    reader: Option<JoinHandle<()>>,
}

impl Process {
    pub(crate) fn new(name: &'static str, spawned: Spawned) -> Result<Self, Cause> {
        let Spawned { child, stderr } = spawned;
        // Absent only once the child has been waited for.
        let pid = child.id().ok_or(Cause::Gone)?;
        let said = Tail::default();
        let reader = Some(tokio::spawn(listen(stderr, said.clone())));
        Ok(Self { name, pid, handle: Handle::Child(child), said, reader })
    }

    /// A process that another daemon has started, and its standard error.
    pub(crate) fn adopted(
        name: &'static str,
        process: Pinned,
        stderr: Option<pipe::Receiver>,
    ) -> Result<Self, Cause> {
        let Pinned { pid, fd } = process;
        let said = Tail::default();
        let reader = stderr.map(|stderr| tokio::spawn(listen(stderr, said.clone())));
        let fd = register(fd).on("watch process", format!("/proc/{pid}"))?;
        Ok(Self { name, pid, handle: Handle::Adopted(fd), said, reader })
    }

    /// Resolves when the process has ended. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> Ended {
        match &mut self.handle {
            Handle::Child(child) => match child.wait().await {
                Ok(status) => Ended::With(status),
                Err(error) => Ended::Unknown(error.to_string()),
            },
            // Readable from its end on (pidfd_open(2)); readiness is left as it is.
            Handle::Adopted(pidfd) => match pidfd.readable().await {
                Ok(_) => Ended::Unknown("it was adopted: the kernel told another parent".into()),
                Err(error) => Ended::Unknown(error.to_string()),
            },
        }
    }

    /// The error for a process that ended during the launch.
    pub(crate) async fn ended_early(&mut self) -> Cause {
        let status = self.ended().await.to_string();
        self.hear_out().await;
        Cause::Ended { process: self.name, status }
    }

    /// Waits for the last words of a process that has ended.
    pub(crate) async fn hear_out(&mut self) {
        if let Some(mut reader) = self.reader.take()
            && timeout(LAST_WORDS_LIMIT, &mut reader).await.is_err()
        {
            reader.abort();
        }
    }

    async fn kill(&mut self) -> Result<(), String> {
        let killed = match &mut self.handle {
            Handle::Child(child) => child.start_kill(),
            Handle::Adopted(pidfd) => match pidfd_send_signal(pidfd.get_ref(), Signal::KILL) {
                Err(Errno::SRCH) => Ok(()),
                sent => sent.map_err(Into::into),
            },
        };
        if let Err(error) = killed {
            return Err(format!("{} (pid {}): {error}", self.name, self.pid));
        }
        if timeout(DEATH_LIMIT, self.ended()).await.is_err() {
            return Err(format!("{} (pid {}) did not die", self.name, self.pid));
        }
        self.hear_out().await;
        Ok(())
    }
}

/// How a process ended.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    With(ExitStatus),
    /// The kernel would not say: somebody else had waited for it.
    Unknown(String),
}

impl Ended {
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        match self {
            Self::With(status) => Some(*status),
            Self::Unknown(_) => None,
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::With(status) => f.write_str(&describe(*status)),
            Self::Unknown(why) => write!(f, "unknown status ({why})"),
        }
    }
}

async fn listen(mut pipe: pipe::Receiver, said: Tail) {
    let mut pace = Pace::new(SAID_BYTES_PER_SECOND, SAID_BYTES_PER_SECOND);
    let mut buffer = vec![0; SAID_BYTES];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        said.push(&buffer[..read]);
        pace.spent(read).await;
    }
}

/// What a VM has on the host. Filled step by step during the launch.
#[derive(Debug, Default)]
pub(crate) struct Estate {
    pub(crate) vmm: Option<Process>,
    pub(crate) vsock: Option<Process>,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) sockets: Vec<PathBuf>,
}

impl Estate {
    /// Removes a socket with the VM, and now, if a former run has left one.
    pub(crate) fn adopt_socket(&mut self, path: PathBuf) -> Result<(), Cause> {
        remove_socket(&path).map_err(|error| Cause::io("remove old socket", &path, error))?;
        self.sockets.push(path);
        Ok(())
    }

    /// What they say from now on, too.
    pub(crate) fn words(&self) -> Words {
        let processes = [&self.vmm, &self.vsock].into_iter().flatten();
        Words(processes.map(|process| (process.name, process.said.clone())).collect())
    }

    /// What the VM's processes said last.
    pub(crate) fn said(&self) -> Said {
        let texts: Vec<String> = [&self.vmm, &self.vsock]
            .into_iter()
            .flatten()
            .map(|process| process.said.text())
            .filter(|text| !text.trim().is_empty())
            .map(|text| text.trim_end().to_owned())
            .collect();
        Said(texts.join("\n"))
    }

    /// How many processes were killed for the memory limit.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.cgroup.as_ref().map_or(0, Cgroup::oom_kills)
    }

    /// Kills and removes everything, in reverse of its making. Calling it again is a
    /// no-op. What stays is described, one line each.
    pub(crate) async fn dismantle(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for process in [&mut self.vmm, &mut self.vsock].into_iter().flatten() {
            left.extend(process.kill().await.err());
        }
        if let Some(mut cgroup) = self.cgroup.take() {
            // Removing a memory group may wait for the kernel to give pages back.
            let removed = tokio::task::spawn_blocking(move || cgroup.remove()).await;
            left.extend(removed.unwrap_or_else(|lost| vec![format!("control group: {lost}")]));
        }
        for path in self.sockets.drain(..).rev() {
            if let Err(error) = remove_socket(&path) {
                left.push(format!("socket {}: {error}", path.display()));
            }
        }
        left
    }
}

fn remove_socket(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_the_name_of_who_said_it_once() {
        let (qemu, device) = (Tail::default(), Tail::default());
        qemu.push(
            b"qemu: terminating on signal 15\nqemu: info: QEMU waiting for connection on: x\n\nodd\x1b[2J",
        );
        device.push(b"[WARN] backend\n");
        let words = Words(vec![("qemu", qemu), ("device", device)]);
        assert_eq!(words.text(), "qemu: terminating on signal 15\nqemu: odd.[2J\ndevice: [WARN] backend\n");
    }

    #[test]
    fn a_tail_keeps_the_end_and_shows_no_control_characters() {
        let tail = Tail::default();
        tail.push(&vec![b'x'; 3 * SAID_BYTES]);
        tail.push(b"last\x1b[2J\n");
        let text = tail.text();
        assert_eq!(text.len(), SAID_BYTES);
        assert!(text.ends_with("last.[2J\n"));
    }

    #[test]
    fn what_every_start_says_is_no_reason() {
        let tail = Tail::default();
        tail.push(b"qemu: -chardev socket: info: QEMU waiting for connection on: unix:/x\nqemu: broken\n");
        assert_eq!(tail.text(), "qemu: broken\n");
    }
}
