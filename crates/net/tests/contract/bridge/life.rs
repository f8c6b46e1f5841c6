//! A bridge's life: somebody's own, one that cannot stand, and what a killed daemon leaves of one.

use super::*;
use enisle_net::survey;

#[test]
fn an_operators_bridge_gets_ports_and_nothing_else_and_stays() {
    let world = World::new().unwrap();
    let make = |index: u32| {
        let text = format!(
            "link add lab0 index {index} type bridge\nlink set lab0 up\naddr add 10.77.0.1/24 dev lab0\n"
        );
        world.host.check("ip", &["-batch", "-"], &text).unwrap();
    };
    make(777);
    let before = look(&world.host);
    let engine = open(&world, &[lab()]);
    let forwards = |link: &str| world.host.sysctl(&format!("net/ipv4/conf/{link}/forwarding")).unwrap();
    assert_eq!((forwards("lab0").trim(), forwards("eth0").trim()), ("0", "1"), "with a control");
    let mut vm = inhabited(slot(&world, &engine, lab().range.block(0).unwrap()), &lab());
    assert!(pinged(&world, &world.host, &mut vm));
    let ports = world.host.check("ip", &["-o", "link", "show", "master", "lab0"], "").unwrap();
    assert_eq!(ports.lines().count(), 1, "{ports}");
    // Its operator takes it down and makes it again: nobody else makes one meanwhile, and its port comes back.
    world.host.check("ip", &["link", "delete", "lab0"], "").unwrap();
    world.host.run(|| engine.refresh()).unwrap();
    assert!(!world.host.check("ip", &["-o", "link"], "").unwrap().contains("lab0:"));
    make(778);
    world.host.run(|| engine.refresh()).unwrap();
    assert!(pinged(&world, &world.host, &mut vm), "after it was made again");
    world.host.run(|| {
        engine.remove(vm.slot).unwrap();
        engine.close().unwrap();
    });
    drop((vm.guest, engine));
    // Whether a bridge without ports has a carrier is the kernel's to notice, sooner or later.
    let but_carrier = |all: Vec<String>| -> Vec<String> {
        all.iter().map(|line| line.replace(" linkdown", "").replace("777 lab0", "778 lab0")).collect()
    };
    assert_eq!(but_carrier(look(&world.host)), but_carrier(before));
    let uplinked = Bridge { uplink: Some("lan1".into()), ..lab() };
    world.host.check("ip", &["addr", "flush", "dev", "lan1"], "").unwrap();
    let error = try_open(&world, &[uplinked], &[]).unwrap_err().to_string();
    assert!(error.contains("it is not Enisle's, so lan1 is not added to it"), "{error}");
}

#[test]
fn what_cannot_be_a_bridge_is_refused_with_the_reason_and_nothing_is_left() {
    let world = World::new().unwrap();
    let before = look(&world.host);
    let refused = |bridge: Bridge, reason: &str| {
        let error = try_open(&world, &[bridge], &[]).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert_eq!(look(&world.host), before, "{reason}");
    };
    refused(Bridge { name: "docker0".into(), ..lab() }, "an interface of another kind has this name");
    refused(Bridge { uplink: Some("eth9".into()), ..lab() }, "its uplink eth9 is no interface of this host");
    refused(Bridge { uplink: Some("lan1".into()), ..lab() }, "its uplink lan1 has the address 10.20.0.1/24");
    refused(bridge("lab0", "192.168.1.3/24", "192.168.1.128/25"), "interface lan0 has the address");
}

