//! Whose public keys log in, and to which VMs.
//!
//! Owns: the keys of the file and what each opens: the daemon's `ssh_keys` every VM's console, a
//! group's `ssh_keys` that group's. Refuses: certificates, and RSA with SHA-1.

use super::shown;
use crate::config::{Config, SshKey};
use crate::vm::Handle;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, HashAlg, PublicKey};
use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock};

/// Longest name of a key, in characters.
const MAX_LABEL: usize = 40;

/// The keys that log in now.
#[derive(Debug, Default)]
pub(crate) struct Keys(RwLock<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    key: KeyData,
    label: String,
    opens: Opens,
}

/// Which VMs somebody may see.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Opens {
    Everything,
    Groups(BTreeSet<String>),
}

/// Somebody who has logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The key's comment, or its fingerprint where it has none: plain characters.
    pub(super) label: String,
    /// SHA-256 of the key, as `ssh-keygen -l` prints it.
    pub(super) fingerprint: String,
    opens: Opens,
}

impl Caller {
    /// Whether this one may see VMs of a group.
    pub(super) fn opens(&self, group: &str) -> bool {
        match &self.opens {
            Opens::Everything => true,
            Opens::Groups(groups) => groups.contains(group),
        }
    }

    /// Whether this one may see a VM.
    pub(super) fn may_see(&self, vm: &Handle) -> bool {
        self.opens(&vm.plan().row.group)
    }
}

/// A key as it may be logged.
pub(super) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

impl Keys {
    /// The keys of a configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self(RwLock::new(entries(config)))
    }

    /// Takes those of another configuration from now on. Who is in stays in.
    pub(crate) fn renew(&self, config: &Config) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = entries(config);
    }

    /// Who holds a key; `None` for one that is not in the file, or is used with SHA-1.
    pub(super) fn caller(&self, key: &PublicKey, algorithm: &Algorithm) -> Option<Caller> {
        if matches!(algorithm, Algorithm::Rsa { hash: None }) {
            return None;
        }
        // They are replaced as a whole, so a panic elsewhere leaves whole ones.
        let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.iter().find(|entry| entry.key == *key.key_data())?;
        let (label, opens) = (entry.label.clone(), entry.opens.clone());
        Some(Caller { label, fingerprint: fingerprint(key), opens })
    }
}

fn entries(config: &Config) -> Vec<Entry> {
    let mut entries = Vec::new();
    for key in &config.ssh_keys {
        add(&mut entries, key, None);
    }
    for group in &config.groups {
        // The daemon's come first in it, and open everything already.
        for key in &group.ssh_keys {
            add(&mut entries, key, Some(&group.name));
        }
    }
    entries
}

fn add(entries: &mut Vec<Entry>, key: &SshKey, group: Option<&str>) {
    // The configuration was checked: each one parses.
    let Ok(key) = PublicKey::from_openssh(key.as_str()) else {
        return;
    };
    let known = entries.iter_mut().find(|entry| entry.key == *key.key_data());
    match (known, group) {
        (Some(entry), None) => entry.opens = Opens::Everything,
        (Some(entry), Some(group)) => {
            if let Opens::Groups(groups) = &mut entry.opens {
                groups.insert(group.to_owned());
            }
        }
        (None, group) => {
            let opens = group.map_or(Opens::Everything, |group| Opens::Groups([group.to_owned()].into()));
            entries.push(Entry { key: key.key_data().clone(), label: label(&key), opens });
        }
    }
}

fn label(key: &PublicKey) -> String {
    let comment = shown(key.comment().as_str_lossy().trim());
    let name = if comment.is_empty() { fingerprint(key) } else { comment };
    name.chars().take(MAX_LABEL).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{AnyHost, parse};
    use russh::keys::PrivateKey;
    use russh::keys::ssh_key::private::Ed25519Keypair;

    pub(in crate::ssh) fn private(seed: u8, comment: &str) -> PrivateKey {
        let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]));
        key.set_comment(comment);
        key
    }

    /// The keys of a file: the daemon's key is 1's, the groups `agents` and `others` have 2's, and
    /// `others` 3's.
    pub(in crate::ssh) fn keys() -> Keys {
        let line = |seed, comment: &str| private(seed, comment).public_key().to_openssh().unwrap();
        let text = format!(
            "config:\n  ssh: {{}}\n  ssh_keys: ['{}']\n  host_groups:\n\
             \x20   - {{name: agents, ssh_keys: ['{two}'], network: {{mode: isolated, range: 10.0.0.0/24}}}}\n\
             \x20   - {{name: others, ssh_keys: ['{two}', '{}', '{}'], network: {{mode: isolated, range: 10.0.1.0/24}}}}\n",
            line(1, "ann@office"),
            line(3, ""),
            line(1, "again"),
            two = line(2, "bob@home"),
        );
        Keys::of(&parse("test.yaml", &text, &AnyHost).unwrap())
    }

    #[test]
    fn a_key_that_left_the_file_opens_nothing_any_more() {
        let keys = keys();
        let who = |seed| {
            let key = private(seed, "");
            keys.caller(key.public_key(), &key.algorithm())
        };
        assert!(who(1).is_some() && who(2).is_some());
        let line = private(2, "bob@home").public_key().to_openssh().unwrap();
        let text = format!(
            "config:\n  ssh: {{}}\n  host_groups:\n\
             \x20   - {{name: agents, ssh_keys: ['{line}'], network: {{mode: isolated, range: 10.0.0.0/24}}}}\n"
        );
        keys.renew(&parse("test.yaml", &text, &AnyHost).unwrap());
        assert!(who(1).is_none());
        let bob = who(2).unwrap();
        assert!(bob.opens("agents") && !bob.opens("others"));
    }

    #[test]
    fn the_daemons_keys_open_everything_and_a_groups_that_group() {
        let keys = keys();
        let who = |seed| {
            let key = private(seed, "");
            keys.caller(key.public_key(), &key.algorithm())
        };
        let opens = |seed| {
            let caller = who(seed).unwrap();
            ["agents", "others", "new"].map(|group| caller.opens(group))
        };
        assert_eq!(opens(1), [true, true, true]);
        assert_eq!(opens(2), [true, true, false]);
        assert_eq!(opens(3), [false, true, false]);
        assert_eq!(who(4), None);
        assert_eq!(who(1).unwrap().label, "ann@office");
        let third = who(3).unwrap();
        assert!(third.fingerprint.starts_with("SHA256:") && third.fingerprint.starts_with(&third.label));
    }

    #[test]
    fn rsa_with_sha_1_does_not_log_in() {
        let keys = keys();
        let key = private(1, "");
        assert_eq!(keys.caller(key.public_key(), &Algorithm::Rsa { hash: None }), None);
    }
}
