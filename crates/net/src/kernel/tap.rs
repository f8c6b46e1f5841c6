//! Taps: `/dev/net/tun` and its requests (`if_tun.h`, Documentation/networking/tuntap.rst).
//!
//! Owns: making a tap persistent with a chosen index, opening a queue of it. Refuses: addresses,
//! MTU, link state (rtnetlink does those), offloads (whoever reads the queue sets them).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl, opcode};

const DEVICE: &str = "/dev/net/tun";
const TUNSETIFF: Opcode = opcode::write::<libc::c_int>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<libc::c_int>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<libc::c_int>(b'T', 204);
const TUNSETGROUP: Opcode = opcode::write::<libc::c_int>(b'T', 206);
const TUNSETIFINDEX: Opcode = opcode::write::<libc::c_uint>(b'T', 218);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFNAMSIZ: usize = 16;

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
    set_index(device, index)?;
    attach(device, name)?;
    let number = |n: u32| usize::try_from(n).map_err(io::Error::other);
    set::<TUNSETOWNER>(device, number(owner.0)?)?;
    set::<TUNSETGROUP>(device, number(owner.1)?)?;
    set::<TUNSETPERSIST>(device, 1)
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

#[expect(unsafe_code, reason = "an ioctl")]
fn set_index(device: &File, index: u32) -> io::Result<()> {
    // SAFETY: TUNSETIFINDEX reads one unsigned int.
    let set = unsafe { Setter::<TUNSETIFINDEX, u32>::new(index) };
    // SAFETY: as above; the descriptor is a tun device's.
    unsafe { ioctl(device.as_fd(), set) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "an ioctl")]
fn set<const REQUEST: Opcode>(device: &File, value: usize) -> io::Result<()> {
    // SAFETY: TUNSETOWNER, TUNSETGROUP and TUNSETPERSIST take their argument by value.
    let set = unsafe { IntegerSetter::<REQUEST>::new_usize(value) };
    // SAFETY: as above; the descriptor is a tun device's.
    unsafe { ioctl(device.as_fd(), set) }?;
    Ok(())
}
