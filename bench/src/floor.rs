//! The kernel's floor: what no slot can be had without.
//!
//! Owns: the bare triple (a namespace, a tap in it, a veth born in place), made as cheaply as the
//! kernel allows: one thread, no names, one queue, no address, nothing up. Refuses: everything that
//! makes a slot of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use anyhow::{Context as _, Result};
use enisle_testkit::Netns;
use enisle_testkit::queue::persistent_tap;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
/// `NLM_F_REQUEST | NLM_F_ACK`, and `NLM_F_CREATE | NLM_F_EXCL`.
const REQUEST: u16 = 0x5;
const CREATE: u16 = 0x600;
/// Indexes far from those of slots and of the world's own links.
const FIRST_INDEX: u32 = 0x1000_0000;
/// `struct nlmsghdr` and `struct ifinfomsg`.
const HEADER: usize = 16;
const IFINFO: usize = 16;

/// Makes bare triples in one host.
pub(crate) struct Floor {
    route: Socket,
}

/// One of them. The veth goes with the namespace.
pub(crate) struct Triple {
    index: u32,
    _netns: Netns,
    _queue: File,
}

impl Floor {
    /// Opens the one socket that is used for all.
    pub(crate) fn new(host: &Netns) -> Result<Floor> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        Ok(Floor { route: host.run(open).context("open an rtnetlink socket")? })
    }

    /// unshare, tap, veth in place.
    pub(crate) fn create(&self, i: u32) -> Result<Triple> {
        let (netns, queue) = Netns::new_with(|| persistent_tap("tap0"))?;
        let index = FIRST_INDEX + i;
        self.request(veth(index, &format!("bare{i}"), &netns)).with_context(|| format!("make veth {i}"))?;
        Ok(Triple { index, _netns: netns, _queue: queue })
    }

    /// `RTM_DELLINK` of the veth, as everybody removes one; then the rest. Returns when the veth is gone;
    /// the namespace goes by itself, later.
    pub(crate) fn remove(&self, triple: Triple) -> Result<()> {
        let mut message = message(DELLINK, 0);
        message[HEADER + 4..HEADER + 8].copy_from_slice(&triple.index.to_ne_bytes());
        self.request(message).with_context(|| format!("delete veth {}", triple.index))
    }

    /// Sends, and waits for the acknowledgement.
    fn request(&self, mut message: Vec<u8>) -> io::Result<()> {
        let length = u32::try_from(message.len()).map_err(io::Error::other)?;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        self.route.send(&message, 0)?;
        let mut answer = Vec::with_capacity(4096);
        self.route.recv(&mut answer, 0)?;
        let code = answer.get(HEADER..HEADER + 4).and_then(|b| b.try_into().ok());
        match code.map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }
}

fn message(kind: u16, flags: u16) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + IFINFO];
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
    bytes
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn named(name: &str) -> Vec<u8> {
    let queues = [IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES].map(|kind| attribute(kind, &1u32.to_ne_bytes()));
    [attribute(IFLA_IFNAME, format!("{name}\0").as_bytes()), queues.concat()].concat()
}

/// A veth whose peer is born in `netns`: nothing is moved, so nothing waits.
fn veth(index: u32, name: &str, netns: impl AsFd) -> Vec<u8> {
    let fd = netns.as_fd().as_raw_fd();
    let peer = [vec![0; IFINFO], named("ve"), attribute(IFLA_NET_NS_FD, &fd.to_ne_bytes())].concat();
    let data = attribute(IFLA_INFO_DATA, &attribute(VETH_INFO_PEER, &peer));
    let info = [attribute(IFLA_INFO_KIND, b"veth\0"), data].concat();
    let mut message = message(NEWLINK, CREATE);
    message[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
    message.extend(named(name));
    message.extend(attribute(IFLA_LINKINFO, &info));
    message
}
