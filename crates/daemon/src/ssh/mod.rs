//! Serial consoles over SSH: `ssh NAME@host` is that VM's console, `ssh host` a menu of all.
//!
//! ```text
//! Listener ─▶ server (places, deadlines) ─▶ client (who: public keys) ─▶ session (one channel)
//!                                                                         │
//!                                            menu ◀──────▶ attach (console: never the agent)
//!                                              └─────────▶ shell (root, through the agent)
//! ```
//!
//! Owns: the port, the host key, who may see which VM, and what a terminal shows. Refuses: passwords,
//! commands, subsystems and forwarding of any kind; and acting on a VM but through its handle.

mod attach;
mod client;
mod escape;
mod host_key;
mod key;
mod keys;
mod menu;
mod server;
mod session;
mod shell;
mod terminal;
#[cfg(test)]
mod tests;

pub(crate) use keys::Keys;
pub(crate) use server::{Listener, Server, SshError, serve};

use crate::vm::registry::Registry;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What every connection needs.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) registry: Arc<Registry>,
    pub(crate) keys: Arc<Keys>,
    /// Set when the daemon goes down.
    pub(crate) stop: CancellationToken,
}

/// Longest text of somebody else's that is shown, in characters.
const MAX_SHOWN: usize = 80;

/// A text as it may stand on anybody's terminal: one bounded line of printable ASCII. What a guest, a
/// client or a key's comment says is shown only so.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    text.chars().take(MAX_SHOWN).map(plain).collect()
}

#[cfg(test)]
mod shown_tests {
    #[test]
    fn nothing_but_plain_characters_is_shown() {
        assert_eq!(super::shown("a\x1b]0;x\x07\n\u{9b}2J\u{202e}é"), "a?]0;x???2J??");
        assert_eq!(super::shown(&"x".repeat(500)).len(), super::MAX_SHOWN);
    }
}
