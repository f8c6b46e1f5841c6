//! A tap's queue as a VMM has it: persistent taps, offloads on and off.
//!
//! Owns: the two requests a VMM makes of a queue. Refuses: frames (`tap`), addresses and link state.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{IntegerSetter, Opcode, ioctl};

use crate::tap::attach;

/// `_IOW('T', 203, int)`, linux/if_tun.h.
const TUNSETPERSIST: Opcode = 0x4004_54cb;
/// `_IOW('T', 208, unsigned int)`, linux/if_tun.h.
const TUNSETOFFLOAD: Opcode = 0x4004_54d0;
/// `TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6`.
const OFFLOADS: usize = 0x7;

/// Makes a tap with `IFF_VNET_HDR` in the calling thread's namespace that stays when its queue, the
/// answer, is closed.
///
/// # Errors
/// Without `CAP_NET_ADMIN` or `/dev/net/tun`, `EBUSY` if the name is taken.
pub fn persistent_tap(name: &str) -> io::Result<File> {
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    if name.len() >= 16 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    attach(&device, name)?;
    set::<TUNSETPERSIST>(&device, 1)?;
    Ok(device)
}

/// Whether whoever reads the queue takes segments larger than the MTU and packets without checksums
/// (`virtio_net_hdr` says how to finish them).
///
/// # Errors
/// If the descriptor is no tap's queue.
pub fn set_offloads(queue: impl AsFd, on: bool) -> io::Result<()> {
    set::<TUNSETOFFLOAD>(queue, if on { OFFLOADS } else { 0 })
}

#[expect(unsafe_code, reason = "no safe wrapper exists for these two requests")]
fn set<const REQUEST: Opcode>(queue: impl AsFd, value: usize) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST and TUNSETOFFLOAD take their argument by value.
    let set = unsafe { IntegerSetter::<REQUEST>::new_usize(value) };
    // SAFETY: as above; on a descriptor of another kind they fail without touching memory.
    unsafe { ioctl(queue.as_fd(), set) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Netns;

    #[test]
    fn a_persistent_tap_outlives_its_queue_and_offloads_can_be_set() {
        let (netns, queue) = Netns::new_with(|| persistent_tap("kept0")).unwrap();
        set_offloads(&queue, true).unwrap();
        set_offloads(&queue, false).unwrap();
        drop(queue);
        let links = netns.check("ip", &["-o", "link"], "").unwrap();
        assert!(links.contains("kept0"), "{links}");
        let no_tap = File::open("/dev/null").unwrap();
        assert!(set_offloads(&no_tap, true).is_err());
    }
}
