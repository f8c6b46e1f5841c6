//! A daemon that is killed and started again: slots whose VMs live are taken over, and their
//! packets never notice.

use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use enisle_net::plan::{Block, Range};
use enisle_net::policy::{CompiledPolicy, PolicySpec, compile};
use enisle_net::{Engine, EngineConfig, Limits, NetError, SlotSpec};
use enisle_testkit::flow::Flow;
use enisle_testkit::frame::{self, Body, Seen};
use enisle_testkit::probe::{Answer, Kind};
use enisle_testkit::tap::{Ident, TapGuest, plain_tap};
use enisle_testkit::world::{CANARY, ECHO, LAN, OTHER_SERVER, SERVER};
use enisle_testkit::{Netns, World};

const LIMIT: Duration = Duration::from_secs(5);

fn config() -> EngineConfig {
    EngineConfig { scope: "00c0de01".parse().unwrap(), ranges: vec!["169.254.100.0/22".parse().unwrap()] }
}

fn block(i: u32) -> Block {
    "169.254.100.0/22".parse::<Range>().unwrap().block(i).unwrap()
}

fn policy(drop: &[&str]) -> CompiledPolicy {
    let drop = drop.iter().map(|r| r.parse().unwrap()).collect();
    compile(&PolicySpec { drop, allow: Vec::new() }).unwrap()
}

fn spec<'a>(i: u32, policy: &'a CompiledPolicy) -> SlotSpec<'a> {
    SlotSpec {
        block: block(i),
        vm_name: "survivor",
        mtu: 1500,
        policy,
        tap_owner: (0, 0),
        limits: Limits::default(),
    }
}

fn usual(i: u32) -> (Block, Limits) {
    (block(i), Limits::default())
}

/// Three slots of a daemon that is dead, each namespace held as a VMM holds its own.
fn survivors(host: &Netns) -> Vec<Netns> {
    let own = std::env::current_exe().unwrap();
    let program = own.ancestors().nth(2).unwrap().join("examples/hold_slots");
    let mut child: Child = host.run(|| Command::new(&program).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.find(|line| line.as_ref().unwrap().starts_with("namespaces:")).unwrap().unwrap();
    let held = said
        .split_whitespace()
        .skip(1)
        .map(|fd| Netns::open(format!("/proc/{}/fd/{fd}", child.id()).as_ref()).unwrap());
    let held: Vec<Netns> = held.collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(held.len(), 3);
    held
}

fn guest(i: u32, netns: &Netns) -> TapGuest {
    let block = block(i);
    let ident = Ident {
        mac: block.guest_mac().octets(),
        ip: block.guest(),
        gateway_mac: block.host_mac().octets(),
        gateway: block.gateway(),
    };
    TapGuest::new(plain_tap(netns, "tap0").unwrap(), ident).unwrap()
}

/// A descriptor as `/proc/PID/ns/net` of a VMM gives one.
fn fd_of(netns: &Netns) -> OwnedFd {
    netns.run(|| enisle_net::netns::current().unwrap())
}

/// Sends numbered datagrams to an echo service until `done` says so; which came back.
fn stream(guest: &mut TapGuest, mut done: impl FnMut() -> bool) -> (u32, Vec<u32>) {
    let (port, mut sent, mut back) = (guest.fresh_port(), 0_u32, Vec::new());
    let mut take = |guest: &mut TapGuest, limit| {
        while let Some(frame) = guest.receive(limit) {
            if let Some(Seen { ip: Some((SERVER, _, Body::Udp { to, data, .. })), .. }) = Seen::of(frame)
                && to == port
                && let Ok(number) = data[..].try_into()
            {
                back.push(u32::from_be_bytes(number));
            }
        }
    };
    let mut last = false;
    while !last {
        last = done();
        let datagram = frame::udp(guest.to(SERVER), port, ECHO, &sent.to_be_bytes());
        guest.send(&datagram).unwrap();
        sent += 1;
        take(guest, Duration::from_millis(1));
    }
    take(guest, Duration::from_secs(2));
    back.sort_unstable();
    (sent, back)
}

#[test]
fn an_adopted_slots_packets_pass_on_and_what_was_refused_stays_refused() {
    let world = World::new().unwrap();
    let held = survivors(&world.host);
    let mut guest_0 = guest(0, &held[0]);
    assert!(guest_0.ask(Kind::Udp, SERVER, ECHO, LIMIT).reached(), "the dead daemon's judge still judges");
    assert!(guest_0.ask(Kind::Tcp, LAN, CANARY, LIMIT).refused());
    let mut flow = Flow::open(&mut guest_0, SERVER, ECHO, LIMIT).unwrap();
    let fds = [fd_of(&held[0]), fd_of(&held[1])];
    let policy = policy(&[]);
    std::thread::scope(|scope| {
        let daemon = scope.spawn(|| {
            let adopt = || {
                let engine = Engine::open_beside(config(), &[usual(0), usual(1)]).unwrap();
                let slots: Vec<_> =
                    (0..).zip(fds).map(|(i, fd)| engine.adopt(&spec(i, &policy), fd).unwrap()).collect();
                // The third VM is dead: its slot goes.
                assert_eq!(engine.reclaim().unwrap(), 1);
                (engine, slots)
            };
            world.host.run(adopt)
        });
        let (sent, back) = stream(&mut guest_0, || daemon.is_finished());
        let (engine, slots) = daemon.join().unwrap();
        assert!(sent > 10, "{sent}");
        assert_eq!(lost(sent, &back), [0_u32; 0], "lost while a daemon was started");
        assert!(flow.echo(&mut guest_0, b"still here", LIMIT).reached());
        for (addr, port) in [(LAN, CANARY), (block(1).guest(), 22)] {
            assert!(guest_0.ask(Kind::Tcp, addr, port, LIMIT).refused(), "{addr}:{port}");
        }
        let mut reports = engine.reports().unwrap();
        assert!(guest_0.ask(Kind::Tcp, LAN, CANARY, LIMIT).refused());
        let told: Vec<_> = std::iter::from_fn(|| reports.read()).collect();
        assert!(told.iter().all(|flow| flow.tenant == slots[0].tenant()), "{told:?}");
        assert_eq!(
            told.last().map(|flow| flow.destination),
            Some(LAN),
            "an adopted slot's refusals are told"
        );
        let stats = engine.stats(&slots[0]).unwrap();
        assert!(stats.out_allowed > 0 && stats.out_refused > 0, "the new judge judges: {stats:?}");
        // And it is this engine's to command: live change, removal, reuse.
        engine
            .set_policy(
                &slots[0],
                &compile(&PolicySpec { drop: vec!["93.184.216.0/24".parse().unwrap()], allow: vec![] })
                    .unwrap(),
            )
            .unwrap();
        assert!(guest_0.ask(Kind::Udp, SERVER, ECHO, LIMIT).refused());
        assert!(guest_0.ask(Kind::Udp, OTHER_SERVER, ECHO, LIMIT).reached());
        drop(guest_0);
        drop(held);
        for slot in slots {
            engine.remove(slot).unwrap();
        }
        let slot = engine.create(&spec(0, &policy)).unwrap();
        engine.remove(slot).unwrap();
        engine.close().unwrap();
    });
    let links = world.host.check("ip", &["-o", "link"], "").unwrap();
    assert!(!links.contains("en-a9fe64"), "{links}");
    assert!(!world.host.check("nft", &["list", "ruleset"], "").unwrap().contains("enisle"));
}

/// The numbers that did not come back.
fn lost(sent: u32, back: &[u32]) -> Vec<u32> {
    (0..sent).filter(|number| back.binary_search(number).is_err()).collect()
}

#[test]
fn a_judge_replaced_over_and_over_loses_no_packet() {
    let world = World::new().unwrap();
    let held = survivors(&world.host);
    let mut guest = guest(0, &held[0]);
    let policy = policy(&[]);
    let end = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        let daemons = scope.spawn(|| {
            let mut starts = 0_u32;
            while Instant::now() < end || starts < 3 {
                let fd = fd_of(&held[0]);
                world.host.run(|| {
                    let engine = Engine::open_beside(config(), &[usual(0)]).unwrap();
                    // Neither removed nor closed, as after kill -9.
                    drop(engine.adopt(&spec(0, &policy), fd).unwrap());
                });
                starts += 1;
            }
            starts
        });
        let (sent, back) = stream(&mut guest, || daemons.is_finished());
        let starts = daemons.join().unwrap();
        assert_eq!(lost(sent, &back), [0_u32; 0], "lost over {starts} starts, of {sent}");
    });
}

