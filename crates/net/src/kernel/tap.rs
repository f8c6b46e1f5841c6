//! Taps: `/dev/net/tun` and its requests (`if_tun.h`, Documentation/networking/tuntap.rst).
//!
//! Owns: making a tap persistent with a chosen index, opening a queue of it, putting it back to what
//! it was. Refuses: addresses, MTU, link state (rtnetlink does those), offloads (whoever reads the
//! queue sets them).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};

const DEVICE: &str = "/dev/net/tun";
const TUNSETIFF: Opcode = opcode::write::<libc::c_int>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<libc::c_int>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<libc::c_int>(b'T', 204);
const TUNSETGROUP: Opcode = opcode::write::<libc::c_int>(b'T', 206);
const TUNSETOFFLOAD: Opcode = opcode::write::<libc::c_uint>(b'T', 208);
const TUNSETTXFILTER: Opcode = opcode::write::<libc::c_uint>(b'T', 209);
const TUNSETSNDBUF: Opcode = opcode::write::<libc::c_int>(b'T', 212);
const TUNDETACHFILTER: Opcode = opcode::write::<[u64; 2]>(b'T', 214);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<libc::c_int>(b'T', 216);
const TUNSETIFINDEX: Opcode = opcode::write::<libc::c_uint>(b'T', 218);
const TUNSETVNETLE: Opcode = opcode::write::<libc::c_int>(b'T', 220);
const TUNSETVNETBE: Opcode = opcode::write::<libc::c_int>(b'T', 222);
const TUNSETSTEERINGEBPF: Opcode = opcode::read::<libc::c_int>(b'T', 224);
const TUNSETFILTEREBPF: Opcode = opcode::read::<libc::c_int>(b'T', 225);
const TUNSETCARRIER: Opcode = opcode::write::<libc::c_int>(b'T', 226);
/// `struct virtio_net_hdr`, what a tap begins with.
const VNET_HDR_SIZE: libc::c_int = 10;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFNAMSIZ: usize = 16;
const SIOCETHTOOL: Opcode = libc::SIOCETHTOOL as Opcode;
/// `ETHTOOL_GLINK` of `linux/ethtool.h`.
const ETHTOOL_GLINK: u32 = 0x0a;

/// `struct ifreq`, as TUNSETIFF reads it.
#[repr(C)]
struct Ifreq {
    name: [u8; IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// A descriptor bound to the calling thread's namespace, wherever it is used afterwards.
pub(super) fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE)
}

/// Makes the tap through `device` and leaves it in place when `device` is closed. An owner lets an
/// unprivileged VMM open a queue by itself.
pub(super) fn create(device: &File, name: &str, index: u32, owner: (u32, u32)) -> io::Result<()> {
    point::<TUNSETIFINDEX, _>(device, index)?;
    attach(device, name)?;
    set_owner(device, owner)?;
    set::<TUNSETPERSIST>(device, 1)
}

/// Binds a new descriptor to the tap `name`, which must exist and have no queue in use, and puts
/// everything back that whoever had its queue may have changed through it (`__tun_chr_ioctl` of
/// `drivers/net/tun.c`), but for its hardware address.
pub(super) fn retake(name: &str, owner: (u32, u32)) -> io::Result<File> {
    let device = open_device()?;
    attach(&device, name)?;
    set_owner(&device, owner)?;
    set::<TUNSETPERSIST>(&device, 1)?;
    // By value: no offloads.
    set::<TUNSETOFFLOAD>(&device, 0)?;
    point::<TUNDETACHFILTER, _>(&device, [0u64; 2])?;
    point::<TUNSETTXFILTER, _>(&device, [0u16; 2])?;
    point::<TUNSETVNETHDRSZ, _>(&device, VNET_HDR_SIZE)?;
    point::<TUNSETVNETLE, _>(&device, 0)?;
    point::<TUNSETSNDBUF, _>(&device, i32::MAX)?;
    point::<TUNSETSTEERINGEBPF, _>(&device, -1)?;
    point::<TUNSETFILTEREBPF, _>(&device, -1)?;
    point::<TUNSETCARRIER, _>(&device, 1)?;
    // Where the kernel has no such byte order (CONFIG_TUN_VNET_CROSS_LE), nobody has set it.
    match point::<TUNSETVNETBE, _>(&device, 0) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
        done => done?,
    }
    Ok(device)
}

