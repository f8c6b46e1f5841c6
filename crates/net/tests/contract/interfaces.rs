//! Somebody else changes the host's routing or our interfaces: connections come back, nothing opens.

use std::time::Duration;

use enisle_testkit::world::ROUTER;

use crate::interference::Followed;

fn veth(f: &Followed) -> String {
    f.rig.vms[0].block().host_veth().as_str().to_owned()
}

#[test]
fn forwarding_that_is_switched_off_comes_back_for_us_alone() {
    let mut f = Followed::new();
    let veth = veth(&f);
    f.host().set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    f.comes_back("a router");
    for setting in ["net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding"] {
        // Writing what is there already changes nothing, so it is on before.
        f.host().set_sysctl(setting, "1").unwrap();
        f.follow();
        f.host().set_sysctl(setting, "0").unwrap();
        f.lost_and_comes_back(setting);
        assert_eq!(f.host().sysctl("net/ipv4/ip_forward").unwrap(), "0");
        assert_eq!(f.host().sysctl("net/ipv4/conf/lan0/forwarding").unwrap(), "0");
    }
    for link in ["eth0", veth.as_str()] {
        let setting = format!("net/ipv4/conf/{link}/forwarding");
        f.host().set_sysctl(&setting, "0").unwrap();
        f.lost_and_comes_back(&setting);
    }
}

#[test]
fn strict_source_checks_are_no_obstacle() {
    let mut f = Followed::new();
    let veth = veth(&f);
    for strictness in ["1", "2", "0"] {
        for link in ["all", "default", "eth0", veth.as_str()] {
            f.host().set_sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), strictness).unwrap();
        }
        f.comes_back(strictness);
    }
}

#[test]
fn the_uplink_may_be_renamed_readdressed_taken_down_and_replaced() {
    let mut f = Followed::new();
    for line in ["link set eth0 down", "link set eth0 name wan7", "link set wan7 up"] {
        f.run("ip", line);
    }
    f.follow();
    assert!(!f.online(), "an interface that goes down takes the default route along");
    f.run("ip", &format!("route add default via {ROUTER}"));
    f.comes_back("a renamed uplink");

    // The address changes: new flows leave with the new one, which is the host's from now on.
    f.run("ip", "addr add 45.83.104.11/24 dev wan7");
    f.run("ip", "addr del 45.83.104.10/24 dev wan7");
    f.run("ip", "addr add 45.83.104.10/24 dev wan7");
    f.run("ip", &format!("route replace default via {ROUTER}"));
    f.comes_back("a new address");
    let told = f.rig.vm().ask(enisle_testkit::probe::Kind::Tcp, "45.83.104.11".parse().unwrap(), 7777);
    assert!(told.refused(), "a new host address: {told}");

    // The default route moves to another interface, behind which the Internet is as well.
    f.host().link("wan1", &f.rig.world.internet, "wan1").unwrap();
    f.rig.world.internet.check("ip", &["addr", "add", "198.51.100.1/24", "dev", "wan1"], "").unwrap();
    f.run("ip", "addr add 198.51.100.2/24 dev wan1");
    f.follow();
    assert!(f.online());
    f.run("ip", "route replace default via 198.51.100.1");
    f.follow();
    f.comes_back("another default route");
    assert_eq!(f.host().sysctl("net/ipv4/conf/wan1/forwarding").unwrap(), "1");
    assert_eq!(f.host().sysctl("net/ipv4/conf/wan7/forwarding").unwrap(), "0", "restored");
}

#[test]
fn our_interface_is_put_right() {
    let mut f = Followed::new();
    let veth = veth(&f);
    let guest = f.rig.vms[0].block().guest();
    let look = |f: &Followed| {
        let addr = f.run("ip", &format!("-o addr show dev {veth}"));
        let route = f.run("ip", &format!("-o route show {guest}"));
        let neigh = f.run("ip", &format!("-o neigh show dev {veth} nud permanent"));
        let link = f.run("ip", &format!("-d -o link show dev {veth}"));
        (addr, route, neigh, link.contains("addrgenmode none"))
    };
    let right = look(&f);
    assert!(right.1.contains(&veth) && right.2.contains("PERMANENT") && right.3, "{right:?}");
    for damage in [
        format!("link set {veth} down"),
        format!("route del {guest}"),
        format!("route replace {guest} via {ROUTER}"),
    ] {
        f.run("ip", &damage);
        f.lost_and_comes_back(&damage);
        assert_eq!(look(&f), right, "{damage}");
    }
    // This guest takes any frame and answers ARP, so it does not feel all of it.
    for damage in [
        format!("neigh replace {guest} lladdr 02:00:00:00:00:99 dev {veth} nud permanent"),
        format!("neigh del {guest} dev {veth}"),
        // As a network manager with a match on every interface would.
        format!("addr add 10.77.0.1/24 dev {veth}"),
        format!("link set {veth} addrgenmode eui64"),
    ] {
        f.run("ip", &damage);
        assert_ne!(look(&f), right, "{damage}");
        f.comes_back(&damage);
        f.follow();
        assert_eq!(look(&f), right, "{damage}");
    }

    // It comes up without the link-local address that this asks for.
    for line in [format!("link set {veth} down"), format!("link set {veth} addrgenmode eui64")] {
        f.run("ip", &line);
    }
    f.lost_and_comes_back("our interface down with a link-local address to come");
    assert_eq!(look(&f), right);

    for line in
        [format!("link set {veth} down"), format!("link set {veth} name lan7"), "link set lan7 up".into()]
    {
        f.run("ip", &line);
    }
    f.lost_and_comes_back("our interface renamed");
    assert_eq!(look(&f), right);
    assert_eq!(f.rig.engine.postponed(), None);
}

#[test]
fn an_interface_that_was_deleted_is_no_obstacle_to_the_rest() {
    let mut f = Followed::new();
    let veth = veth(&f);
    f.run("ip", &format!("link del {veth}"));
    f.follow();
    assert!(!f.online());
    let slot = f.rig.vms.remove(0).slot;
    let start = std::time::Instant::now();
    f.rig.engine.remove(slot).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    f.rig.engine.close().unwrap();
}
