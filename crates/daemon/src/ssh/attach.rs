//! A VM's serial console on a terminal. It never asks the agent.
//!
//! Owns: what is shown besides the console's own bytes, and who is told what of the writer. The
//! bytes of the guest go to the terminal as they are, as with any serial console. Refuses: holding
//! anything up: a terminal that takes nothing misses the middle, which is said.

use super::escape::{Act, Escape};
use super::keys::Caller;
use super::terminal::{Keyboard, Place, RESET, Said, Screen};
use crate::vm::Handle;
use enisle_vmm::{Attached, Console, ConsoleChunk, ConsoleStream, NotTyped, Seat, Viewer};

/// Of the console so far, the last screens are shown: this many bytes at most.
const SCROLL_BACK: u64 = 64 << 10;
/// What waits for a terminal, above which nothing is added to it: a terminal that takes nothing is
/// told nothing.
const MOST_WAITING: usize = 128 << 10;
/// The first line of the scroll-back is not whole, when it is no longer than this.
const LONGEST_LINE: usize = 4 << 10;

pub(super) const KEYS_HELP: &str =
    "Ctrl-] d leaves, Ctrl-] w takes over the writing, Ctrl-] ? says this, Ctrl-] Ctrl-] types Ctrl-]";

/// How somebody left a console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// By the keys, or because the VM has ended.
    Detached,
    /// The terminal is gone.
    Gone,
}

/// Somebody at a console.
struct Attachment<'a> {
    vm: &'a Handle,
    caller: &'a Caller,
    viewer: Viewer,
    live: ConsoleStream,
    /// What is to be shown.
    pending: Vec<u8>,
    /// As this one was last told.
    writer: Option<Seat>,
    /// Whether this one was told that its typing goes nowhere; once is enough until that changes.
    told: Option<NotTyped>,
    ended: bool,
}

/// Shows a VM's console until somebody leaves it.
pub(super) async fn attach(vm: &Handle, caller: &Caller, keyboard: &mut Keyboard, screen: &Screen) -> Left {
    // Who sits at its console uses a VM. One without a free place is attached to all the same.
    let _in_use = vm.stream_place().ok();
    let console = match console_of(vm, keyboard, screen).await {
        Ok(console) => console,
        Err(left) => return left,
    };
    let Attached { tail, live, viewer } = match console.attach(caller.label.clone(), SCROLL_BACK).await {
        Ok(attached) => attached,
        Err(error) => {
            screen.show(format!("\r\n[enisle: cannot show the console of {}: {error}]\r\n", vm.name())).await;
            return Left::Detached;
        }
    };
    tracing::info!(vm = vm.name(), who = caller.label, key = caller.fingerprint, "at the console");
    let pending = whole_lines(tail);
    let mut attachment =
        Attachment { vm, caller, viewer, live, pending, writer: None, told: None, ended: false };
    attachment.greet();
    let left = attachment.run(keyboard, screen).await;
    screen.show(RESET.to_owned()).await;
    left
}

/// The console, once there is one.
async fn console_of(vm: &Handle, keyboard: &mut Keyboard, screen: &Screen) -> Result<Console, Left> {
    if vm.machine_now().is_none() {
        let state = vm.show().state;
        let name = vm.name();
        screen
            .show(format!("\r\n[enisle: {name} is {state} and has no console yet; Ctrl-] d leaves]\r\n"))
            .await;
    }
    let mut escape = Escape::default();
    let mut machine = std::pin::pin!(vm.machine());
    loop {
        tokio::select! {
            machine = &mut machine => {
                let Some(console) = machine.and_then(|machine| machine.console()) else {
                    screen.show(format!("\r\n[enisle: {} has no console]\r\n", vm.name())).await;
                    return Err(Left::Detached);
                };
                return Ok(console);
            }
            said = keyboard.hear() => match said {
                Said::Gone => return Err(Left::Gone),
                Said::Typed(bytes) if escape.feed(&bytes).contains(&Act::Detach) => {
                    return Err(Left::Detached);
                }
                Said::Typed(_) | Said::Resized | Said::Eof => {}
            },
        }
    }
}

