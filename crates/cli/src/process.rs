//! A process in a guest on the local standard streams. Owns moving the bytes, passing on signals
//! and sizes, detaching, and the exit code. `vm exec` and `vm shell` are two ways to call it.

use crate::exit::{self, ExitCode};
use crate::failure::Failure;
use crate::signals::{self, Endings, Impatience, TerminalEvent, TerminalSignals};
use crate::terminal::{self, RawMode};
use enisle_client::api::stream::{Exec, Tty};
use enisle_client::{Client, Controller, ExitStatus, Output, Stdin};
use std::io;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

/// Ctrl-] as a terminal in raw mode sends it.
const DETACH: u8 = 0x1d;
/// What a process gets to react when our reader went away, before the connection closes.
const PIPE_GRACE: Duration = Duration::from_secs(2);
/// What the guest gets on top of `--timeout` to report it.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(15);
/// Bytes of one read of standard input.
const CHUNK: usize = 16 * 1024;

/// How a process uses the local streams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams {
    /// Standard input is passed on.
    pub(crate) input: bool,
    /// Tell how to detach, once the process runs.
    pub(crate) announce: bool,
}

/// The terminal that a process gets: as the local one is, or 24 × 80.
pub(crate) fn tty() -> Tty {
    let (rows, cols) = terminal::size().unwrap_or((24, 80));
    let term = std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or_else(|| "xterm".into());
    Tty { rows, cols, term }
}

/// Runs it to its end and returns the exit code.
pub(crate) async fn run(client: &Client, vm: &str, exec: Exec, streams: Streams) -> Result<u8, Failure> {
    let mut endings = Endings::catch()?;
    let with_tty = exec.tty.is_some();
    let limit = exec.timeout_ms.map(|ms| Duration::from_millis(ms) + TIMEOUT_MARGIN);
    let mut process = tokio::select! {
        process = client.exec(vm, exec) => process.map_err(|e| Failure::of_exec(&e))?,
        signal = endings.next() => return Err(Failure::interrupted(signal)),
    };
    let controller = process.controller();
    let interactive = with_tty && streams.input && terminal::stdin_is_terminal();
    if interactive && streams.announce {
        eprintln_quietly(&format!("Connected to {vm}. Ctrl-] disconnects and ends the session."));
    }
    let screen = Screen::open(interactive, controller.clone())?;
    let (detach, detached) = oneshot::channel();
    let input = process.stdin.take().filter(|_| streams.input).map(|to_guest| {
        let detach = interactive.then_some(detach);
        AbortOnDropHandle::new(tokio::spawn(copy_input(to_guest, detach)))
    });
    let outputs = (process.stdout.take(), process.stderr.take());
    let ending = Ending { endings, controller, screen, detached, interactive, limit };
    let code = ending.wait_for(finish(process, outputs)).await;
    drop(input);
    if let Ok(Outcome::Detached) = code {
        eprintln_quietly(&format!("\nDisconnected from {vm}."));
    }
    code.map(Outcome::code)
}

fn eprintln_quietly(text: &str) {
    use std::io::Write;
    // A notice is not worth failing for when stderr is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

/// How the wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Exited(u8),
    Detached,
}

impl Outcome {
    fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Detached => 0,
        }
    }
}

/// Why the process's output could not be brought to its end.
enum Cut {
    /// Nobody reads our output.
    Pipe,
    /// Writing it failed for another reason.
    Write(io::Error),
}

/// Everything that may happen while a process runs, but its end.
struct Ending {
    endings: Endings,
    controller: Controller,
    screen: Screen,
    detached: oneshot::Receiver<()>,
    interactive: bool,
    limit: Option<Duration>,
}

impl Ending {
    async fn wait_for(
        mut self,
        finished: impl Future<Output = Result<Result<ExitStatus, enisle_client::Error>, Cut>>,
    ) -> Result<Outcome, Failure> {
        tokio::pin!(finished);
        let mut impatience = Impatience::default();
        let mut may_detach = self.interactive;
        let limit = sleep_for(self.limit);
        tokio::pin!(limit);
        loop {
            tokio::select! {
                result = &mut finished => return judge(result),
                signal = self.endings.next() => {
                    let leaving = self.interactive && signals::ends_session(signal);
                    self.controller.signal(signal);
                    if leaving || impatience.count(Instant::now()) {
                        return Ok(Outcome::Exited(exit::of_signal(signal)));
                    }
                }
                () = self.screen.next_event() => {}
                detached = &mut self.detached, if may_detach => {
                    if detached.is_ok() {
                        return Ok(Outcome::Detached);
                    }
                    // The input has ended without it; the channel must not be asked again.
                    may_detach = false;
                }
                () = &mut limit => {
                    let detail = "the time is over and the guest did not report the end of the process";
                    return Err(Failure::new("timeout", ExitCode::TimedOut, detail));
                }
            }
        }
    }
}

