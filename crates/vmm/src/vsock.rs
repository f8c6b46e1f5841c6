//! Owns the vsock device process of one microVM (`vhost-device-vsock`) and connections through it.
//! Refuses to trust the run directory's names: who answers a socket is checked.

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::confine::Program;
use crate::error::{Cause, OnPath};

/// The socket of host programs, in the run directory.
pub(crate) const HOST_SOCKET: &str = "vsock.sock";
/// The socket between the VMM and the device, in the run directory.
pub(crate) const DEVICE_SOCKET: &str = "vhost.sock";
/// The guest's own address. Every VM has its own device process, so all may be the same.
const GUEST_CID: u32 = 3;
/// How long the device may take until it listens, on a loaded machine.
const READY_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Between `bind`, which inotify reports, and `listen`, which nothing reports.
const LISTEN_GAP: Duration = Duration::from_millis(1);
/// `OK 4294967295\n`, with room to see that an answer is too long.
const MAX_ANSWER: usize = 32;

/// The device process, with socket names relative to the run directory.
pub(crate) fn program(binary: &Path) -> Program {
    let vm = format!(
        "guest-cid={GUEST_CID},socket={DEVICE_SOCKET},uds-path={HOST_SOCKET},\
         tx-buffer-size=65536,queue-size=1024"
    );
    Program {
        name: "vhost-device-vsock",
        path: binary.to_owned(),
        args: vec![OsString::from("--vm"), vm.into()],
        fds: Vec::new(),
        open_files: 4096,
        // It writes no files at all.
        file_size: Some(0),
    }
}

/// Watches a run directory for the device's socket; made before the device is started.
#[derive(Debug)]
pub(crate) struct Appearance {
    events: AsyncFd<OwnedFd>,
}

impl Appearance {
    pub(crate) fn watch(run_dir: &Path) -> Result<Self, Cause> {
        let queue = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)
            .on("watch", run_dir)?;
        inotify::add_watch(&queue, run_dir, inotify::WatchFlags::CREATE).on("watch", run_dir)?;
        Ok(Self { events: register(queue).on("watch", run_dir)? })
    }

    /// Connects to the device for the VMM as soon as it listens.
    pub(crate) async fn connect(self, run_dir: &Path, uid: u32) -> Result<UnixStream, Cause> {
        let path = run_dir.join(DEVICE_SOCKET);
        let connecting = async {
            loop {
                match UnixStream::connect(&path).await {
                    Ok(stream) => return check_peer(stream, uid, &path),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        self.created(run_dir).await?;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                        sleep(LISTEN_GAP).await;
                    }
                    Err(error) => return Err(Cause::io("connect to", &path, error)),
                }
            }
        };
        timeout(READY_LIMIT, connecting)
            .await
            .unwrap_or(Err(Cause::TimedOut { what: "the vsock device's start", limit: READY_LIMIT }))
    }

    /// Resolves when something new is in the directory.
    async fn created(&self, run_dir: &Path) -> Result<(), Cause> {
        loop {
            let mut ready = self.events.readable().await.on("watch", run_dir)?;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            match inotify::Reader::new(self.events.get_ref(), &mut buffer).next() {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(Cause::io("watch", run_dir, error)),
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio's registration of a descriptor is unsafe")]
pub(crate) fn register(queue: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always gives the same number, which stays open until the
    // `AsyncFd` that owns it has deregistered and dropped it.
    unsafe { AsyncFd::register(queue) }.map_err(Into::into)
}

/// Connects to `port` of the guest through the device's host socket.
pub(crate) async fn connect_guest(path: &Path, uid: u32, port: u32) -> Result<UnixStream, Cause> {
    let connecting = async {
        let stream = UnixStream::connect(path).await.on("connect to", path)?;
        let mut stream = check_peer(stream, uid, path)?;
        let request = format!("CONNECT {port}\n");
        stream.write_all(request.as_bytes()).await.on("write to", path)?;
        let answer = read_answer(&mut stream, path).await?;
        if answer.starts_with("OK ") {
            return Ok(stream);
        }
        Err(Cause::Protocol(format!("the vsock device answered {answer:?} to a connection to port {port}")))
    };
    timeout(CONNECT_LIMIT, connecting)
        .await
        .unwrap_or(Err(Cause::TimedOut { what: "a vsock connection to the guest", limit: CONNECT_LIMIT }))
}

/// One line, byte by byte: what follows it is already the guest's.
async fn read_answer(stream: &mut UnixStream, path: &Path) -> Result<String, Cause> {
    let mut answer = Vec::new();
    while answer.len() < MAX_ANSWER {
        match stream.read_u8().await {
            Ok(b'\n') => return Ok(String::from_utf8_lossy(&answer).into_owned()),
            Ok(byte) => answer.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(Cause::Protocol(
                    "the vsock device closed the connection: nothing listens on that port \
                     in the guest"
                        .into(),
                ));
            }
            Err(error) => return Err(Cause::io("read from", path, error)),
        }
    }
    Err(Cause::Protocol("the vsock device's answer is too long".into()))
}

/// Connects to a socket on which a process of `uid` must be listening.
pub(crate) async fn connect_to(path: &Path, uid: u32) -> Result<UnixStream, Cause> {
    let connecting = async {
        let stream = UnixStream::connect(path).await.on("connect to", path)?;
        check_peer(stream, uid, path)
    };
    timeout(CONNECT_LIMIT, connecting)
        .await
        .unwrap_or(Err(Cause::TimedOut { what: "a connection to the VMM", limit: CONNECT_LIMIT }))
}

fn check_peer(stream: UnixStream, uid: u32, path: &Path) -> Result<UnixStream, Cause> {
    let peer = stream.peer_cred().on("ask who answers", path)?;
    if peer.uid() == uid {
        return Ok(stream);
    }
    Err(Cause::Unsuitable {
        path: path.to_owned(),
        problem: format!("is answered by user {}, not by the VM's {uid}", peer.uid()),
    })
}
