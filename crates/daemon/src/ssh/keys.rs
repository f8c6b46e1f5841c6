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
use std::sync::Arc;
use tokio::sync::watch;

/// Longest name of a key, in characters.
const MAX_LABEL: usize = 40;

/// The keys that log in now.
#[derive(Debug)]
pub(crate) struct Keys(watch::Sender<Vec<Entry>>);

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

/// Somebody who has logged in. What they may see is asked of the keys each time: these follow the file.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The key's comment, or its fingerprint where it has none: plain characters.
    pub(super) label: String,
    /// SHA-256 of the key, as `ssh-keygen -l` prints it.
    pub(super) fingerprint: String,
    key: KeyData,
    keys: Arc<Keys>,
}

impl Caller {
    /// Whether this one may see VMs of a group.
    pub(super) fn opens(&self, group: &str) -> bool {
        self.keys.0.borrow().iter().any(|entry| entry.key == self.key && entry.opens(group))
    }

    /// Whether this one may see a VM.
    pub(super) fn may_see(&self, vm: &Handle) -> bool {
        self.opens(&vm.plan().row.group)
    }

    /// Whether the key is still in the file.
    pub(super) fn is_known(&self) -> bool {
        self.keys.0.borrow().iter().any(|entry| entry.key == self.key)
    }

    /// Resolves once this one may not see a VM any more, or for none once the key is not known any more. Cancel-safe.
    pub(super) async fn lost(&self, vm: Option<&Handle>) {
        let mut keys = self.keys.0.subscribe();
        while vm.map_or_else(|| self.is_known(), |vm| self.may_see(vm)) {
            if keys.changed().await.is_err() {
                // The keys live as long as whoever holds them.
                return std::future::pending().await;
            }
        }
    }
}

/// A key as it may be logged.
pub(super) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

impl Keys {
    /// The keys of a configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self(watch::Sender::new(entries(config)))
    }

    /// Takes those of another configuration from now on, for those who are in, too.
    pub(crate) fn renew(&self, config: &Config) {
        self.0.send_replace(entries(config));
    }

    /// Who holds a key; `None` for one that is not in the file, or is used with SHA-1.
    pub(super) fn caller(self: &Arc<Self>, key: &PublicKey, algorithm: &Algorithm) -> Option<Caller> {
        if matches!(algorithm, Algorithm::Rsa { hash: None }) {
            return None;
        }
        let label = self.0.borrow().iter().find(|entry| entry.key == *key.key_data())?.label.clone();
        let (key, fingerprint) = (key.key_data().clone(), fingerprint(key));
        Some(Caller { label, fingerprint, key, keys: Arc::clone(self) })
    }
}

impl Entry {
    fn opens(&self, group: &str) -> bool {
        match &self.opens {
            Opens::Everything => true,
            Opens::Groups(groups) => groups.contains(group),
        }
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
    pub(in crate::ssh) fn keys() -> Arc<Keys> {
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
        Arc::new(Keys::of(&parse("test.yaml", &text, &AnyHost).unwrap()))
    }

    /// A file whose one key is of the group `others`.
    pub(in crate::ssh) fn of_others(seed: u8) -> Config {
        let line = private(seed, "").public_key().to_openssh().unwrap();
        let text = format!(
            "config:\n  ssh: {{}}\n  host_groups:\n\
             \x20   - {{name: others, ssh_keys: ['{line}'], network: {{mode: isolated, range: 10.0.1.0/24}}}}\n"
        );
        parse("test.yaml", &text, &AnyHost).unwrap()
    }

    #[test]
    fn a_key_that_left_the_file_opens_nothing_any_more() {
        let keys = keys();
        let who = |seed| {
            let key = private(seed, "");
            keys.caller(key.public_key(), &key.algorithm())
        };
        let (ann, in_before) = (who(1).unwrap(), who(2).unwrap());
        assert!(ann.is_known() && in_before.opens("agents"));
        keys.renew(&of_others(2));
        assert!(who(1).is_none());
        assert!(!ann.is_known() && !ann.opens("agents"), "who is in already, too");
        assert!(in_before.opens("others") && !in_before.opens("agents"));
        let bob = who(2).unwrap();
        assert!(bob.opens("others") && !bob.opens("agents"));
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
        assert!(who(4).is_none());
        assert_eq!(who(1).unwrap().label, "ann@office");
        let third = who(3).unwrap();
        assert!(third.fingerprint.starts_with("SHA256:") && third.fingerprint.starts_with(&third.label));
    }

    #[test]
    fn rsa_with_sha_1_does_not_log_in() {
        let keys = keys();
        let key = private(1, "");
        assert!(keys.caller(key.public_key(), &Algorithm::Rsa { hash: None }).is_none());
    }
}
