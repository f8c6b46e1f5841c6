//! A slot that is taken back for the next VM: whatever its VMM did to the tap is undone, and a slot in
//! which anything is left goes away instead.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc;

use enisle_net::policy::PolicySpec;
use enisle_net::{Engine, Limits, NetError, Slot};
use enisle_testkit::Netns;
use enisle_testkit::probe::Kind;
use enisle_testkit::world::{ECHO, SERVER};

use crate::rig::{Rig, Vm, claimed, create, nobody_inside};

/// Requests of `if_tun.h` and `sockios.h`.
const TUNSETPERSIST: u64 = 0x4004_54cb;
const TUNSETOWNER: u64 = 0x4004_54cc;
const TUNSETGROUP: u64 = 0x4004_54ce;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETTXFILTER: u64 = 0x4004_54d1;
const TUNGETIFF: u64 = 0x8004_54d2;
const TUNGETSNDBUF: u64 = 0x8004_54d3;
const TUNSETSNDBUF: u64 = 0x4004_54d4;
const TUNATTACHFILTER: u64 = 0x4010_54d5;
const TUNGETVNETHDRSZ: u64 = 0x8004_54d7;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
const TUNSETVNETLE: u64 = 0x4004_54dc;
const TUNGETVNETLE: u64 = 0x8004_54dd;
const TUNSETCARRIER: u64 = 0x4004_54e2;
const SIOCSIFHWADDR: u64 = 0x8924;

