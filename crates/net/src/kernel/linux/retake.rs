//! A namespace after its tenant: what is in it, and its tap as it was.
//!
//! Owns: the proof that nobody has anything open in there. Refuses: comparing (`slot::recycle`).

use std::fs;
use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::kernel::netlink_socket::NetlinkSocket;
use crate::kernel::{Answer, Interior, KernelError, TapSpec, tap};
use crate::netlink::route;

/// In the calling thread's namespace; the tap's one queue is its holder's from then on.
pub(super) fn retake(spec: &TapSpec) -> Answer<(Interior, fs::File)> {
    // Before this thread opens any itself.
    nobody_here()?;
    let failed = |what: &'static str| move |e| KernelError::new(what, e);
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE).map_err(failed("opening an rtnetlink socket"))?;
    let interior = look(&mut socket)?;
    if !interior.links.iter().any(|link| link.index == spec.index && link.name == spec.name) {
        // Asked for by its name, it would be made.
        let gone = io::Error::from_raw_os_error(libc::ENODEV);
        return Err(KernelError::new(format!("looking for {}", spec.name), gone));
    }
    let queue = tap::retake(spec.name, spec.owner).map_err(failed("putting a tap back to what it was"))?;
    // Put back, it would be another change, at which the kernel forgets the neighbours of an interface.
    if tap::hardware_address(&queue).map_err(failed("SIOCGIFHWADDR"))? != spec.mac.octets() {
        let changed = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        return Err(KernelError::new(format!("the hardware address of {} was changed", spec.name), changed));
    }
    Ok((interior, queue))
}

fn look(socket: &mut NetlinkSocket) -> Answer<Interior> {
    let mut found = Interior::default();
    socket.dump("RTM_GETLINK", route::links_request(), |m| found.links.extend(route::parse_link(m)))?;
    socket.dump("RTM_GETADDR", route::addresses_request(), |m| {
        found.addresses.extend(route::parse_address(m));
    })?;
    socket.dump("RTM_GETNEIGH", route::neighbours_request(), |m| {
        found.neighbours.extend(route::parse_neighbour(m));
    })?;
    Ok(found)
}

/// No socket is open in here, of whatever family (a queue of the tap is one, too), no connection waits
/// for its end, and no datagram for its rest (proc_pid_net(5), `sockstat`).
fn nobody_here() -> Answer<()> {
    let text = fs::read_to_string("/proc/thread-self/net/sockstat");
    let text = text.map_err(|e| KernelError::new("reading /proc/net/sockstat", e))?;
    match left_open(&text) {
        Some(0) => Ok(()),
        count => {
            let count = count.map_or_else(|| "an unknown number of".to_owned(), |count| count.to_string());
            let busy = io::Error::from_raw_os_error(libc::EBUSY);
            Err(KernelError::new(format!("{count} sockets or fragments are left in the namespace"), busy))
        }
    }
}

/// Sockets, closing connections and fragments in the file's text; `None` where it says nothing of them.
fn left_open(text: &str) -> Option<u64> {
    let number = |line: &str, key: &str| -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(line))?;
        let mut words = line.split_whitespace();
        words.by_ref().find(|word| *word == key)?;
        words.next()?.parse().ok()
    };
    Some(number("sockets:", "used")? + number("TCP:", "tw")? + number("FRAG:", "inuse")?)
}

#[cfg(test)]
mod tests {
    use super::left_open;

    #[test]
    fn whatever_is_left_counts() {
        let text = |used, tw, frag| {
            format!(
                "sockets: used {used}\nTCP: inuse 0 orphan 7 tw {tw} alloc 9 mem 0\nUDP: inuse 0 mem 0\n\
                 FRAG: inuse {frag} memory 0\n"
            )
        };
        assert_eq!(left_open(&text(0, 0, 0)), Some(0), "orphans are the whole machine's");
        for (used, tw, frag) in [(1, 0, 0), (0, 1, 0), (0, 0, 1)] {
            assert_eq!(left_open(&text(used, tw, frag)), Some(1));
        }
        assert_eq!(left_open("sockets: used 0\n"), None, "what is not said is not proven");
    }
}
