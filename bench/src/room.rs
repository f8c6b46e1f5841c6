//! Where the benchmark runs: mounts of its own, packages that are there, enough descriptors.
//!
//! Owns: the private mount namespace with an empty `/run` and `/var/lib/cni`, so that what peers
//! write vanishes with the process. Refuses: installing anything.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Says that this process has mounts of its own already.
const INSIDE: &str = "ENISLE_BENCH_MOUNTS";
/// Debian's packages and a file that each of them brings.
const ALWAYS: [(&str, &str); 4] = [
    ("iproute2", "/usr/sbin/ip"),
    ("nftables", "/usr/sbin/nft"),
    ("bpftool", "/usr/sbin/bpftool"),
    ("util-linux", "/usr/bin/unshare"),
];
const PEERS: [(&str, &str); 3] = [
    ("iptables", "/usr/sbin/iptables"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("netavark", "/usr/lib/podman/netavark"),
];
/// A thousand slots hold two each.
const DESCRIPTORS: u64 = 16_384;

/// Starts this program again with mounts of its own, and answers its exit code; `None` in there.
///
/// # Errors
/// Without root or `unshare`.
pub(crate) fn enter_own() -> Result<Option<ExitCode>> {
    if std::env::var_os(INSIDE).is_some() {
        for place in ["/run", "/var/lib/cni"] {
            if !Path::new(place).exists() {
                continue;
            }
            mount("tmpfs", place, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)
                .with_context(|| format!("cannot mount an empty {place}"))?;
        }
        return Ok(None);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the benchmark makes network namespaces: run it as root");
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "yes")
        .status()
        .context("cannot run unshare; install util-linux")?;
    Ok(Some(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// All packages that are missing, in one line.
///
/// # Errors
/// If there are any: a peer that is not run is not compared with.
pub(crate) fn need_packages(peers: bool) -> Result<()> {
    let wanted = ALWAYS.iter().chain(PEERS.iter().filter(|_| peers));
    let missing: Vec<&str> =
        wanted.filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name).collect();
    if !missing.is_empty() {
        bail!("Debian packages are missing: apt-get install {}", missing.join(" "));
    }
    Ok(())
}

/// Room for a thousand slots.
///
/// # Errors
/// If the hard limit is lower and may not be raised.
pub(crate) fn raise_descriptors() -> Result<()> {
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|n| n >= DESCRIPTORS) {
        return Ok(());
    }
    let maximum = now.maximum.map(|m| m.max(DESCRIPTORS));
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum })
        .with_context(|| format!("cannot raise the limit of open files to {DESCRIPTORS}"))
}
