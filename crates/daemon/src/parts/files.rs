//! Directories of a VM. Owns their modes; refuses to follow links: what is removed is removed by
//! name, below a directory that only root may write.

use super::PartError;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::Path;
use tokio::net::UnixListener;

/// Disks and logs: root's alone.
const PRIVATE: u32 = 0o700;
/// A socket for the VM's user, by its group.
const SOCKET: u32 = 0o660;

/// Makes a VM's directory of sockets and binds the one the guest's boot connection arrives at.
/// What an earlier run left there is removed first. Must be called in a tokio runtime.
pub(crate) fn make_run_dir(dir: &Path, boot_socket: &Path, gid: u32) -> Result<UnixListener, PartError> {
    remove_dir(dir)?;
    make_dir(dir)?;
    bind(boot_socket, gid)
}

/// Binds the socket anew in a directory that is there, where a daemon that died has left its own:
/// root's in a sticky directory, so nobody else could put something in its place.
pub(crate) fn rebind(boot_socket: &Path, gid: u32) -> Result<UnixListener, PartError> {
    remove_file(boot_socket)?;
    bind(boot_socket, gid)
}

fn bind(boot_socket: &Path, gid: u32) -> Result<UnixListener, PartError> {
    let listener = UnixListener::bind(boot_socket).map_err(PartError::io("bind", boot_socket))?;
    chown(boot_socket, None, Some(gid)).map_err(PartError::io("chown", boot_socket))?;
    std::fs::set_permissions(boot_socket, Permissions::from_mode(SOCKET))
        .map_err(PartError::io("set the mode of", boot_socket))?;
    Ok(listener)
}

/// Makes a directory for root alone. One that is there is kept.
pub(crate) fn make_dir(path: &Path) -> Result<(), PartError> {
    DirBuilder::new().recursive(true).mode(PRIVATE).create(path).map_err(PartError::io("make", path))
}

/// Removes a directory with everything in it; nothing there is fine.
pub(crate) fn remove_dir(path: &Path) -> Result<(), PartError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PartError::Io { action: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Removes a file; nothing there is fine.
pub(super) fn remove_file(path: &Path) -> Result<(), PartError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PartError::Io { action: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[tokio::test]
    async fn a_stale_socket_does_not_block_and_removal_is_idempotent() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run/a9fe6402");
        let socket = run.join("vsock.sock_1");
        let own = std::fs::metadata(dir.path()).unwrap().gid();
        drop(make_run_dir(&run, &socket, own).unwrap());
        assert!(socket.exists(), "a dropped listener leaves its file, as a crash does");
        let _listener = make_run_dir(&run, &socket, own).unwrap();
        assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o777, SOCKET);
        assert_eq!(std::fs::metadata(&run).unwrap().mode() & 0o777, PRIVATE);
        remove_dir(&run).unwrap();
        remove_dir(&run).unwrap();
        assert!(!run.exists());
    }

    #[test]
    fn removal_does_not_follow_links() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "").unwrap();
        let home = dir.path().join("home");
        make_dir(&home).unwrap();
        std::os::unix::fs::symlink(&outside, home.join("link")).unwrap();
        remove_dir(&home).unwrap();
        assert!(outside.join("kept").exists());
    }
}
