//! A token as text: `enisle_ID_SECRET`, ID 8 and SECRET 64 hexadecimal digits.
//!
//! Owns: making, reading and comparing it. Refuses: to print one, and to be compared in a time
//! that says how much was right.

use enisle_api::TOKEN_PREFIX;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const ID_DIGITS: usize = 8;
const SECRET_BYTES: usize = 32;

/// What a client shows.
#[derive(Clone)]
pub(crate) struct Shown {
    /// The part that is no secret.
    pub(crate) id: String,
    secret: [u8; SECRET_BYTES],
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The kernel gives no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the kernel gives no random numbers")]
pub(crate) struct NoRandomness;

impl Shown {
    /// A new one, of 32 and 256 random bits.
    pub(crate) fn new() -> Result<Self, NoRandomness> {
        let (mut id, mut secret) = ([0; ID_DIGITS / 2], [0; SECRET_BYTES]);
        getrandom::fill(&mut id).and_then(|()| getrandom::fill(&mut secret)).map_err(|_| NoRandomness)?;
        Ok(Self { id: hex(&id), secret })
    }

    /// Reads one; `None` for what cannot be a token.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
        let lower = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if id.len() != ID_DIGITS || secret.len() != 2 * SECRET_BYTES || !lower(id) || !lower(secret) {
            return None;
        }
        let mut bytes = [0; SECRET_BYTES];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&secret[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Self { id: id.to_owned(), secret: bytes })
    }

    /// The whole token, for its owner.
    pub(crate) fn text(&self) -> String {
        format!("{TOKEN_PREFIX}{}_{}", self.id, hex(&self.secret))
    }

    /// What is kept of it. A slow hash is for passwords; these are 256 random bits.
    pub(crate) fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }

    /// Whether it is the one of this hash, in a time that does not depend on the answer.
    pub(crate) fn fits(&self, hash: &[u8; 32]) -> bool {
        self.hash().ct_eq(hash).into()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written_and_nothing_else_is_one() {
        let shown = Shown::new().unwrap();
        let text = shown.text();
        assert_eq!(text.len(), 7 + 8 + 1 + 64);
        let read = Shown::parse(&text).unwrap();
        assert_eq!((&read.id, read.text()), (&shown.id, text.clone()));
        assert!(read.fits(&shown.hash()) && !read.fits(&Shown::new().unwrap().hash()));
        assert!(!format!("{shown:?}").contains(&text[16..]));
        for bad in [
            "",
            "enisle_",
            &text[1..],
            &text[..79],
            &format!("{text}0"),
            &text.to_uppercase(),
            "enisle_0123abcd_ü",
        ] {
            assert!(Shown::parse(bad).is_none(), "{bad}");
        }
    }
}
