//! What makes the image this VM: host name, hosts, resolv.conf, SSH keys.
//!
//! Runs as root inside the image, which may be anybody's: files are replaced, never written
//! through a symlink, and a home directory's `.ssh` is entered only when it is a directory. A
//! failure costs that file, not the guest; it is told on the console.

use crate::console::say;
use crate::users;
use anyhow::Context;
use enisle_guest_proto::BootConfig;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::process::{Gid, Uid};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Name of a file that is about to replace another one.
const NEW_SUFFIX: &str = ".enisle-new";
/// Largest authorized_keys that is kept and added to, in bytes.
const MAX_KEYS: u64 = 1 << 20;

/// Writes everything; see the file's head for what a failure means.
pub(super) fn write(config: &BootConfig) {
    report("/etc/hostname", replace("/etc/hostname", &format!("{}\n", config.hostname)));
    report("/etc/hosts", write_hosts(&config.hostname));
    if let Some(net) = config.net.as_ref().filter(|net| !net.dns.is_empty()) {
        let lines: String = net.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        report("/etc/resolv.conf", replace("/etc/resolv.conf", &lines));
    }
    if !config.ssh_keys.is_empty() {
        for uid in ["0", "1000"] {
            report(&format!("authorized_keys of uid {uid}"), authorize(uid, &config.ssh_keys));
        }
    }
}

fn report(what: &str, outcome: anyhow::Result<()>) {
    if let Err(e) = outcome {
        say(format_args!("{what}: {e:#}"));
    }
}

/// Replaces `path` by a file with this text; a symlink there is replaced, not followed.
fn replace(path: &str, text: &str) -> anyhow::Result<()> {
    let new = format!("{path}{NEW_SUFFIX}");
    write_new(CWD, &new, text.as_bytes(), 0o644)?;
    Ok(fs::rename(&new, path)?)
}

/// Makes a file of its own and fills it; one that is left over from a crash goes first.
fn write_new(dir: impl AsFd, name: &str, bytes: &[u8], mode: u32) -> io::Result<File> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Err(e) if e != rustix::io::Errno::NOENT => return Err(e.into()),
        _ => {}
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(mode))?);
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Keeps the image's hosts and adds the VM's own name.
fn write_hosts(hostname: &str) -> anyhow::Result<()> {
    let old = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let mut new =
        if old.is_empty() { "127.0.0.1\tlocalhost\n::1\tlocalhost\n".to_owned() } else { old.clone() };
    if !names(&new, hostname) {
        if !new.ends_with('\n') {
            new.push('\n');
        }
        new.push_str(&format!("127.0.1.1\t{hostname}\n"));
    }
    if new == old { Ok(()) } else { replace("/etc/hosts", &new) }
}

fn names(hosts: &str, hostname: &str) -> bool {
    hosts
        .lines()
        .filter_map(|line| line.split('#').next())
        .any(|line| line.split_ascii_whitespace().skip(1).any(|name| name == hostname))
}

/// Adds keys to a user's authorized_keys; keys that are there already stay once.
fn authorize(uid: &str, keys: &[String]) -> anyhow::Result<()> {
    let Some(user) = users::find_by_uid(Path::new("/"), uid)? else { return Ok(()) };
    let owner = (Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
    let directory = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let home = rustix::fs::open(&*user.home, directory, Mode::empty()).with_context(|| user.home.clone())?;
    match rustix::fs::mkdirat(&home, ".ssh", Mode::from_raw_mode(0o700)) {
        Err(e) if e != rustix::io::Errno::EXIST => return Err(e).context("make .ssh"),
        _ => {}
    }
    let ssh = rustix::fs::openat(&home, ".ssh", directory | OFlags::NOFOLLOW, Mode::empty())
        .context("enter .ssh")?;
    rustix::fs::fchown(&ssh, owner.0, owner.1)?;
    let text = merge_keys(&read_keys(&ssh)?, keys);
    let new = format!("authorized_keys{NEW_SUFFIX}");
    let file = write_new(&ssh, &new, text.as_bytes(), 0o600)?;
    rustix::fs::fchown(&file, owner.0, owner.1)?;
    Ok(rustix::fs::renameat(&ssh, &new, &ssh, "authorized_keys")?)
}

fn read_keys(ssh: &OwnedFd) -> anyhow::Result<String> {
    // Not blocking: a fifo under this name must not stop the boot.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(ssh, "authorized_keys", flags, Mode::empty()) {
        Ok(file) => {
            let mut bytes = Vec::new();
            File::from(file).take(MAX_KEYS).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        Err(rustix::io::Errno::NOENT) => Ok(String::new()),
        Err(e) => Err(e).context("open authorized_keys"),
    }
}

fn merge_keys(old: &str, keys: &[String]) -> String {
    let mut text = old.to_owned();
    for key in keys.iter().flat_map(|key| key.lines()).map(str::trim).filter(|key| !key.is_empty()) {
        if text.lines().all(|line| line.trim() != key) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(key);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_added_once_and_old_ones_stay() {
        let keys = ["ssh-ed25519 AAAA a@b\nssh-ed25519 BBBB\n".to_owned(), "  ".to_owned()];
        let merged = merge_keys("ssh-rsa OLD", &keys);
        assert_eq!(merged, "ssh-rsa OLD\nssh-ed25519 AAAA a@b\nssh-ed25519 BBBB\n");
        assert_eq!(merge_keys(&merged, &keys), merged);
    }

    #[test]
    fn a_name_counts_only_as_a_name() {
        assert!(names("127.0.1.1\tother vm-1 # x\n", "vm-1"));
        assert!(!names("# 127.0.1.1 vm-1\nvm-1 other\n127.0.0.1 vm-10", "vm-1"));
    }

    #[test]
    fn a_file_is_replaced_and_its_symlink_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "untouched").unwrap();
        let link = dir.path().join("resolv.conf");
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join("resolv.conf.enisle-new")).unwrap();
        replace(link.to_str().unwrap(), "nameserver 10.0.0.1\n").unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
        assert_eq!(fs::read_to_string(&link).unwrap(), "nameserver 10.0.0.1\n");
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
    }
}