/// A request whose argument points to `value`, which the kernel may fill.
#[expect(unsafe_code, reason = "an ioctl, as a hostile VMM makes it")]
fn ask<T>(queue: &OwnedFd, request: u64, value: &mut T) -> io::Result<()> {
    // SAFETY: each `T` here is as large as what the request reads or writes.
    let done = unsafe { libc::ioctl(queue.as_raw_fd(), request, std::ptr::from_mut(value)) };
    if done >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A request that takes its argument by value.
#[expect(unsafe_code, reason = "an ioctl, as a hostile VMM makes it")]
fn set(queue: &OwnedFd, request: u64, value: u64) -> io::Result<()> {
    // SAFETY: these requests do not read memory.
    let done = unsafe { libc::ioctl(queue.as_raw_fd(), request, value) };
    if done >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct sock_filter` that lets nothing through, and the `struct sock_fprog` that names it.
fn attach_filter(queue: &OwnedFd) -> io::Result<()> {
    let drop_all: [u64; 1] = [0x0000_0000_0000_0006];
    let mut program: (u64, u64) = (1, drop_all.as_ptr().addr() as u64);
    ask(queue, TUNATTACHFILTER, &mut program)
}

/// What a tap's queue and `ip -d link` say of it, without what differs from slot to slot.
fn look(slot: &Slot, queue: &OwnedFd) -> Vec<String> {
    let number = |request| {
        let mut value = 0i32;
        ask(queue, request, &mut value).map(|()| value).unwrap()
    };
    let mut flags = [0u8; 40];
    ask(queue, TUNGETIFF, &mut flags).unwrap();
    let inside = Netns::from_fd(slot.netns()).unwrap();
    let link = inside.check("ip", &["-d", "-o", "link", "show", "tap0"], "").unwrap();
    let own_mac = slot.block().host_mac().to_string();
    assert!(!link.contains("<unknown>"), "{link}");
    let shown = link.replace(&own_mac, "its own").split_once(": tap0").unwrap().1.to_owned();
    vec![
        shown,
        format!("{:?}", &flags[16..18]),
        format!(
            "sndbuf {} header {} le {}",
            number(TUNGETSNDBUF),
            number(TUNGETVNETHDRSZ),
            number(TUNGETVNETLE)
        ),
    ]
}

/// Everything a descriptor of the tap allows.
fn vandalise(queue: &OwnedFd) {
    set(queue, TUNSETOWNER, 4711).unwrap();
    set(queue, TUNSETGROUP, 4711).unwrap();
    set(queue, TUNSETOFFLOAD, 7).unwrap();
    ask(queue, TUNSETSNDBUF, &mut 1i32).unwrap();
    ask(queue, TUNSETVNETHDRSZ, &mut 12i32).unwrap();
    ask(queue, TUNSETVNETLE, &mut 1i32).unwrap();
    // Only what is addressed to one address that nobody has.
    ask(queue, TUNSETTXFILTER, &mut [0u8, 0, 1, 0, 2, 0, 0, 0, 0, 9]).unwrap();
    attach_filter(queue).unwrap();
    ask(queue, TUNSETCARRIER, &mut 0i32).unwrap();
}

/// Its hardware address, too.
fn rename(queue: &OwnedFd) {
    let mut address = [0u8; 40];
    address[..4].copy_from_slice(b"tap0");
    // ARPHRD_ETHER, then the address.
    address[16..24].copy_from_slice(&[1, 0, 2, 0, 0, 0, 0, 0x66]);
    ask(queue, SIOCSIFHWADDR, &mut address).unwrap();
}

#[test]
fn what_a_vmm_did_to_its_tap_is_undone() {
    let mut rig = Rig::new(&[PolicySpec::default(), PolicySpec::default()]);
    let fresh = rig.vms.pop().unwrap();
    let Vm { slot, guest } = rig.vms.pop().unwrap();
    drop((guest, fresh.guest));
    let untouched = fresh.slot.open_tap().unwrap();
    let right = look(&fresh.slot, &untouched);
    let queue = slot.open_tap().unwrap();
    assert_eq!(look(&slot, &queue), right, "before anybody did anything");
    vandalise(&queue);
    let wrong = look(&slot, &queue);
    assert!(wrong.iter().zip(&right).filter(|(a, b)| a != b).count() >= 2, "the control: {wrong:#?}");
    drop(queue);
    nobody_inside(&slot);
    let warm = rig.engine.recycle(slot, |_| panic!("it does not go")).unwrap();
    let policy = enisle_net::policy::compile(&PolicySpec::default()).unwrap();
    let slot = rig.engine.claim(warm, "next", &policy).unwrap();
    let queue = slot.open_tap().unwrap();
    assert_eq!(look(&slot, &queue), right, "what the next tenant finds");
    drop(queue);
    nobody_inside(&slot);
    // And it works, in both directions, also a second time.
    let warm = rig.engine.recycle(slot, |_| panic!("it does not go")).unwrap();
    let mut vm = claimed(&rig.engine, warm, &PolicySpec::default());
    for kind in crate::rig::KINDS {
        vm.reaches(kind, SERVER, ECHO);
    }
}

/// Recycles a slot that is not clean: it goes, and its block is free then.
fn goes(engine: &Engine, slot: Slot, why: &str) {
    let (tell, told) = mpsc::channel();
    let error = engine.recycle(slot, move |gone| tell.send(gone).unwrap()).unwrap_err();
    let NetError::Unclean { why: step, .. } = &error else { panic!("{why}: {error}") };
    assert!(step.source.to_string().contains(why), "{why}: {step}: {}", step.source);
    assert!(told.try_recv().is_err(), "{why}: told before it was gone");
    while told.try_recv().map(Result::unwrap).is_err() {
        assert!(engine.see_off(), "{why}");
    }
}

#[test]
fn a_slot_with_anything_left_in_it_goes_away() {
    let mut rig = Rig::new(&[]);
    let block = "169.254.100.0/22".parse::<enisle_net::plan::Range>().unwrap().block(0).unwrap();
    let fresh = |rig: &Rig| {
        let Vm { slot, guest } = create(&rig.world, &rig.engine, block, &PolicySpec::default());
        drop(guest);
        nobody_inside(&slot);
        slot
    };
    let inside = |slot: &Slot| Netns::from_fd(slot.netns()).unwrap();

    let slot = fresh(&rig);
    let socket = inside(&slot).run(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    goes(&rig.engine, slot, "1 sockets or fragments are left");
    drop(socket);

    let slot = fresh(&rig);
    let queue = slot.open_tap().unwrap();
    goes(&rig.engine, slot, "1 sockets or fragments are left");
    drop(queue);

    let slot = fresh(&rig);
    let queue = slot.open_tap().unwrap();
    set(&queue, TUNSETPERSIST, 0).unwrap();
    drop(queue);
    nobody_inside(&slot);
    goes(&rig.engine, slot, "looking for tap0");

    let slot = fresh(&rig);
    rename(&slot.open_tap().unwrap());
    nobody_inside(&slot);
    goes(&rig.engine, slot, "hardware address");

    for (why, program, args) in [
        ("addresses", "ip", &["address", "add", "192.0.2.1/32", "dev", "ve"][..]),
        ("interfaces", "ip", &["link", "set", "ve", "down"]),
        ("interfaces", "ip", &["link", "add", "more", "type", "veth", "peer", "name", "other"]),
        ("neighbours", "ip", &["neigh", "add", "192.0.2.1", "lladdr", "02:00:00:00:00:01", "dev", "tap0"]),
    ] {
        let slot = fresh(&rig);
        inside(&slot).check(program, args, "").unwrap();
        nobody_inside(&slot);
        goes(&rig.engine, slot, why);
    }

    // The control, in the same block: nothing is wrong with the next one.
    let slot = fresh(&rig);
    let warm = rig.engine.recycle(slot, |_| panic!("it does not go")).unwrap();
    rig.vms.push(claimed(&rig.engine, warm, &PolicySpec::default()));
    rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
}

#[test]
fn a_slot_with_a_rate_is_not_used_again() {
    let limits = Limits { mbit_down: Some(100), ..Limits::default() };
    let mut rig = Rig::limited(&[limits]);
    let Vm { slot, guest } = rig.vms.pop().unwrap();
    drop(guest);
    nobody_inside(&slot);
    goes(&rig.engine, slot, "queue of its rate");
}
