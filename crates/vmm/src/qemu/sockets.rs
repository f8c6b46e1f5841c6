//! Owns the run directory's permissions and the listening sockets handed to QEMU.
//!
//! Root binds and connects before QEMU exists: there is nothing to wait for, nothing on the
//! console is lost, and nobody else can be at the other end.

use std::fs::Permissions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{FileType, Gid, Mode, OFlags};
use tokio::net::UnixStream;

use crate::error::{Cause, OnPath};
use crate::estate::Estate;
use crate::spec::Ids;

/// QEMU's control connection, in the run directory.
pub(super) const CONTROL_SOCKET: &str = "qmp.sock";
/// The serial console, in the run directory.
pub(super) const CONSOLE_SOCKET: &str = "console.sock";

/// Lets the VM's user add sockets to the run directory, and do nothing to root's.
pub(super) fn prepare_run_dir(path: &Path, user: Ids) -> Result<(), Cause> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty()).on("open run directory", path)?;
    let found = rustix::fs::fstat(&dir).on("look at run directory", path)?;
    if found.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Cause::Unsuitable {
            path: path.to_owned(),
            problem: format!("belongs to user {}, not to the daemon's", found.st_uid),
        });
    }
    let gid = Some(Gid::from_raw(user.gid));
    rustix::fs::fchown(&dir, None, gid).on("give run directory to the VM's group", path)?;
    // Sticky: what one owner put there another cannot rename or remove.
    rustix::fs::fchmod(&dir, Mode::SVTX | Mode::RWXU | Mode::RWXG).on("chmod", path)
}

/// A listening socket for QEMU, and our connection to it, which QEMU will accept first.
pub(super) async fn rendezvous(
    estate: &mut Estate,
    run_dir: &Path,
    name: &str,
) -> Result<(OwnedFd, UnixStream), Cause> {
    let path = run_dir.join(name);
    refuse_foreign(&path)?;
    estate.adopt_socket(path.clone())?;
    let listener = UnixListener::bind(&path).on("bind", &path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).on("chmod", &path)?;
    let stream = UnixStream::connect(&path).await.on("connect to", &path)?;
    Ok((listener.into(), stream))
}

/// What is in a socket's place and is no socket was not put there by us.
pub(super) fn refuse_foreign(path: &Path) -> Result<(), Cause> {
    match rustix::fs::lstat(path) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Socket => Ok(()),
        Ok(_) => Err(Cause::Unsuitable {
            path: path.to_owned(),
            problem: "is in the way and no socket; remove it".into(),
        }),
        Err(error) => Err(Cause::io("look at", path, error)),
    }
}