fn judge(result: Result<Result<ExitStatus, enisle_client::Error>, Cut>) -> Result<Outcome, Failure> {
    match result {
        Ok(Ok(status)) => Ok(Outcome::Exited(exit::of_status(status))),
        Ok(Err(error)) => Err(Failure::of_exec(&error)),
        Err(Cut::Pipe) => Ok(Outcome::Exited(ExitCode::BrokenPipe as u8)),
        Err(Cut::Write(error)) => {
            Err(Failure::io("cannot write the output of the process", &error).exit(ExitCode::ExecFailed))
        }
    }
}

async fn sleep_for(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// The local terminal while a process has it.
enum Screen {
    /// No terminal: nothing happens to it.
    None,
    Raw {
        mode: RawMode,
        signals: TerminalSignals,
        controller: Controller,
    },
}

impl Screen {
    fn open(interactive: bool, controller: Controller) -> Result<Self, Failure> {
        if !interactive {
            return Ok(Self::None);
        }
        let signals = TerminalSignals::catch()?;
        let mode = RawMode::enter()
            .map_err(|e| Failure::io("cannot set the terminal to raw mode", &e).exit(ExitCode::ExecFailed))?;
        let screen = Self::Raw { mode, signals, controller };
        // The window may have changed between the request and the handler.
        screen.send_size();
        Ok(screen)
    }

    fn send_size(&self) {
        if let (Self::Raw { controller, .. }, Some((rows, cols))) = (self, terminal::size()) {
            controller.resize(rows, cols);
        }
    }

    /// Waits for the next event and handles it. Cancel-safe.
    async fn next_event(&mut self) {
        let Self::Raw { mode, signals, .. } = self else { return std::future::pending().await };
        // A terminal that refuses its settings is going away: SIGHUP follows and ends us.
        let _ = match signals.next().await {
            TerminalEvent::Resized => Ok(()),
            TerminalEvent::Stop => mode.stop_until_continued(),
            TerminalEvent::Continued => mode.reenter(),
        };
        self.send_size();
    }
}

/// Both outputs to their end, then how the process ended. Returns early when nobody reads.
async fn finish(
    process: enisle_client::Exec,
    (stdout, stderr): (Option<Output>, Option<Output>),
) -> Result<Result<ExitStatus, enisle_client::Error>, Cut> {
    let controller = process.controller();
    let wait = process.wait();
    tokio::pin!(wait);
    let copies = async {
        tokio::try_join!(
            copy_output(stdout, tokio::io::stdout()),
            // Without a stderr the process goes on: its messages are lost, its work is not.
            async {
                match copy_output(stderr, tokio::io::stderr()).await {
                    Err(Cut::Pipe) => Ok(()),
                    other => other,
                }
            },
        )
    };
    let mut status = None;
    let result = tokio::try_join!(copies, async {
        status = Some((&mut wait).await);
        Ok(())
    });
    match (result, status) {
        (Ok(_), Some(status)) => Ok(status),
        (Err(Cut::Pipe), None) => {
            controller.signal(signals::SIGPIPE);
            // Its end is not waited for longer: dropping the connection kills it.
            let _ = tokio::time::timeout(PIPE_GRACE, wait).await;
            Err(Cut::Pipe)
        }
        (Err(cut), _) => Err(cut),
        (Ok(_), None) => Ok(wait.await),
    }
}

async fn copy_output(from_guest: Option<Output>, mut to: impl AsyncWrite + Unpin) -> Result<(), Cut> {
    let Some(mut from_guest) = from_guest else { return Ok(()) };
    // A broken connection is reported by whoever waits for the process.
    while let Ok(Some(chunk)) = from_guest.chunk().await {
        let written = async {
            to.write_all(&chunk).await?;
            to.flush().await
        };
        match written.await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Cut::Pipe),
            Err(error) => return Err(Cut::Write(error)),
        }
    }
    Ok(())
}

/// Passes standard input on until its end, the process's end, or Ctrl-] where that means
/// something.
async fn copy_input(mut to_guest: Stdin, mut detach: Option<oneshot::Sender<()>>) {
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; CHUNK];
    loop {
        // A standard input that cannot be read (a directory, a lost terminal) has ended.
        let bytes = input.read(&mut buffer).await.unwrap_or(0);
        let data = &buffer[..bytes];
        let typed = match detach {
            Some(_) => data.split(|&byte| byte == DETACH).next().unwrap_or(data),
            None => data,
        };
        if bytes == 0 || to_guest.write_all(typed).await.is_err() {
            return;
        }
        if typed.len() < data.len()
            && let Some(detach) = detach.take()
        {
            // The receiver is gone when the process has just ended.
            let _ = detach.send(());
            return;
        }
    }
}
