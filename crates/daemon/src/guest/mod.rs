//! The channel to the agent inside a guest.
//!
//! Owns: the boot connection, sessions, and the relay between a session and a client's stream.
//! Everything a guest sends is taken as an attack until it parses: frames are bounded, waits are
//! bounded, credit is enforced, text is cleaned before it reaches a log. Refuses: VM states.

pub(crate) mod boot;
mod outbox;
pub(crate) mod relay;
pub(crate) mod session;
pub(crate) mod talk;
mod window;
pub(crate) mod wire;

/// Longest text of a guest that is passed on, in characters.
const MAX_TEXT: usize = 1024;

/// A guest's text, or that of a process a guest may have taken over, as it may stand in a log or a problem document: one bounded line without
/// control characters.
pub(crate) fn printable(text: &str) -> String {
    let mut clean: String =
        text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_guests_text_is_one_bounded_line() {
        assert_eq!(super::printable("a\x1b]0;owned\x07\nb"), "a ]0;owned  b");
        assert_eq!(super::printable(&"x".repeat(5000)).chars().count(), super::MAX_TEXT + 1);
    }
}
