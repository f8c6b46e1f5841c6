//! The server's own key: ed25519, made once, kept in the state directory.
//!
//! Owns: its file, which only root can read. Refuses: making another one where there is one that it
//! cannot read, because users would be told of an attack.

use crate::private_file;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file's name in the state directory.
const NAME: &str = "ssh_host_ed25519_key";
/// Read and write for root.
const MODE: u32 = 0o600;

/// There is no host key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostKeyError {
    /// The kernel refuses.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file is no key.
    #[error(
        "{} is no unencrypted SSH key; restore it, or remove it to have a new one made, which changes the host's fingerprint",
        .0.display()
    )]
    NoKey(PathBuf),
    /// Others than root may have read it.
    #[error(
        "others than root can read {}; chmod 600 it, or remove it to have a new one made, which changes the host's fingerprint",
        .0.display()
    )]
    Open(PathBuf),
    /// The kernel has no randomness.
    #[error("cannot make a host key: no random bytes: {0}")]
    Random(getrandom::Error),
}

/// The key in this state directory, made where there is none. Blocks for microseconds.
pub(super) fn load_or_make(state_dir: &Path) -> Result<PrivateKey, HostKeyError> {
    let path = state_dir.join(NAME);
    match fs::read(&path) {
        Ok(_) if others_read(&path) => Err(HostKeyError::Open(path)),
        Ok(pem) => match PrivateKey::from_openssh(pem) {
            Ok(key) if !key.is_encrypted() => Ok(key),
            _ => Err(HostKeyError::NoKey(path)),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => make(&path),
        Err(source) => Err(HostKeyError::Io { action: "read", path, source }),
    }
}

/// As `sshd` asks of its own.
fn others_read(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.mode() & 0o077 != 0)
}

/// Makes a key and its file. A crash leaves a key or none.
fn make(path: &Path) -> Result<PrivateKey, HostKeyError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(HostKeyError::Random)?;
    let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    key.set_comment("enisle");
    let Ok(pem) = key.to_openssh(LineEnding::LF) else {
        return Err(HostKeyError::NoKey(path.to_owned()));
    };
    private_file::write(path, pem.as_bytes(), MODE).map_err(|source| HostKeyError::Io {
        action: "make",
        path: path.to_owned(),
        source,
    })?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_made_once_for_root_alone_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_make(dir.path()).unwrap();
        assert_eq!(load_or_make(dir.path()).unwrap(), first);
        let file = dir.path().join(NAME);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, MODE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "and nothing beside it");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let said = load_or_make(dir.path()).unwrap_err().to_string();
        assert!(said.contains("others than root"), "{said}");
        fs::set_permissions(&file, fs::Permissions::from_mode(MODE)).unwrap();
        let other = tempfile::tempdir().unwrap();
        assert_ne!(load_or_make(other.path()).unwrap(), first);
        fs::write(&file, "not a key").unwrap();
        let said = load_or_make(dir.path()).unwrap_err().to_string();
        assert!(said.contains("no unencrypted SSH key"), "{said}");
        assert_eq!(fs::read(&file).unwrap(), b"not a key");
    }
}
