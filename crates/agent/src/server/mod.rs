//! The server that lives beside the image's init: sessions on vsock, and the boot connection.
//!
//! Owns: listening, one thread a session, the limit on sessions. Refuses: peers that are not the
//! host; a guest's own processes could reach the port through vsock loopback and become root.

mod host;
mod shutdown;
pub mod userdata;

use crate::boot::link::Link;
use crate::console::say;
use crate::{session, sys};
use enisle_guest_proto::{AGENT_PORT, HOST_CID};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The server's `argv[0]`. The `@` keeps systemd from ending it with everything else.
pub const NAME: &str = "@enisle-agent";
/// Sessions served at one time; one more is refused.
pub const MAX_SESSIONS: usize = 512;
/// A session's thread needs little: frames are on the heap.
const STACK: usize = 256 << 10;
/// Descriptors: up to six for a session (RLIMIT_NOFILE).
const FILES: u64 = 8192;

/// Who is PID 1 of this guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// The agent: the image has no init.
    Ours,
    /// systemd.
    Systemd,
    /// Another init of the image.
    Other,
}

/// How PID 1 starts the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arguments {
    /// Who is PID 1.
    pub init: Init,
    /// Descriptor of a boot connection that has had its `BootConfig`.
    pub link: Option<RawFd>,
}

impl Arguments {
    /// The command line after the name.
    #[must_use]
    pub fn to_words(self) -> Vec<String> {
        let init = match self.init {
            Init::Ours => "ours",
            Init::Systemd => "systemd",
            Init::Other => "other",
        };
        let mut words = vec!["serve".to_owned(), init.to_owned()];
        words.extend(self.link.map(|fd| fd.to_string()));
        words
    }

    /// Reads a whole command line; `None` when it is not PID 1's.
    #[must_use]
    pub fn parse(line: &[String]) -> Option<Self> {
        let [name, verb, init, link @ ..] = line else { return None };
        let init = match init.as_str() {
            "ours" => Init::Ours,
            "systemd" => Init::Systemd,
            "other" => Init::Other,
            _ => return None,
        };
        let link = match link {
            [] => None,
            [fd] => Some(fd.parse().ok()?),
            _ => return None,
        };
        (name == NAME && verb == "serve").then_some(Self { init, link })
    }
}

/// Serves until the guest ends.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    // A refused limit leaves fewer sessions, which accept(2) then reports.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), maximum: Some(524_288) });
    let link = arguments.link.and_then(|fd| sys::inherited(fd).ok()).map(Link::from_fd);
    let listener = match sys::vsock_listen(AGENT_PORT) {
        Ok(listener) => listener,
        Err(e) => {
            say(format_args!("listen on vsock port {AGENT_PORT}: {e}"));
            return ExitCode::FAILURE;
        }
    };
    // From here on connections queue up, so the host may be told.
    let init = arguments.init;
    let host = thread::Builder::new().name("host".to_owned()).spawn(move || host::follow(link, init));
    if let Err(e) = host {
        say(format_args!("start the boot connection's thread: {e}"));
        return ExitCode::FAILURE;
    }
    accept_all(&listener)
}

fn accept_all(listener: &OwnedFd) -> ExitCode {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        match sys::vsock_accept(listener.as_fd()) {
            Ok((connection, HOST_CID)) => admit(connection, &open),
            Ok((_, cid)) => say(format_args!("refused a session from vsock context {cid}: not the host")),
            Err(e) => {
                say(format_args!("accept a session: {e}"));
                match e.raw_os_error() {
                    // The peer gave up in the queue; or descriptors are short until a session ends.
                    Some(libc::ECONNABORTED | libc::EINTR) => {}
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                        thread::sleep(std::time::Duration::from_millis(100));
                    }
                    _ => return ExitCode::FAILURE,
                }
            }
        }
    }
}

/// One session that counts against [`MAX_SESSIONS`] for as long as it lives.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn admit(connection: OwnedFd, open: &Arc<AtomicUsize>) {
    let already = open.fetch_add(1, Ordering::Relaxed);
    let place = Place(Arc::clone(open));
    let serve = move || {
        if already >= MAX_SESSIONS {
            session::refuse_full(connection);
        } else {
            session::serve(connection);
        }
        drop(place);
    };
    if let Err(e) = thread::Builder::new().name("session".to_owned()).stack_size(STACK).spawn(serve) {
        say(format_args!("start a session's thread: {e}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_survives_and_others_are_not_taken_for_it() {
        for init in [Init::Ours, Init::Systemd, Init::Other] {
            for link in [None, Some(7)] {
                let arguments = Arguments { init, link };
                let mut line = vec![NAME.to_owned()];
                line.extend(arguments.to_words());
                assert_eq!(Arguments::parse(&line), Some(arguments));
            }
        }
        for line in [
            "enisle-agent serve ours",
            "@enisle-agent serve",
            "@enisle-agent serve ours x",
            "@enisle-agent run ours",
        ] {
            let line: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(Arguments::parse(&line), None);
        }
    }
}
