//! Network namespaces held by a descriptor, never by a name.
//!
//! Owns: the only `unshare` and `setns` of the test kit, both on threads that are thrown away.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::{io, io::Write as _, thread};

use anyhow::{Context as _, bail};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// A network namespace. It lives as long as this value, a socket or a process inside it.
#[derive(Debug)]
pub struct Netns(OwnedFd);

impl Netns {
    /// A new namespace with its loopback down.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`.
    pub fn new() -> anyhow::Result<Netns> {
        let made = thread::spawn(|| -> anyhow::Result<Netns> {
            enter_new().context("cannot make a network namespace; run as root")?;
            Netns::current()
        });
        made.join().map_err(|_| anyhow::anyhow!("the thread making a namespace panicked"))?
    }

    /// A new namespace, and what `f` does in it on the thread that made it, which ends right after.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`, and with `f`'s error.
    pub fn new_with<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> anyhow::Result<(Netns, T)> {
        let inside = || -> anyhow::Result<(Netns, T)> {
            enter_new().context("cannot make a network namespace; run as root")?;
            Ok((Netns::current()?, f()?))
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(made) => made,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// Where `/proc` is not mounted.
    pub fn current() -> anyhow::Result<Netns> {
        Netns::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace a path leads to, such as `/proc/PID/ns/net` or `/proc/PID/fd/N`.
    ///
    /// # Errors
    /// If nothing is there or it may not be opened.
    pub fn open(path: &Path) -> anyhow::Result<Netns> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("cannot open namespace {}", path.display()))?;
        Ok(Netns(fd))
    }

    /// Another handle on a namespace.
    ///
    /// # Errors
    /// If the process is out of descriptors.
    pub fn from_fd(fd: BorrowedFd<'_>) -> anyhow::Result<Netns> {
        Ok(Netns(fd.try_clone_to_owned().context("cannot duplicate a namespace descriptor")?))
    }

    /// Moves the calling thread in, for good. For a process about to exec, or a thread about to
    /// end; everything else wants [`Netns::run`].
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`.
    pub fn enter(&self) -> anyhow::Result<()> {
        rustix::thread::move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter a network namespace; run as root")
    }

    /// Runs `f` inside, on a thread that ends with it. Sockets opened there stay inside.
    ///
    /// # Panics
    /// If the namespace cannot be entered, and with `f`'s panic.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            self.enter().expect("enter the namespace");
            f()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a command inside to its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn output(&self, command: &mut Command) -> io::Result<Output> {
        self.run(|| command.output())
    }

    /// Runs a command inside with `input`; its output, or an error with what it complained about.
    ///
    /// # Errors
    /// If it cannot be started or does not end with 0.
    pub fn check(&self, program: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
        let run = || -> io::Result<Output> {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            // Small inputs only: they fit the pipe, so writing before reading cannot block.
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes())?;
            }
            child.wait_with_output()
        };
        let output = self.run(run).with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            bail!(
                "{program} {args:?} failed ({}): {}\n{input}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Writes a sysctl of this namespace, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// If there is no such sysctl, or it is not per namespace and may not be written.
    pub fn set_sysctl(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let path = Path::new("/proc/sys").join(name);
        self.run(|| std::fs::write(&path, value))
            .with_context(|| format!("cannot write {value} to {}", path.display()))
    }

    /// Reads a sysctl of this namespace.
    ///
    /// # Errors
    /// If there is no such sysctl.
    pub fn sysctl(&self, name: &str) -> anyhow::Result<String> {
        let path = Path::new("/proc/sys").join(name);
        let text = self
            .run(|| std::fs::read_to_string(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.trim_end().to_owned())
    }

    /// Connects two namespaces by a veth pair, both ends up.
    ///
    /// # Errors
    /// If `ip` cannot, for example because a name is taken.
    pub fn link(&self, name: &str, other: &Netns, other_name: &str) -> anyhow::Result<()> {
        // `ip` names a namespace by a task inside it: a thread that waits there meanwhile.
        other.run(|| {
            let tid = rustix::thread::gettid().as_raw_nonzero();
            self.check(
                "ip",
                &["-batch", "-"],
                &format!(
                    "link add {name} type veth peer name {other_name} netns {tid}\nlink set {name} up\n"
                ),
            )
        })?;
        other.check("ip", &["link", "set", other_name, "up"], "").map(drop)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[expect(unsafe_code, reason = "unshare(2) moves the calling thread, which only its owner may ask")]
fn enter_new() -> io::Result<()> {
    // SAFETY: with NEWNET alone no descriptor table or memory is unshared; the caller is a
    // thread that ends right after.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_inside_stays_inside() {
        let (a, b) = (Netns::new().unwrap(), Netns::new().unwrap());
        a.link("left", &b, "right").unwrap();
        let links = |ns: &Netns| ns.check("ip", &["-o", "link"], "").unwrap();
        assert!(links(&a).contains("left@") && !links(&a).contains("right@if"), "{}", links(&a));
        assert!(links(&b).contains("right@"));
        let own = Netns::current().unwrap();
        assert!(!links(&own).contains("left@"), "the caller's namespace has none of it");
    }
}
