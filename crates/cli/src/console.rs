//! Makes a guest's console harmless for a terminal. Owns the decision: text, line ends, tabs and
//! colours pass; every other escape sequence and control character is left out. Refuses to
//! emulate a terminal.
//!
//! Sequences as in ECMA-48: ESC, then `[` parameters final (CSI), or a string up to BEL or
//! ESC `\` (OSC, DCS, SOS, PM, APC), or intermediates and one final byte.

/// A colour sequence longer than this, in bytes, is left out.
const MAX_COLOUR: usize = 64;

/// Filters a byte stream; sequences and characters may be cut anywhere between two calls.
#[derive(Debug, Default)]
pub(crate) struct Sanitizer {
    state: State,
    /// The start of a UTF-8 character whose end has not come yet.
    partial: Vec<u8>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    Escape,
    Control(String),
    Intermediate,
    String,
    StringEscape,
}

impl Sanitizer {
    /// The harmless part of `bytes`, as far as it is known yet. Bytes that are no UTF-8 become
    /// U+FFFD.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.partial);
        all.extend_from_slice(bytes);
        let mut out = String::with_capacity(all.len());
        for chunk in all.utf8_chunks() {
            chunk.valid().chars().for_each(|c| self.step(c, &mut out));
            let invalid = chunk.invalid();
            let at_end = all.as_ptr_range().end == invalid.as_ptr_range().end;
            if at_end && is_start(invalid) {
                self.partial = invalid.to_vec();
            } else if !invalid.is_empty() {
                self.step('\u{fffd}', &mut out);
            }
        }
        out
    }

    fn step(&mut self, c: char, out: &mut String) {
        let state = std::mem::take(&mut self.state);
        self.state = match (state, c) {
            // CAN and SUB end any sequence (ECMA-48 8.3.6).
            (_, '\x18' | '\x1a') => State::Text,
            (State::String | State::StringEscape, '\x07') => State::Text,
            (State::String | State::StringEscape, '\x1b') => State::StringEscape,
            (State::StringEscape, '\\') => State::Text,
            (State::String | State::StringEscape, _) => State::String,
            (_, '\x1b') => State::Escape,
            (State::Text, '\n' | '\r' | '\t') => {
                out.push(c);
                State::Text
            }
            (State::Text, c) => {
                if !crate::table::is_harmful(c) {
                    out.push(c);
                }
                State::Text
            }
            (State::Escape, '[') => State::Control(String::new()),
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => State::String,
            (State::Escape | State::Intermediate, ' '..='/') => State::Intermediate,
            (State::Escape | State::Intermediate, _) => State::Text,
            (State::Control(parameters), c) => control(parameters, c, out),
        };
    }
}

/// The next state inside `ESC [`. Select Graphic Rendition (`m`) with plain parameters passes.
fn control(mut parameters: String, c: char, out: &mut String) -> State {
    match c {
        ' '..='?' => {
            if parameters.len() < MAX_COLOUR {
                parameters.push(c);
            }
            State::Control(parameters)
        }
        'm' if parameters.len() < MAX_COLOUR
            && parameters.chars().all(|p| p.is_ascii_digit() || ";:".contains(p)) =>
        {
            out.push_str("\x1b[");
            out.push_str(&parameters);
            out.push('m');
            State::Text
        }
        _ => State::Text,
    }
}

/// True for bytes that may become a character with what follows.
fn is_start(bytes: &[u8]) -> bool {
    let due = match bytes.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => return false,
    };
    bytes.len() < due
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clean(bytes: &[u8]) -> String {
        Sanitizer::default().feed(bytes)
    }

    #[test]
    fn text_and_colours_pass_and_the_rest_does_not() {
        assert_eq!(clean(b"plain\r\n\ttab"), "plain\r\n\ttab");
        assert_eq!(clean("grün ✓".as_bytes()), "grün ✓");
        assert_eq!(clean(b"\x1b[1;31mred\x1b[0m\x1b[m"), "\x1b[1;31mred\x1b[0m\x1b[m");
        assert_eq!(clean(b"\x1b]0;title\x07a\x1b]52;c;aGk=\x1b\\b"), "ab");
        assert_eq!(clean(b"\x1b[2J\x1b[1;1Hc\x1b[6nd\x1b[?1049he"), "cde");
        assert_eq!(clean(b"\x1bPq#0\x1b\\f\x1b(0g\x1bch\x08\x07"), "fgh");
        assert_eq!(clean("\u{9b}6n\u{202e}x".as_bytes()), "6nx");
        assert_eq!(clean(b"\x1b[>4;1mx\x1b[38:2:1:2:3my"), "x\x1b[38:2:1:2:3my");
        assert_eq!(clean(b"a\xffb"), "a\u{fffd}b");
    }

    #[test]
    fn an_unended_string_swallows_no_escape_that_follows_it() {
        assert_eq!(clean(b"\x1b]0;never ended\x18after"), "after");
        assert_eq!(clean(b"\x1b[31\x1b[2Jx"), "x");
    }

    proptest! {
        #[test]
        fn nothing_but_colours_gets_through(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let out = clean(&bytes);
            let mut rest = out.as_str();
            while let Some(at) = rest.find('\x1b') {
                rest = rest[at + 1..].strip_prefix('[').expect("a CSI");
                let end = rest.find(|c: char| !(c.is_ascii_digit() || ";:".contains(c))).expect("an end");
                prop_assert!(rest[end..].starts_with('m'));
            }
            prop_assert!(out.chars().all(|c| !c.is_control() || "\n\r\t\x1b".contains(c)));
        }

        #[test]
        fn where_the_stream_is_cut_makes_no_difference(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(&b"\x1b[]m0;\\\x07"[..])], 0..100),
            at in 0usize..100,
        ) {
            let at = at.min(bytes.len());
            let mut parts = Sanitizer::default();
            let first = parts.feed(&bytes[..at]);
            let both = first + &parts.feed(&bytes[at..]);
            // A character cut at the very end is still waited for in both.
            prop_assert_eq!(both, clean(&bytes));
        }
    }
}
