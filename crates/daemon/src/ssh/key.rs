//! Keys of the menu, out of the bytes a terminal sends.
//!
//! Owns: arrow keys in their three spellings, and swallowing whole what a terminal says by itself: a
//! guest's console can make it answer, and no answer may press a key here. Refuses: what a key does.

/// A key that the menu knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    /// Ctrl-C or Ctrl-D.
    Interrupt,
    /// Any other character of ASCII.
    Char(u8),
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    /// After ESC.
    Escape,
    /// After ESC [: parameters so far, the first number only.
    Csi { number: u16 },
    /// After ESC O.
    Ss3,
    /// Inside a string (OSC, DCS, APC, PM, SOS), until ST or BEL.
    Text,
    /// Inside a string, after ESC.
    TextEscape,
    /// Inside an X10 mouse report, whose bytes may look like any key.
    Mouse { left: u8 },
}

/// Where in a terminal's bytes we are. Holds nothing of them.
#[derive(Debug, Default)]
pub(super) struct Keys(State);

impl Keys {
    /// The keys in these bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Key> {
        bytes.iter().filter_map(|&byte| self.take(byte)).collect()
    }

    fn take(&mut self, byte: u8) -> Option<Key> {
        let (next, key) = match (self.0, byte) {
            (State::Text, 0x07) | (State::TextEscape, b'\\') => (State::Ground, None),
            (State::Text | State::TextEscape, 0x1b) => (State::TextEscape, None),
            (State::Text | State::TextEscape, _) => (State::Text, None),
            (State::Mouse { left: 1 }, _) => (State::Ground, None),
            (State::Mouse { left }, _) => (State::Mouse { left: left - 1 }, None),
            (_, 0x1b) => (State::Escape, None),
            (State::Escape, b'[') => (State::Csi { number: 0 }, None),
            (State::Escape, b'O') => (State::Ss3, None),
            (State::Escape, b']' | b'P' | b'_' | b'^' | b'X') => (State::Text, None),
            // Alt and a key, which is none of ours.
            (State::Escape, _) => (State::Ground, None),
            (State::Csi { number }, b'0'..=b'9') => {
                let number = number.saturating_mul(10).saturating_add(u16::from(byte - b'0'));
                (State::Csi { number }, None)
            }
            // Further parameters, and what is private to a terminal.
            (State::Csi { number }, 0x20..=0x3f) => (State::Csi { number }, None),
            (State::Csi { number: 0 }, b'M') => (State::Mouse { left: 3 }, None),
            (State::Csi { number }, _) => (State::Ground, of_csi(number, byte)),
            (State::Ss3, b'M') => (State::Ground, Some(Key::Enter)),
            (State::Ss3, _) => (State::Ground, of_csi(0, byte)),
            (State::Ground, _) => (State::Ground, of_byte(byte)),
        };
        self.0 = next;
        key
    }
}

fn of_csi(number: u16, last: u8) -> Option<Key> {
    match (number, last) {
        (_, b'A') => Some(Key::Up),
        (_, b'B') => Some(Key::Down),
        (_, b'H') | (1 | 7, b'~') => Some(Key::Home),
        (_, b'F') | (4 | 8, b'~') => Some(Key::End),
        (5, b'~') => Some(Key::PageUp),
        (6, b'~') => Some(Key::PageDown),
        _ => None,
    }
}

fn of_byte(byte: u8) -> Option<Key> {
    match byte {
        b'\r' | b'\n' => Some(Key::Enter),
        0x03 | 0x04 => Some(Key::Interrupt),
        0x10 => Some(Key::Up),
        0x0e => Some(Key::Down),
        b' '..=b'~' => Some(Key::Char(byte)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        Keys::default().feed(bytes)
    }

    #[test]
    fn arrows_come_in_three_spellings() {
        assert_eq!(keys(b"\x1b[A\x1bOB\x1b[1;5A"), [Key::Up, Key::Down, Key::Up]);
        assert_eq!(keys(b"\x1b[5~\x1b[6~\x1b[H\x1b[4~"), [Key::PageUp, Key::PageDown, Key::Home, Key::End]);
        assert_eq!(keys(b"c\r\x03"), [Key::Char(b'c'), Key::Enter, Key::Interrupt]);
    }

    #[test]
    fn a_sequence_may_come_byte_by_byte() {
        let mut state = Keys::default();
        let pieces: Vec<Key> =
            b"\x1b[Bs".iter().flat_map(|byte| state.feed(std::slice::from_ref(byte))).collect();
        assert_eq!(pieces, [Key::Down, Key::Char(b's')]);
    }

    #[test]
    fn what_a_terminal_answers_presses_no_key() {
        for answer in [
            // Device attributes, cursor position, colours, a title with keys in it, DECRQSS.
            &b"\x1b[?64;1;2c"[..],
            b"\x1b[12;40R",
            b"\x1b]11;rgb:ffff/ssss/yyyy\x1b\\",
            b"\x1b]lsyq\x07",
            b"\x1bP1$rsyq\x1b\\",
            b"\x1b_syq\x1b\x1b\\",
            // Mouse reports, old and new.
            b"\x1b[Msyq",
            b"\x1b[<0;12;4M",
        ] {
            assert_eq!(keys(answer), [], "{answer:?}");
            assert_eq!(keys(&[answer, b"q"].concat()), [Key::Char(b'q')], "{answer:?}");
        }
    }
}
