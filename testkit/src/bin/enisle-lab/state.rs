//! A world held by a process, and its description in a file.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use enisle_testkit::{Netns, World, world};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};

/// What `up` writes: everything another process needs to enter the world.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// The process that holds the world; it ends with it.
    pid: u32,
    /// Paths that setns(2) takes, by name.
    namespaces: BTreeMap<String, PathBuf>,
    /// Addresses of the world, by what they are.
    addresses: BTreeMap<String, Ipv4Addr>,
}

impl State {
    fn of(world: &World) -> State {
        let pid = std::process::id();
        let path = |ns: &Netns| format!("/proc/{pid}/fd/{}", ns.as_fd().as_raw_fd()).into();
        let addresses = [
            ("uplink", world::UPLINK),
            ("router", world::ROUTER),
            ("neighbour", world::NEIGHBOUR),
            ("server", world::SERVER),
            ("other_server", world::OTHER_SERVER),
            ("resolver", world::RESOLVER),
            ("host_lan", world::HOST_LAN),
            ("lan", world::LAN),
            ("host_lan_2", world::HOST_LAN_2),
            ("lan_2", world::LAN_2),
            ("host_docker", world::HOST_DOCKER),
            ("metadata", world::METADATA),
        ];
        State {
            pid,
            namespaces: world.namespaces().map(|(n, ns)| (n.to_owned(), path(ns))).into(),
            addresses: addresses.map(|(n, a)| (n.to_owned(), a)).into(),
        }
    }

    pub(crate) fn read(file: &Path) -> anyhow::Result<State> {
        let text = std::fs::read(file)
            .with_context(|| format!("cannot read {}; is `enisle-lab up` running?", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no lab state", file.display()))
    }

    pub(crate) fn namespace(&self, name: &str) -> anyhow::Result<Netns> {
        let Some(path) = self.namespaces.get(name) else {
            let known: Vec<_> = self.namespaces.keys().map(String::as_str).collect();
            bail!("there is no namespace `{name}`; there are {}", known.join(", "));
        };
        let gone = || format!("the world of process {} is gone; start `enisle-lab up`", self.pid);
        Netns::open(path).with_context(gone)
    }

    /// Visible at once with all of its content, for others wait for the file.
    fn write(&self, file: &Path) -> anyhow::Result<()> {
        let part = file.with_extension("part");
        std::fs::write(&part, serde_json::to_vec_pretty(self)?)
            .and_then(|()| std::fs::rename(&part, file))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Builds a world, describes it in `file`, and holds it until told to stop.
pub(crate) fn hold(file: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot wait for signals")?;
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let world = World::new()?;
        State::of(&world).write(file)?;
        eprintln!("enisle-lab: the world is up, described in {}", file.display());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stdin_closes() => {}
        }
        drop(world);
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", file.display()))
            }
            _ => Ok(()),
        }
    });
    // A read of stdin may still block a thread; nothing depends on it.
    runtime.shutdown_background();
    ended
}

/// Ends when a pipe or socket on stdin does. A terminal or /dev/null never ends it.
async fn stdin_closes() {
    let watched = rustix::fs::fstat(rustix::stdio::stdin())
        .map(|s| matches!(FileType::from_raw_mode(s.st_mode), FileType::Fifo | FileType::Socket));
    if watched.unwrap_or(false) {
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0; 256];
        while stdin.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    } else {
        std::future::pending::<()>().await;
    }
}