/// A file's mistake must not take the guard of VMs that live, and without any it leaves nothing.
#[test]
fn a_bridge_that_cannot_stand_leaves_an_earlier_runs_vms_as_they_are() {
    let world = World::new().unwrap();
    let before = look(&world.host);
    let first = open(&world, &[lab()]);
    let block = ISOLATED.parse::<Range>().unwrap().block(0).unwrap();
    let mut isolated = create(&world, &first, block, &lists(&[], &[]));
    let mut ported = port(&world, &first, &lab(), 0);
    let blocks = [block, ported.slot.block()];
    isolated.reaches(Kind::Tcp, SERVER, ECHO);
    // What a killed daemon leaves while the VMs live: all of it, but for the engine.
    drop(first);
    let stood = look(&world.host);
    let wrong = [Bridge { uplink: Some("eth9".into()), ..lab() }, other()];
    let error = try_open(&world, &wrong, &blocks).unwrap_err().to_string();
    assert!(error.contains("its uplink eth9 is no interface"), "{error}");
    assert_eq!(look(&world.host), stood);
    isolated.reaches(Kind::Tcp, SERVER, ECHO);
    assert!(ported.guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached());
    // The same when nobody lives.
    drop((isolated, ported));
    assert!(try_open(&world, &wrong, &[]).is_err());
    world.host.run(|| enisle_net::reclaim(SCOPE.parse().unwrap())).unwrap();
    assert_eq!(look(&world.host), before);
}

#[test]
fn a_killed_daemons_bridge_does_not_stand_in_the_way_of_the_next_ones() {
    let world = World::new().unwrap();
    let before = look(&world.host);
    drop(open(&world, &[lab()]));
    // Neither for who reads the file before.
    let taken = |scope| {
        let all = world.host.run(|| survey::taken(|_| true, scope)).unwrap();
        all.iter().any(|taken| taken.by == "interface lab0")
    };
    assert!(!taken(Some(SCOPE.parse().unwrap())));
    assert!(taken(None) && taken(Some("00c0ffee".parse().unwrap())), "another daemon's is");
    let renamed = Bridge { name: "lab9".into(), ..lab() };
    let engine = open(&world, std::slice::from_ref(&renamed));
    world.host.run(|| engine.reclaim()).unwrap();
    let links = world.host.check("ip", &["-o", "link"], "").unwrap();
    assert!(links.contains("lab9:") && !links.contains("lab0:"), "{links}");
    let mut vm = port(&world, &engine, &renamed, 0);
    assert!(pinged(&world, &world.host, &mut vm));
    assert!(vm.guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached());
    world.host.run(|| {
        engine.remove(vm.slot).unwrap();
        engine.close().unwrap();
    });
    drop((vm.guest, engine));
    assert_eq!(look(&world.host), before);
}

/// The file was changed while no daemon ran: a slot of one mode is never taken for one of the other, whose programs
/// would judge it wrongly. That one of the same mode is, another test shows.
#[test]
fn a_slot_of_another_mode_is_not_adopted_but_taken_away() {
    for bridged in [true, false] {
        let world = World::new().unwrap();
        let range = lab().range;
        let isolated = || {
            let config = EngineConfig { scope: SCOPE.parse().unwrap(), ranges: vec![range] };
            world.host.run(|| Engine::open_beside(config, &[(range.block(0).unwrap(), Limits::default())]))
        };
        let block = range.block(0).unwrap();
        let first = match bridged {
            true => open(&world, &[lab()]),
            false => {
                let config = EngineConfig { scope: SCOPE.parse().unwrap(), ranges: vec![range] };
                world.host.run(|| Engine::open(config)).unwrap()
            }
        };
        let slot = slot(&world, &first, block);
        let netns = slot.netns().try_clone_to_owned().unwrap();
        drop((slot, first));
        let second =
            if bridged { isolated().unwrap() } else { try_open(&world, &[lab()], &[block]).unwrap() };
        let policy = compile(&PolicySpec::default()).unwrap();
        let refused = world.host.run(|| second.adopt(&spec(block, &policy), netns).map(drop)).unwrap_err();
        assert!(refused.left().is_empty(), "{refused}");
        let links = world.host.check("ip", &["-o", "link"], "").unwrap();
        assert!(!links.contains(block.host_veth().as_str()), "{links}");
        world.host.run(|| {
            second.reclaim().unwrap();
            second.close().unwrap();
        });
    }
}

