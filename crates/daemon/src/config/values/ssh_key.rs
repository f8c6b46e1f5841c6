//! Public SSH keys, one line each as in `authorized_keys` (sshd(8)), without options.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use crate::config::read::{Mistake, Text, clip};

/// Key types that OpenSSH accepts for logging in.
const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// A public key: type, key and perhaps a comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKey(String);

impl SshKey {
    /// The line for `authorized_keys`, without a line end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Text for SshKey {
    const WHAT: &'static str = "a public SSH key, such as \"ssh-ed25519 AAAA... you@host\"";
    const MAX_BYTES: usize = 16 * 1024;

    fn parse(text: &str) -> Result<SshKey, Mistake> {
        let line = text.trim();
        if line.contains("PRIVATE KEY") {
            return Err(Mistake::new(
                "this is a private key, which belongs to nobody but you",
                "put the public one here: the line in the file that ends in .pub",
            ));
        }
        if line.contains(|c: char| c.is_control()) {
            return Err(Mistake::new("a key is one line", "give each key an item of its own"));
        }
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let (Some(kind), Some(key)) = (words.next(), words.next()) else {
            return Err(incomplete(line));
        };
        if !TYPES.contains(&kind) {
            return Err(Mistake::new(
                format!("`{}` is not a type of SSH key", clip(kind)),
                format!("use one of {}; options before it are not supported", TYPES.join(", ")),
            ));
        }
        if inner_type(key).as_deref() != Some(kind.as_bytes()) {
            return Err(Mistake::new(
                format!("the text after {kind} is not such a key"),
                "copy the whole line from the .pub file; a part is missing or changed",
            ));
        }
        Ok(SshKey(line.to_owned()))
    }

    fn words() -> Json {
        json!({ "examples": [
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN0wnAvcEeFEItVoF7ukn4yh6a+Hy902qAGkgfp73CrY you@host"
        ] })
    }
}

fn incomplete(line: &str) -> Mistake {
    let message = format!("`{}` is not a public SSH key", clip(line));
    if line.ends_with(".pub") || line.starts_with(['/', '~', '.']) {
        return Mistake::new(message, "put the content of the file here, not its name");
    }
    Mistake::new(message, "write type, key and comment, as in ~/.ssh/id_ed25519.pub")
}

/// The type that the key itself begins with: a length of four bytes and as many characters
/// (`string` of RFC 4251 §5). `None` when there is none, or nothing behind it.
fn inner_type(key: &str) -> Option<Vec<u8>> {
    let blob = STANDARD.decode(key).ok()?;
    let (len, rest) = blob.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    (rest.len() > len).then(|| rest[..len].to_vec())
}
