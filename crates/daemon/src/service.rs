//! The systemd unit of a daemon: its text, and its file.
//!
//! Owns: what is different from the packaged unit (program, file, `--keep-vms`), and that a unit somebody
//! has changed is not written over. Refuses: talking to systemd, which is the binary's.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The unit as the package has it.
const PACKAGED: &str = include_str!("../../../packaging/enisle.service");
/// Where units of the machine's operator are.
pub const UNIT_PATH: &str = "/etc/systemd/system/enisle.service";
/// Begins a unit of ours; its checksum follows.
const MARK: &str = "# Written by `enisle service install`, checksum ";
/// `ProtectHome=` closes these, `PrivateTmp=` shows others in the place of the last two.
const CLOSED: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// Why a unit was not made, written or removed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A path that a unit cannot have.
    #[error("{} cannot be in a unit: {why}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why, and what to do.
        why: &'static str,
    },
    /// Somebody has changed the unit.
    #[error("{} was changed since it was written, or is not ours", .0.display())]
    Changed(PathBuf),
    /// The file system.
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
}

/// What became of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is new, or other than before.
    Anew,
    /// It was there already.
    Same,
}

/// The unit that runs `program up config`, as text that [`write`] knows again.
///
/// # Errors
/// A path that is not absolute, has characters of systemd's own, or is closed to the unit.
pub fn unit(program: &Path, config: &Path, keep_vms: bool) -> Result<String, ServiceError> {
    let program = plain(program)?;
    let config = plain(config)?;
    let keep = if keep_vms { " --keep-vms" } else { "" };
    let lines = PACKAGED.lines().map(|line| match line {
        _ if line.starts_with("ExecStart=") => format!("ExecStart={program} up {config}{keep}"),
        // What a stop leaves running is not systemd's to kill.
        "KillMode=mixed" if keep_vms => "KillMode=process".to_owned(),
        line => line.to_owned(),
    });
    let body: String = lines.map(|line| line + "\n").collect();
    Ok(format!("{MARK}{}\n{body}", checksum(&body)))
}

fn plain(path: &Path) -> Result<&str, ServiceError> {
    let refuse = |why| ServiceError::Path { path: path.to_owned(), why };
    let text = path.to_str().ok_or_else(|| refuse("it is no text"))?;
    if !path.is_absolute() {
        return Err(refuse("it is not absolute"));
    }
    if CLOSED.iter().any(|closed| path.starts_with(closed)) {
        return Err(refuse(
            "the unit closes home and temporary directories to the daemon; copy it, to /usr/local/bin or /etc/enisle",
        ));
    }
    let own = |c: char| c.is_whitespace() || c.is_control() || "\"'\\%$;".contains(c);
    if text.contains(own) {
        return Err(refuse("it has spaces or characters that mean something to systemd; use another name"));
    }
    Ok(text)
}

/// FNV-1a, for it is no secret.
fn checksum(body: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:016x}", body.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

/// Whether a unit is as it was written here.
fn is_ours(text: &str) -> bool {
    let found = text.strip_prefix(MARK).and_then(|rest| rest.split_once('\n'));
    found.is_some_and(|(sum, body)| sum == checksum(body))
}

/// Writes a unit, whole or not at all. One that somebody changed stays, but by `force`.
///
/// # Errors
/// [`ServiceError::Changed`] and what a file system can say.
pub fn write(path: &Path, unit: &str, force: bool) -> Result<Written, ServiceError> {
    match read(path)? {
        Some(present) if present == unit => return Ok(Written::Same),
        Some(present) if !force && !is_ours(&present) => return Err(ServiceError::Changed(path.to_owned())),
        _ => {}
    }
    let hidden = path.with_extension("service.new");
    std::fs::write(&hidden, unit).map_err(at("write", &hidden))?;
    std::fs::rename(&hidden, path).map_err(at("write", path))?;
    Ok(Written::Anew)
}

/// Removes a unit; whether there was one. One that somebody changed stays, but by `force`.
///
/// # Errors
/// As of [`write`].
pub fn remove(path: &Path, force: bool) -> Result<bool, ServiceError> {
    match read(path)? {
        None => Ok(false),
        Some(present) if !force && !is_ours(&present) => Err(ServiceError::Changed(path.to_owned())),
        Some(_) => std::fs::remove_file(path).map(|()| true).map_err(at("remove", path)),
    }
}

/// Whether [`write`] and [`remove`] would do what they are asked to.
///
/// # Errors
/// As of [`write`].
pub fn may_replace(path: &Path, force: bool) -> Result<(), ServiceError> {
    match read(path)? {
        Some(present) if !force && !is_ours(&present) => Err(ServiceError::Changed(path.to_owned())),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<String>, ServiceError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("read", path)(error)),
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServiceError {
    let path = path.to_owned();
    move |source| ServiceError::Io { action, path, source }
}

/// Whether this process may install anything.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether the group is there whose members may use the API.
#[must_use]
pub fn has_group() -> bool {
    crate::group_file::gid("enisle").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(keep_vms: bool) -> String {
        unit(Path::new("/usr/local/bin/enisle"), Path::new("/etc/enisle/lab.yaml"), keep_vms).unwrap()
    }

    #[test]
    fn a_unit_is_the_packaged_one_with_its_own_program_and_file() {
        let text = made(false);
        assert!(text.contains("\nExecStart=/usr/local/bin/enisle up /etc/enisle/lab.yaml\n"), "{text}");
        let lines = |text: &str| text.lines().count();
        assert_eq!(lines(&text), lines(PACKAGED) + 1);
        assert!(text.contains("\nKillMode=mixed\n"));
        let keeping = made(true);
        assert!(keeping.contains(" up /etc/enisle/lab.yaml --keep-vms\n"));
        assert!(keeping.contains("\nKillMode=process\n") && !keeping.contains("KillMode=mixed"));
    }

    #[test]
    fn paths_that_systemd_would_read_otherwise_or_not_reach_are_refused() {
        for wrong in
            ["enisle", "/home/ann/enisle", "/root/enisle", "/opt/my enisle", "/opt/%h/enisle", "/opt/a;b"]
        {
            let error = unit(Path::new(wrong), Path::new("/etc/enisle.yaml"), false).unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
            assert!(unit(Path::new("/usr/bin/enisle"), Path::new(wrong), false).is_err());
        }
    }

    #[test]
    fn a_unit_that_somebody_changed_is_not_written_over_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("enisle.service");
        assert!(!remove(&path, false).unwrap());
        assert_eq!(write(&path, &made(false), false).unwrap(), Written::Anew);
        assert_eq!(write(&path, &made(false), false).unwrap(), Written::Same);
        assert_eq!(write(&path, &made(true), false).unwrap(), Written::Anew, "ours may change");
        let changed = std::fs::read_to_string(&path).unwrap().replace("RestartSec=5", "RestartSec=50");
        for foreign in [changed.as_str(), "[Service]\nExecStart=/bin/true\n"] {
            std::fs::write(&path, foreign).unwrap();
            assert!(matches!(write(&path, &made(false), false), Err(ServiceError::Changed(_))));
            assert!(matches!(remove(&path, false), Err(ServiceError::Changed(_))));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);
        }
        assert_eq!(write(&path, &made(false), true).unwrap(), Written::Anew);
        assert!(remove(&path, false).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
