//! What the kernel says about this process and the host's connection tracking. What cannot be read is left out.

use rustix::process::{Resource, getrlimit};
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// Figures of one moment.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Host {
    pub(super) resident_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    /// Seconds since the epoch.
    pub(super) started: Option<f64>,
    /// Of all that the host tracks, microVMs' or not.
    pub(super) conntrack: Option<u64>,
    pub(super) conntrack_limit: Option<u64>,
}

impl Host {
    pub(super) fn read() -> Self {
        let (conntrack, conntrack_limit) = enisle_net::survey::tracked_flows();
        Self {
            resident_bytes: resident(),
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64),
            max_fds: getrlimit(Resource::Nofile).maximum,
            started: started(),
            conntrack,
            conntrack_limit,
        }
    }
}

fn resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The directory of a process in `/proc` is as old as the process.
fn started() -> Option<f64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    let ticks = enisle_vmm::start_ticks(std::process::id());
    // USER_HZ, which Linux shows to programs everywhere.
    let since_boot = f64::from(u32::try_from(ticks / 100).ok()?);
    Some((now - uptime + since_boot).floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        let host = Host::read();
        assert!(host.resident_bytes.unwrap() > 1 << 20);
        assert!(host.open_fds.unwrap() > 2);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - host.started.unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