/// Without the rest of a line, or of a control sequence, that the cut went through.
fn whole_lines(mut tail: Vec<u8>) -> Vec<u8> {
    if tail.len() as u64 == SCROLL_BACK
        && let Some(end) = tail.iter().take(LONGEST_LINE).position(|&byte| byte == b'\n')
    {
        tail.drain(..=end);
    }
    tail
}

impl Attachment<'_> {
    async fn run(mut self, keyboard: &mut Keyboard, screen: &Screen) -> Left {
        let mut escape = Escape::default();
        loop {
            if self.ended && self.pending.is_empty() {
                return Left::Detached;
            }
            tokio::select! {
                said = keyboard.hear() => match said {
                    Said::Typed(bytes) => {
                        for act in escape.feed(&bytes) {
                            if act == Act::Detach {
                                return Left::Detached;
                            }
                            self.act(act);
                        }
                    }
                    Said::Gone => return Left::Gone,
                    // Who types no more may still watch.
                    Said::Resized | Said::Eof => {}
                },
                place = screen.place(), if !self.pending.is_empty() => match place {
                    Ok(place) => self.give(place),
                    Err(_) => return Left::Gone,
                },
                chunk = self.live.next(), if self.pending.is_empty() && !self.ended => self.take(chunk),
                () = self.viewer.changed() => self.tell_who_writes(),
            }
        }
    }

    fn give(&mut self, place: Place<'_>) {
        place.send(std::mem::take(&mut self.pending).into());
    }

    fn take(&mut self, chunk: Option<ConsoleChunk>) {
        match chunk {
            Some(ConsoleChunk::Output(bytes)) => self.pending.extend_from_slice(&bytes),
            Some(ConsoleChunk::Skipped(chunks)) => {
                self.notice(&format!("{chunks} pieces of output were skipped: this terminal was too slow"));
            }
            None => {
                self.notice(&format!("{} has ended", self.vm.name()));
                self.ended = true;
            }
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Type(bytes) => match self.viewer.write(&bytes) {
                Ok(()) => self.told = None,
                Err(why) => self.complain(why),
            },
            Act::TakeOver => {
                tracing::info!(vm = self.vm.name(), who = self.caller.label, "takes over the console");
                self.viewer.take_over();
            }
            Act::Help => self.notice(KEYS_HELP),
            // Handled where the loop ends.
            Act::Detach => {}
        }
    }

    fn complain(&mut self, why: NotTyped) {
        if self.told.replace(why) == Some(why) {
            return;
        }
        match why {
            NotTyped::Watching => {
                let who = self.writer.as_ref().map_or("somebody else", |seat| &seat.label).to_owned();
                self.notice(&format!("not typed: {who} writes; Ctrl-] w takes over"));
            }
            NotTyped::Full => self.notice("not typed: the guest does not read its console"),
            NotTyped::Ended => {}
        }
    }

    fn greet(&mut self) {
        self.notice(&format!("console of {}; Ctrl-] d leaves, Ctrl-] ? lists the keys", self.vm.name()));
        self.tell_who_writes();
    }

    fn tell_who_writes(&mut self) {
        let writer = self.viewer.writer();
        if writer == self.writer {
            return;
        }
        self.told = None;
        if self.viewer.writes() {
            self.notice("you write");
        } else if let Some(writer) = &writer {
            self.notice(&format!("{} writes; you watch", writer.label));
        }
        self.writer = writer;
    }

    fn notice(&mut self, text: &str) {
        if self.pending.len() < MOST_WAITING {
            self.pending.extend_from_slice(format!("\r\n[enisle: {text}]\r\n").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_line_is_left_out_and_a_whole_console_is_not() {
        assert_eq!(whole_lines(b"short\nwhole".to_vec()), b"short\nwhole");
        let mut long = vec![b'x'; 100];
        long.extend(b"\x1b[31\n");
        long.resize(usize::try_from(SCROLL_BACK).unwrap(), b'y');
        let shown = whole_lines(long.clone());
        assert_eq!(shown, long[105..]);
        let unbroken = vec![b'z'; usize::try_from(SCROLL_BACK).unwrap()];
        assert_eq!(whole_lines(unbroken.clone()), unbroken);
    }
}
