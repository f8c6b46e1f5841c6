//! Local ends of port forwards. Owns binding TCP and unix sockets, who may connect to the latter,
//! and removing their files; refuses what happens on a connection.

use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::forward_spec::Listen;
use rustix::fs::Mode;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// How often a free port is looked for that is free on both loopback addresses.
const PORT_TRIES: usize = 16;

/// A listening socket.
pub(crate) struct Listener {
    /// Where it listens, with the real port.
    pub(crate) address: String,
    socket: Socket,
}

enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// An accepted connection.
pub(crate) enum Local {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// The next connection. Cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<Local> {
        match &self.socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, _)| Local::Tcp(stream)),
            Socket::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| Local::Unix(stream)),
        }
    }

    fn tcp(listener: TcpListener) -> io::Result<Self> {
        Ok(Self { address: listener.local_addr()?.to_string(), socket: Socket::Tcp(listener) })
    }
}

/// Listens where a spec says; a loopback spec gives one or two listeners on one port.
pub(crate) async fn bind(listen: &Listen) -> Result<Vec<Listener>, Failure> {
    match listen {
        Listen::Unix(path) => bind_unix(path).map(|listener| vec![listener]),
        Listen::Tcp(address, port) => {
            let address = SocketAddr::new(*address, *port);
            bind_tcp(address)
                .await
                .map(|listener| vec![listener])
                .map_err(|e| refused(&address.to_string(), &e))
        }
        Listen::Loopback(0) => bind_free_loopback().await,
        Listen::Loopback(port) => {
            bind_loopback(*port).await.map_err(|(address, e)| refused(&address.to_string(), &e))
        }
    }
}

async fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    Listener::tcp(TcpListener::bind(address).await?)
}

/// Both loopback addresses. `localhost` is resolved to either, so a port of which another
/// program holds one half must not be half ours: its traffic would go to whoever is asked first.
async fn bind_loopback(port: u16) -> Result<Vec<Listener>, (SocketAddr, io::Error)> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let first = bind_tcp(v4).await.map_err(|e| (v4, e))?;
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port_of(&first, port)));
    match bind_tcp(v6).await {
        Ok(second) => Ok(vec![first, second]),
        Err(error) if has_no_ipv6(&error) => Ok(vec![first]),
        Err(error) => Err((v6, error)),
    }
}

fn port_of(listener: &Listener, asked: u16) -> u16 {
    match &listener.socket {
        Socket::Tcp(tcp) => tcp.local_addr().map_or(asked, |address| address.port()),
        Socket::Unix { .. } => asked,
    }
}

/// This machine has no ::1: IPv6 switched off in the kernel or on `lo`.
fn has_no_ipv6(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

async fn bind_free_loopback() -> Result<Vec<Listener>, Failure> {
    let mut last = None;
    for _ in 0..PORT_TRIES {
        match bind_loopback(0).await {
            Ok(listeners) => return Ok(listeners),
            Err((address, error))
                if error.kind() == ErrorKind::AddrInUse
                    && address.ip() != IpAddr::from(Ipv4Addr::LOCALHOST) =>
            {
                last = Some((address, error));
            }
            Err((address, error)) => return Err(refused(&address.to_string(), &error)),
        }
    }
    let (address, error) =
        last.unwrap_or_else(|| ((Ipv6Addr::LOCALHOST, 0).into(), ErrorKind::AddrInUse.into()));
    Err(refused(&address.to_string(), &error))
}

fn refused(address: &str, error: &io::Error) -> Failure {
    let failure = Failure::new("io", ExitCode::Failed, format!("cannot listen on {address}: {error}"));
    match error.kind() {
        ErrorKind::AddrInUse => failure
            .exit(ExitCode::Conflict)
            .hint("another program listens there; choose another port, or 0 for any free one"),
        ErrorKind::PermissionDenied => failure.hint("ports below 1024 need root; choose a higher one"),
        ErrorKind::AddrNotAvailable => failure.hint("listen on an address of this machine (`ip address`)"),
        _ => failure,
    }
}

/// The file of a unix socket that we made. Removed on drop, if it is still that one.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if same {
            // Left behind when the directory became read-only; the next start removes it as stale.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind_unix(path: &Path) -> Result<Listener, Failure> {
    let shown = path.display().to_string();
    remove_stale(path)?;
    // Nobody but this user may connect, from the first moment on (unix(7): the mode counts).
    // The mask is the whole process's; nothing else makes files here.
    let before = rustix::process::umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = bound.map_err(|e| refused(&shown, &e))?;
    let made = std::fs::symlink_metadata(path).map_err(|e| refused(&shown, &e))?;
    let file = SocketFile { path: path.to_owned(), device: made.dev(), inode: made.ino() };
    Ok(Listener { address: shown, socket: Socket::Unix { listener, _file: file } })
}

/// Removes a socket that this user made and nobody listens on; refuses anything else that exists.
fn remove_stale(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let conflict = |why: &str| {
        Failure::new("io", ExitCode::Conflict, format!("cannot listen on {shown}: {why}"))
            .hint("remove it, or choose another path")
    };
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(&shown.to_string(), &error)),
    };
    if !found.file_type().is_socket() {
        return Err(conflict("there is a file that is no socket"));
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(conflict("there is a socket of another user"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|e| refused(&shown.to_string(), &e))
        }
        Ok(_) => Err(conflict("another program listens there")),
        Err(error) => Err(conflict(&format!("it is not known whether anybody listens there ({error})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_loopback_port_is_ours_on_both_addresses_or_not_at_all() {
        let listeners = bind(&Listen::Loopback(0)).await.unwrap_or_else(|f| panic!("{f:?}"));
        let ports: Vec<_> = listeners.iter().map(|listener| port_of(listener, 0)).collect();
        assert!(ports[0] > 0 && ports.iter().all(|port| *port == ports[0]), "{ports:?}");
        let failure = bind(&Listen::Loopback(ports[0])).await.err().expect("taken");
        assert_eq!(failure.exit_code(), ExitCode::Conflict as u8);

        let Ok(half) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else { return };
        let port = half.local_addr().unwrap().port();
        assert!(bind(&Listen::Loopback(port)).await.is_err(), "half of it is another's");
    }

    #[tokio::test]
    async fn a_unix_socket_is_private_and_goes_away_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listen = Listen::Unix(path.clone());
        let listener = bind(&listen).await.unwrap_or_else(|f| panic!("{f:?}"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(bind(&listen).await.is_err(), "somebody listens");
        drop(listener);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "stale, as after a crash");
        let listener = bind(&listen).await.unwrap_or_else(|f| panic!("{f:?}"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(listener);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "another's");
        assert!(bind(&listen).await.is_err(), "no socket");
    }
}
