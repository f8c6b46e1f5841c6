//! A namespace after its tenant: what is in it, and its tap as it was.
//!
//! Owns: the proof that nobody has anything open in there, and that no packet is on its way into it any
//! more. Refuses: comparing (`slot::recycle`).

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::kernel::netlink_socket::NetlinkSocket;
use crate::kernel::{Answer, Interior, KernelError, TapSpec, tap};
use crate::netlink::route::{self, Change};

/// How often each CPU's backlog is looked at before the slot counts as busy, and how long in between.
const LOOKS: u32 = 50;
const BETWEEN: Duration = Duration::from_millis(1);

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
    // While nothing holds the tap's queue: what still arrives has nowhere to go.
    drain(&mut socket, spec.index)?;
    let queue = tap::retake(spec.name, spec.owner).map_err(failed("putting a tap back to what it was"))?;
    // Put back, it would be another change, at which the kernel forgets the neighbours of an interface.
    if tap::hardware_address(&queue).map_err(failed("SIOCGIFHWADDR"))? != spec.mac.octets() {
        let changed = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        return Err(KernelError::new(format!("the hardware address of {} was changed", spec.name), changed));
    }
    tap::settle(spec.name).map_err(failed("putting a tap's queue to use"))?;
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

/// Waits until no packet is on its way into this namespace that was sent on before the last tenant's
/// flows were forgotten. Such a packet waits in the backlog of a CPU, in front of the judge, for as long
/// as a busy host lets it; the judge of the next tenant would take it for one of theirs.
///
/// First every CPU leaves the packet it was at: what it found a flow for is in a backlog then, or gone.
/// Then each backlog is seen empty, and at last every CPU leaves the packet that it had taken out of it.
/// Both waits are changes of the tap's queue, which also take away what waits in there.
fn drain(socket: &mut NetlinkSocket, tap: u32) -> Answer<()> {
    let mut length = None;
    socket.dump("RTM_GETLINK", route::link_request(tap), |m| {
        length = route::parse_queue_length(m).map(|(_, length)| length);
    })?;
    let length = length.ok_or_else(|| unknown("the tap's queue length"))?;
    let mut set = |length| {
        let change = Change::QueueLength(tap, length);
        socket.request(change.what(), change.message())
    };
    set(length + 1)?;
    backlogs_were_empty(|| fs::read_to_string("/proc/thread-self/net/softnet_stat"))?;
    set(length)
}

/// Sees the backlog of each CPU empty once; `look` reads the kernel's text.
fn backlogs_were_empty(mut look: impl FnMut() -> io::Result<String>) -> Answer<()> {
    let mut busy: Option<Vec<bool>> = None;
    for number in 0..LOOKS {
        if number > 0 {
            // Nobody tells of an empty backlog. Most are at the first look.
            thread::sleep(BETWEEN);
        }
        let text = look().map_err(|e| KernelError::new("reading /proc/net/softnet_stat", e))?;
        let now = waiting(&text).ok_or_else(|| unknown("the backlogs of packets"))?;
        let still = match busy {
            // A CPU that went or came meanwhile: what was seen belongs to another line.
            Some(before) if before.len() == now.len() => {
                before.iter().zip(&now).map(|(before, now)| *before && *now).collect()
            }
            _ => now,
        };
        if !still.contains(&true) {
            return Ok(());
        }
        busy = Some(still);
    }
    let error = io::Error::from_raw_os_error(libc::EBUSY);
    Err(KernelError::new("packets wait in front of the namespace", error))
}

/// Whether packets wait, for each CPU: the twelfth number of its line (`softnet_seq_show`, since 5.10).
/// `None` where the kernel does not say.
fn waiting(text: &str) -> Option<Vec<bool>> {
    const BACKLOG: usize = 11;
    let line = |line: &str| {
        let number = line.split_whitespace().nth(BACKLOG)?;
        u32::from_str_radix(number, 16).ok().map(|packets| packets > 0)
    };
    text.lines().map(line).collect::<Option<Vec<_>>>().filter(|lines| !lines.is_empty())
}

/// What is not known is not proven.
fn unknown(what: &str) -> KernelError {
    KernelError::new(format!("the kernel does not tell {what}"), io::Error::from_raw_os_error(libc::ENOTSUP))
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
    use super::{LOOKS, backlogs_were_empty, left_open, waiting};

    /// A CPU's line of `softnet_stat`.
    fn cpu(backlog: &str) -> String {
        format!("0a841bf9 00000000 00000020 {} {backlog} 00000001 0 0\n", "0 ".repeat(8))
    }

    #[test]
    fn every_backlog_has_to_be_seen_empty_once() {
        let verdict = |texts: &[String]| {
            let mut looks = 0;
            let seen = backlogs_were_empty(|| {
                looks += 1;
                Ok(texts[(looks - 1).min(texts.len() - 1)].clone())
            });
            (seen.err().and_then(|e| e.errno()), looks)
        };
        let two = |a, b| cpu(a) + &cpu(b);
        assert_eq!(verdict(&[two("0", "0")]), (None, 1));
        assert_eq!(verdict(&[two("3", "0"), two("0", "9")]), (None, 2), "not both at the same time");
        assert_eq!(verdict(&[two("0", "1")]), (Some(libc::EBUSY), LOOKS as usize));
        let gone = [two("0", "1"), cpu("1"), cpu("0")];
        assert_eq!(verdict(&gone), (None, 3), "what was seen of a CPU that went is not believed");
        assert_eq!(verdict(&["0a841bf9 00000000\n".to_owned()]), (Some(libc::ENOTSUP), 1));
    }

    #[test]
    fn a_backlog_is_read_from_its_column() {
        assert_eq!(waiting(&cpu("00000000")), Some(vec![false]), "the CPU's number is not its backlog");
        assert_eq!(waiting(&(cpu("0000001f") + &cpu("0"))), Some(vec![true, false]));
        assert_eq!(waiting("0a841bf9 00000000 00000020 0 0 0 0 0 0 0 0\n"), None, "before Linux 5.10");
        assert_eq!(waiting(""), None);
    }

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