/// The host's table without what counts.
fn table(world: &World) -> String {
    let text = world.host.check("nft", &["list", "table", "inet", "enisle_00c0de01"], "").unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let counts = |i: usize| i > 0 && matches!(words[i - 1], "packets" | "bytes");
    let kept = words.iter().enumerate().filter(|(i, _)| !counts(*i)).map(|(_, word)| *word);
    kept.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_table_that_was_written_over_is_the_table_that_would_replace_it() {
    let world = World::new().unwrap();
    let held = survivors(&world.host);
    let right = table(&world);
    // Somebody has opened it meanwhile, and put a stranger among the admitted.
    let meddle = "insert rule inet enisle_00c0de01 prerouting accept
        add element inet enisle_00c0de01 slots { \"lo\" . 8.8.8.8 }";
    world.host.check("nft", &["-f", "-"], meddle).unwrap();
    assert_ne!(table(&world), right);
    world.host.run(|| {
        let engine = Engine::open_beside(config(), &[usual(0), usual(1), usual(2)]).unwrap();
        assert_eq!(table(&world), right);
        engine.close().unwrap();
    });
    drop(held);
}

#[test]
fn what_is_no_whole_slot_is_cut_off_and_its_block_is_free() {
    let world = World::new().unwrap();
    let held = survivors(&world.host);
    let mut guest_0 = guest(0, &held[0]);
    assert!(guest_0.ask(Kind::Udp, SERVER, ECHO, LIMIT).reached(), "the positive control");
    // As if the daemon had died before it attached the judge to the tap.
    held[0].check("tc", &["qdisc", "del", "dev", "tap0", "ingress"], "").unwrap();
    // And before it made the host's end of the second.
    world.host.check("ip", &["link", "del", block(1).host_veth().as_str()], "").unwrap();
    let policy = policy(&[]);
    world.host.run(|| {
        let engine = Engine::open_beside(config(), &[usual(0), usual(1)]).unwrap();
        for i in 0..2 {
            let error = engine.adopt(&spec(i, &policy), fd_of(&held[i as usize])).unwrap_err();
            assert!(matches!(&error, NetError::Adopt { left, .. } if left.is_empty()), "{error:?}");
            let again = engine.adopt(&spec(i, &policy), fd_of(&held[i as usize])).unwrap_err();
            assert!(matches!(again, NetError::NotExpected(_)), "{again}");
        }
        let slots = [0, 1].map(|i| engine.create(&spec(i, &policy)).unwrap());
        for slot in slots {
            engine.remove(slot).unwrap();
        }
        engine.reclaim().unwrap();
        engine.close().unwrap();
    });
    assert_ne!(guest_0.ask(Kind::Udp, SERVER, ECHO, Duration::from_millis(300)).answer, Answer::Reached);
}
