//! The local terminal: its size, and raw mode that is undone on every way out, panics included.
//!
//! Owns the saved settings; they are a static because a panic hook must reach them.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, stderr, stdin, stdout};
use std::sync::{Mutex, Once, PoisonError};

/// Settings to put back; `None` while the terminal is as the user had it.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// Whether standard input is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    isatty(stdin())
}

/// Whether standard output is a terminal.
pub(crate) fn stdout_is_terminal() -> bool {
    isatty(stdout())
}

/// Whether standard error is a terminal.
pub(crate) fn stderr_is_terminal() -> bool {
    isatty(stderr())
}

/// Rows and columns of the terminal behind standard input or output.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Raw mode of standard input's terminal while it lives.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Enters raw mode, remembering what to put back.
    pub(crate) fn enter() -> io::Result<Self> {
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                before(info);
            }));
        });
        make_raw()?;
        Ok(Self(()))
    }

    /// Stops this program as the shell's job control asks, with the terminal as the user had it
    /// meanwhile. Returns when the program is continued.
    pub(crate) fn stop_until_continued(&self) -> io::Result<()> {
        restore();
        // SIGSTOP and not SIGTSTP: the latter is caught, which is how we got here.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP)?;
        make_raw()
    }

    /// After a stop that could not be caught: a shell has put its own settings in place.
    pub(crate) fn reenter(&self) -> io::Result<()> {
        make_raw()
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn make_raw() -> io::Result<()> {
    let settings = tcgetattr(stdin())?;
    let mut raw = settings.clone();
    raw.make_raw();
    let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
    if saved.is_none() {
        *saved = Some(settings);
    }
    tcsetattr(stdin(), OptionalActions::Now, &raw)?;
    Ok(())
}

fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(settings) = saved {
        // The terminal may be gone (SIGHUP); then there is nothing to put back.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &settings);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;
    use std::process::{Command, Stdio};

    /// Set in the process that is to panic; this test is both sides.
    const INNER: &str = "ENISLE_TEST_PANIC_IN_RAW_MODE";

    #[test]
    fn a_panic_restores_the_terminal() {
        if std::env::var_os(INNER).is_some() {
            let mode = RawMode::enter().unwrap();
            assert!(!tcgetattr(stdin()).unwrap().local_modes.contains(LocalModes::ICANON));
            // Without its drop, only the hook can do it.
            std::mem::forget(mode);
            panic!("deliberate");
        }
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = std::fs::File::options().read(true).write(true).open(name).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let output = Command::new("setsid")
            .arg("--ctty")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "terminal::tests::a_panic_restores_the_terminal", "--nocapture"])
            .env(INNER, "1")
            .stdin(slave.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("deliberate"), "{output:?}");
        let after = tcgetattr(&slave).unwrap();
        assert_eq!((after.input_modes, after.local_modes), (before.input_modes, before.local_modes));
    }
}