fn set_owner(device: &File, owner: (u32, u32)) -> io::Result<()> {
    let number = |n: u32| usize::try_from(n).map_err(io::Error::other);
    set::<TUNSETOWNER>(device, number(owner.0)?)?;
    set::<TUNSETGROUP>(device, number(owner.1)?)
}

/// The hardware address of the tap that `device` is a queue of.
#[expect(unsafe_code, reason = "an ioctl")]
pub(super) fn hardware_address(device: &File) -> io::Result<[u8; 6]> {
    /// As its number says nothing of a direction (`sockios.h`).
    const SIOCGIFHWADDR: Opcode = 0x8927;
    let mut request = Ifreq { name: [0; IFNAMSIZ], flags: 0, rest: [0; 22] };
    // SAFETY: SIOCGIFHWADDR reads and writes a `struct ifreq`, 40 bytes on 64-bit; `request` lives on.
    let get = unsafe { Updater::<SIOCGIFHWADDR, Ifreq>::new(&mut request) };
    // SAFETY: as above; the descriptor is a tun device's.
    unsafe { ioctl(device.as_fd(), get) }?;
    // A `struct sockaddr`: its family, in the place of the flags, then the address.
    request.rest.first_chunk().copied().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// `struct ethtool_value` and the `struct ifreq` that leads to it.
#[repr(C)]
struct LinkRequest<'a> {
    name: [u8; IFNAMSIZ],
    value: &'a mut [u32; 2],
    rest: [u8; 16],
}

/// Has the tap's transmit queue in use, now that somebody holds its other end; in the calling thread's namespace.
///
/// The kernel notes a carrier that came and puts the queue to use from a work queue later (`linkwatch_do_dev`); a frame
/// sent before that is dropped. It catches up before it says whether there is a link (`ethtool_op_get_link`).
#[expect(unsafe_code, reason = "an ioctl")]
pub(super) fn settle(name: &str) -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let mut value = [ETHTOOL_GLINK, 0];
    let mut request = LinkRequest { name: [0; IFNAMSIZ], value: &mut value, rest: [0; 16] };
    for (to, from) in request.name[..IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: SIOCETHTOOL reads a `struct ifreq`, 40 bytes on 64-bit, and through its pointer, after 16 bytes, reads and
    // writes the two numbers of a `struct ethtool_value`; both live on.
    let ask = unsafe { Updater::<SIOCETHTOOL, LinkRequest<'_>>::new(&mut request) };
    // SAFETY: as above.
    unsafe { ioctl(&socket, ask) }?;
    if value[1] == 0 { Err(io::Error::from_raw_os_error(libc::ENOLINK)) } else { Ok(()) }
}

/// Binds `device` to the tap `name`, which is made where it does not exist.
#[expect(unsafe_code, reason = "an ioctl")]
pub(super) fn attach(device: &File, name: &str) -> io::Result<()> {
    let mut request = Ifreq { name: [0; IFNAMSIZ], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    for (to, from) in request.name[..IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, 40 bytes on 64-bit; the kernel copies
    // it, and the name is NUL-terminated because its last byte is never written.
    let set = unsafe { Setter::<TUNSETIFF, Ifreq>::new(request) };
    // SAFETY: as above; the descriptor is a tun device's.
    unsafe { ioctl(device.as_fd(), set) }?;
    Ok(())
}

/// A request that reads a `T` where its argument points.
#[expect(unsafe_code, reason = "an ioctl")]
fn point<const REQUEST: Opcode, T>(device: &File, value: T) -> io::Result<()> {
    // SAFETY: TUNSETIFINDEX, TUNSETVNETHDRSZ, TUNSETVNETLE, TUNSETVNETBE, TUNSETSNDBUF, TUNSETCARRIER and
    // the two of BPF read one int; TUNDETACHFILTER reads nothing of its `struct sock_fprog` (16 bytes);
    // TUNSETTXFILTER reads a `struct tun_filter`, and behind it as many addresses as that says: none.
    let set = unsafe { Setter::<REQUEST, T>::new(value) };
    // SAFETY: as above; the descriptor is a tun device's.
    unsafe { ioctl(device.as_fd(), set) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "an ioctl")]
fn set<const REQUEST: Opcode>(device: &File, value: usize) -> io::Result<()> {
    // SAFETY: TUNSETOWNER, TUNSETGROUP, TUNSETPERSIST and TUNSETOFFLOAD take their argument by value.
    let set = unsafe { IntegerSetter::<REQUEST>::new_usize(value) };
    // SAFETY: as above; the descriptor is a tun device's.
    unsafe { ioctl(device.as_fd(), set) }?;
    Ok(())
}
