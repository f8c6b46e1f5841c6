//! A root shell in a guest, through its agent, on a terminal.
//!
//! Owns: waiting for the agent, which may be dead, in a way that a key ends; and both directions of
//! the shell, of which neither waits for the other. Refuses: who may have one.

use super::attach::Left;
use super::escape::{Act, Escape};
use super::keys::Caller;
use super::shown;
use super::terminal::{Keyboard, RESET, Said, Screen};
use crate::chain::Chain;
use crate::guest::session::{self, OpenError, Session};
use crate::guest::talk::{self, Input, Piece};
use crate::vm::{Handle, VmError};
use bytes::Bytes;
use enisle_guest_proto::{Exec, Request, Tty};
use futures_util::stream;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// A guest that still boots is waited for this long, or until a key.
const READY_PATIENCE: Duration = Duration::from_secs(80);
/// Pieces of typing that a shell has not taken; what is more is not typed.
const KEYS_WAITING: usize = 64;
/// Pieces of output on their way to a terminal.
const OUTPUT_WAITING: usize = 2;
/// Ctrl-C, while the agent is waited for.
const INTERRUPT: u8 = 0x03;

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
enum NoShell {
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Runs root's shell until it ends or is left.
pub(super) async fn shell(vm: &Handle, caller: &Caller, keyboard: &mut Keyboard, screen: &Screen) -> Left {
    let name = vm.name();
    screen.show(format!("\r\n[enisle: root's shell in {name}; Ctrl-] d or Ctrl-C stops waiting]\r\n")).await;
    let (tty, term) = (keyboard.size, keyboard.term.clone());
    let opened = tokio::select! {
        opened = open(vm, Tty { rows: tty.rows, cols: tty.cols, term }) => opened,
        left = given_up(keyboard) => return left,
    };
    let (session, _place) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let why = shown(&Chain(&error).to_string());
            screen.show(format!("\r\n[enisle: no shell in {name}: {why}]\r\n")).await;
            return Left::Detached;
        }
    };
    tracing::info!(vm = name, who = caller.label, key = caller.fingerprint, "a root shell");
    let left = run(session, keyboard, screen).await;
    screen.show(RESET.to_owned()).await;
    left
}

async fn open(vm: &Handle, tty: Tty) -> Result<(Session, crate::vm::lifetime::StreamPlace), NoShell> {
    let place = vm.stream_place()?;
    vm.ready(READY_PATIENCE).await?;
    let gone = || VmError::Stopping { name: vm.name().to_owned() };
    let machine = vm.machine_now().ok_or_else(gone)?;
    let exec =
        Exec { argv: Vec::new(), env: Vec::new(), cwd: None, user: None, tty: Some(tty), timeout_ms: None };
    let request = Request::Exec(exec);
    let _turn = vm.turn(&request).await?;
    Ok((session::open(&*machine, request).await?, place))
}

/// Resolves when nobody waits any more.
async fn given_up(keyboard: &mut Keyboard) -> Left {
    let mut escape = Escape::default();
    loop {
        match keyboard.hear().await {
            Said::Gone => return Left::Gone,
            Said::Typed(bytes) => {
                let detached = escape.feed(&bytes).contains(&Act::Detach);
                if detached || bytes.contains(&INTERRUPT) {
                    return Left::Detached;
                }
            }
            Said::Resized | Said::Eof => {}
        }
    }
}

async fn run(session: Session, keyboard: &mut Keyboard, screen: &Screen) -> Left {
    let (typing, typed) = mpsc::channel::<Input>(KEYS_WAITING);
    let typed = stream::unfold(typed, |mut typed| async {
        let input = typed.recv().await?;
        Some((Ok::<_, Infallible>(input), typed))
    });
    let (output, mut pieces) = mpsc::channel::<Piece>(OUTPUT_WAITING);
    let mut talk = std::pin::pin!(talk::run(session, typed, output));
    let mut escape = Escape::default();
    let mut pending = Vec::new();
    let mut ended = false;
    loop {
        if ended && pending.is_empty() {
            // What came before the end is shown before it.
            match pieces.try_recv() {
                Ok((_, bytes)) => pending = bytes,
                Err(_) => return Left::Detached,
            }
        }
        tokio::select! {
            end = &mut talk, if !ended => {
                ended = true;
                if let Err(error) = end {
                    let why = shown(&Chain(&error).to_string());
                    pending.extend(format!("\r\n[enisle: the shell broke off: {why}]\r\n").into_bytes());
                }
            }
            Some((_, bytes)) = pieces.recv(), if pending.is_empty() && !ended => pending = bytes,
            place = screen.place(), if !pending.is_empty() => match place {
                Ok(place) => place.send(std::mem::take(&mut pending).into()),
                Err(_) => return Left::Gone,
            },
            said = keyboard.hear() => match said {
                Said::Gone => return Left::Gone,
                Said::Resized => {
                    let size = keyboard.size;
                    pass_on(&typing, Input::Resize { rows: size.rows, cols: size.cols });
                }
                Said::Eof => {}
                Said::Typed(bytes) => for act in escape.feed(&bytes) {
                    match act {
                        Act::Type(bytes) => pass_on(&typing, Input::Data(Bytes::from(bytes))),
                        Act::Detach => return Left::Detached,
                        Act::TakeOver | Act::Help => {}
                    }
                },
            },
        }
    }
}

/// A shell that takes nothing loses what is typed, so that leaving it is always seen.
fn pass_on(typing: &mpsc::Sender<Input>, input: Input) {
    if let Err(TrySendError::Full(_)) = typing.try_send(input) {
        tracing::debug!("typing that a shell does not take");
    }
}
