//! The one key that is ours at a console: Ctrl-], and the key after it.
//!
//! Owns: taking it out of what is typed, also across packets. Refuses: everything else, which goes
//! through untouched.

/// Ctrl-], as telnet, virsh and most serial consoles have it.
const ESCAPE: u8 = 0x1d;

/// What was asked for with the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Bytes for the guest.
    Type(Vec<u8>),
    /// Leave.
    Detach,
    /// Write from now on.
    TakeOver,
    /// Say what the keys are.
    Help,
}

/// Where in the keys a terminal is.
#[derive(Debug, Default)]
pub(super) struct Escape {
    begun: bool,
}

impl Escape {
    /// What these bytes ask for, in order.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Act> {
        let mut acts = Vec::new();
        for &byte in bytes {
            if !std::mem::take(&mut self.begun) {
                if byte == ESCAPE {
                    self.begun = true;
                } else {
                    type_in(&mut acts, byte);
                }
                continue;
            }
            match byte {
                ESCAPE => type_in(&mut acts, ESCAPE),
                b'd' | b'D' | b'.' | b'q' => acts.push(Act::Detach),
                b'w' | b'W' => acts.push(Act::TakeOver),
                _ => acts.push(Act::Help),
            }
        }
        acts
    }
}

fn type_in(acts: &mut Vec<Act>, byte: u8) {
    if let Some(Act::Type(bytes)) = acts.last_mut() {
        bytes.push(byte);
    } else {
        acts.push(Act::Type(vec![byte]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_after_the_escape_are_ours_and_all_else_passes() {
        let typed = |text: &[u8]| Act::Type(text.to_vec());
        let feed = |text: &[u8]| Escape::default().feed(text);
        assert_eq!(feed(b"ls\x1b[A\x00\xff\r"), [typed(b"ls\x1b[A\x00\xff\r")]);
        assert_eq!(feed(b"a\x1dd"), [typed(b"a"), Act::Detach]);
        assert_eq!(feed(b"\x1dwb"), [Act::TakeOver, typed(b"b")]);
        assert_eq!(feed(b"\x1d\x1dx"), [typed(b"\x1dx")], "twice is once for the guest");
        assert_eq!(feed(b"\x1d?"), [Act::Help]);
        assert_eq!(feed(b"\x1dz"), [Act::Help], "nothing unknown reaches the guest");
    }

    #[test]
    fn the_escape_may_be_split_across_packets() {
        let mut escape = Escape::default();
        assert_eq!(escape.feed(b"a\x1d"), [Act::Type(b"a".to_vec())]);
        assert_eq!(escape.feed(b""), []);
        assert_eq!(escape.feed(b"."), [Act::Detach]);
        assert_eq!(escape.feed(b"d"), [Act::Type(b"d".to_vec())]);
    }
}