#[test]
fn an_isolated_vms_interface_that_somebody_puts_on_a_bridge_is_taken_off_again() {
    let world = World::new().unwrap();
    let engine = open(&world, &[]);
    let block = ISOLATED.parse::<Range>().unwrap().block(0).unwrap();
    let mut vm = create(&world, &engine, block, &lists(&[], &[]));
    vm.reaches(Kind::Tcp, SERVER, ECHO);
    let veth = block.host_veth();
    let text = format!("link add br7 type bridge\nlink set br7 up\nlink set {veth} master br7\n");
    world.host.check("ip", &["-batch", "-"], &text).unwrap();
    assert!(!vm.ask(Kind::Tcp, SERVER, ECHO).reached(), "the control");
    world.host.run(|| engine.refresh()).unwrap();
    vm.reaches(Kind::Tcp, SERVER, ECHO);
    let ports = world.host.check("ip", &["-o", "link", "show", "master", "br7"], "").unwrap();
    assert_eq!(ports, "");
    world.host.run(|| {
        engine.remove(vm.slot).unwrap();
        engine.close().unwrap();
    });
}

#[test]
fn an_uplink_joins_the_lan_to_the_bridge() {
    let world = World::new().unwrap();
    world.host.check("ip", &["addr", "flush", "dev", "lan1"], "").unwrap();
    let before = look(&world.host);
    let bridge = Bridge { uplink: Some("lan1".into()), ..bridge("lab0", "10.20.0.1/24", "10.20.0.128/25") };
    let engine = open(&world, std::slice::from_ref(&bridge));
    let mut vm = port(&world, &engine, &bridge, 0);
    // The LAN's machine is a neighbour: no route, no translation.
    assert!(pinged(&world, &world.lan, &mut vm));
    world.host.run(|| {
        engine.remove(vm.slot).unwrap();
        engine.close().unwrap();
    });
    drop(vm.guest);
    assert_eq!(look(&world.host), before);
}

#[test]
fn a_killed_daemons_vm_lives_on_and_what_is_nobodys_goes() {
    let world = World::new().unwrap();
    let before = look(&world.host);
    let first = open(&world, &[lab(), other()]);
    let Port { slot, mut guest } = port(&world, &first, &lab(), 0);
    let dead = port(&world, &first, &lab(), 1);
    assert!(guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached());
    // What a killed daemon leaves: the VMM holds its namespace, nobody holds the rest.
    let (block, netns) = (slot.block(), slot.netns().try_clone_to_owned().unwrap());
    drop((slot, dead.slot, dead.guest, first));
    let second = try_open(&world, &[lab()], &[block]).unwrap();
    let policy = compile(&PolicySpec::default()).unwrap();
    let slot = world.host.run(|| second.adopt(&spec(block, &policy), netns)).unwrap();
    world.host.run(|| second.reclaim()).unwrap();
    let links = world.host.check("ip", &["-o", "link"], "").unwrap();
    assert!(links.contains("lab0") && !links.contains("lab1"), "{links}");
    assert!(guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached(), "adopted");
    // Another program takes the port away, and the bridge's address: both come back.
    let veth = block.host_veth();
    world.host.check("ip", &["link", "set", veth.as_str(), "nomaster"], "").unwrap();
    world.host.check("ip", &["addr", "flush", "dev", "lab0"], "").unwrap();
    assert!(!guest.ask(Kind::Tcp, SERVER, ECHO, QUIET).reached());
    world.host.run(|| second.refresh()).unwrap();
    assert!(guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached(), "put right");
    drop((slot, guest, second));
    // As after kill -9 of everything, with a configuration that is gone.
    world.host.run(|| enisle_net::reclaim(SCOPE.parse().unwrap())).unwrap();
    assert_eq!(look(&world.host), before);
}
