//! Other programs' firewalls: what drops is let through, what is torn down comes back, and nothing
//! is opened meanwhile.
//!
//! Each test plays the daemon's watcher itself, so that it can look between the damage and the
//! repair. Docker's and ufw's shape is made by the real `iptables-nft`.

use std::time::{Duration, Instant};

use enisle_net::Monitor;
use enisle_net::policy::PolicySpec;
use enisle_testkit::probe::Kind;
use enisle_testkit::world::{CANARY, ECHO, LAN, NEIGHBOUR, ROUTER, SERVER, UPLINK};
use enisle_testkit::{Netns, World};

use crate::rig::{KINDS, Rig, asks};

/// How long a watcher may take to bring a connection back. It takes milliseconds.
const BACK: Duration = Duration::from_secs(10);
/// How long to wait for an answer that must not come.
const SHORT: Duration = Duration::from_millis(200);
pub(crate) const TABLE: &str = "enisle_0badcafe";

/// A rig whose host is followed as the daemon follows it.
pub(crate) struct Followed {
    pub(crate) rig: Rig,
    monitor: Monitor,
}

impl Followed {
    pub(crate) fn new() -> Followed {
        Followed::within(World::new().unwrap())
    }

    fn within(world: World) -> Followed {
        let monitor = world.host.run(Monitor::open).unwrap();
        let mut followed = Followed { rig: Rig::within(world, &[PolicySpec::default()]), monitor };
        followed.follow();
        followed
    }

    pub(crate) fn host(&self) -> &Netns {
        &self.rig.world.host
    }

    pub(crate) fn run(&self, program: &str, line: &str) -> String {
        let args: Vec<&str> = line.split(' ').collect();
        self.host().check(program, &args, "").unwrap()
    }

    /// Reacts to everything the kernel told so far.
    pub(crate) fn follow(&mut self) {
        while self.monitor.wait(SHORT).unwrap().is_some() {
            self.rig.engine.refresh().unwrap();
        }
    }

    pub(crate) fn online(&mut self) -> bool {
        self.rig.vm().guest.ask(Kind::Tcp, SERVER, ECHO, SHORT).reached()
    }

    /// The guest has no way out now, and has one soon after its host is followed.
    pub(crate) fn lost_and_comes_back(&mut self, damage: &str) {
        assert!(!self.online(), "{damage}: no damage was done");
        self.closed(damage);
        self.comes_back(damage);
    }

    /// The guest has a way out soon after its host is followed, and nothing else has.
    pub(crate) fn comes_back(&mut self, damage: &str) {
        let start = Instant::now();
        loop {
            let postponed = self.rig.engine.postponed();
            let told = self.monitor.wait(postponed.unwrap_or(SHORT)).unwrap();
            if told.is_some() || postponed.is_some() {
                self.rig.engine.refresh().unwrap();
            }
            if self.online() {
                break;
            }
            assert!(start.elapsed() < BACK, "{damage}: the connection does not come back");
        }
        for kind in KINDS {
            self.rig.vm().reaches(kind, SERVER, ECHO);
        }
        self.follow();
        self.closed(damage);
    }

    /// Follows the host until something holds.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Followed) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            let postponed = self.rig.engine.postponed();
            let told = self.monitor.wait(postponed.unwrap_or(SHORT)).unwrap();
            if told.is_some() || postponed.is_some() {
                self.rig.engine.refresh().unwrap();
            }
            assert!(start.elapsed() < BACK * 3, "{what}: not in time");
        }
    }

    /// What is closed is closed: the host, its neighbour and its LAN to the guest, the guest to
    /// who calls it. Each listener answers somebody else.
    pub(crate) fn closed(&mut self, when: &str) {
        let guest = self.rig.vm().block().guest();
        let world = &self.rig.world;
        for (from, addr, port) in
            [(&world.internet, UPLINK, CANARY), (&world.host, LAN, ECHO), (&world.host, NEIGHBOUR, ECHO)]
        {
            assert!(world.ask(from, Kind::Tcp, addr, port).reached(), "control {addr} ({when})");
        }
        for (addr, port) in [(UPLINK, CANARY), (LAN, ECHO), (NEIGHBOUR, ECHO), (ROUTER, ECHO)] {
            for kind in KINDS {
                let outcome = self.rig.vm().guest.ask(kind, addr, port, SHORT);
                assert!(!outcome.reached(), "{when}: {kind:?} {addr}: {outcome}");
            }
        }
        // The neighbour routes to the guest, as somebody on the host's own subnet could.
        let (to, via) = (format!("{guest}/32"), UPLINK.to_string());
        let route =
            |verb| self.rig.world.internet.check("ip", &["route", verb, &to, "via", &via], "").unwrap();
        route("add");
        let calls = [Kind::Tcp, Kind::Ping].map(|kind| {
            let asked = enisle_testkit::probe::Target { kind, addr: guest, port: ECHO };
            self.rig.world.internet.run(|| enisle_testkit::probe::ask(asked, SHORT))
        });
        // Away again: with it, answers would find the guest without any masquerading.
        route("del");
        for outcome in calls {
            assert!(!outcome.reached(), "{when}: to the guest: {outcome}");
        }
        // Answers over UDP look like calls.
        let called = self
            .rig
            .vm()
            .guest
            .received()
            .iter()
            .filter(|f| f.get(23) != Some(&17) && asks(f, guest))
            .count();
        assert_eq!(called, 0, "{when}: somebody called the guest");
    }

    /// `iptables -S FORWARD`, or the chain of another table as `nft` lists it.
    fn forward(&self) -> String {
        self.run("iptables-nft", "-S FORWARD")
    }
}

#[test]
fn dockers_forward_policy_lets_our_guests_through_and_nobody_else() {
    let world = World::new().unwrap();
    let nft = |line: &str| {
        let args: Vec<&str> = line.split(' ').collect();
        world.host.check("iptables-nft", &args, "").unwrap()
    };
    nft("-P FORWARD DROP");
    nft("-N DOCKER-USER");
    nft("-A FORWARD -j DOCKER-USER");
    let before = nft("-S FORWARD");
    let mut f = Followed::within(world);
    f.comes_back("a policy of drop from before");

    // iptables lists our pair as its own kind of rules: a table it cannot read breaks Docker.
    let with = f.forward();
    assert_eq!(
        with.lines().filter(|l| l.contains("en-+")).collect::<Vec<_>>(),
        [
            "-A FORWARD -s 169.254.100.0/22 -i en-+ -m comment --comment \"enisle 0badcafe\" -j ACCEPT",
            "-A FORWARD -d 169.254.100.0/22 -o en-+ -m conntrack --ctstate RELATED,ESTABLISHED \
             -m comment --comment \"enisle 0badcafe\" -j ACCEPT",
        ],
        "{with}"
    );
    f.run("iptables-nft", "-C FORWARD -j DOCKER-USER");

    // The host routes for others as far as Docker lets it: not at all.
    f.host().set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    f.rig.world.internet.check("ip", &["route", "add", "192.168.1.0/24", "via", "45.83.104.10"], "").unwrap();
    let through = |f: &Followed| f.rig.world.ask(&f.rig.world.internet, Kind::Tcp, LAN, ECHO).reached();
    f.comes_back("a router");
    assert!(!through(&f), "the pair opened the way to the LAN");
    f.run("iptables-nft", "-P FORWARD ACCEPT");
    assert!(through(&f), "the control: without the policy there is a way");
    f.comes_back("a policy of accept");
    assert!(!f.forward().contains("en-+"), "the pair is only where it is needed");
    f.run("iptables-nft", "-P FORWARD DROP");
    f.lost_and_comes_back("a policy of drop that comes later");

    f.rig.engine.close().unwrap();
    assert_eq!(f.forward(), before);
}

#[test]
fn dockers_flushes_and_inserts_are_followed() {
    let mut f = Followed::new();
    f.run("iptables-nft", "-P FORWARD DROP");
    f.lost_and_comes_back("a policy of drop");
    f.run("iptables-nft", "-F");
    f.lost_and_comes_back("iptables -F");
    f.run("iptables-nft", "-D FORWARD 1");
    f.lost_and_comes_back("half of the pair deleted");
    f.run("iptables-nft", "-I FORWARD -j DROP");
    f.lost_and_comes_back("a rule put before the pair");
    let first = f.forward().lines().nth(1).unwrap_or_default().to_owned();
    assert!(first.contains("-i en-+"), "the pair is at the head again: {first}");
    // A whole new table at once, as `iptables-restore` and ufw do it.
    let fresh = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
                 :ufw-reject-forward - [0:0]\n-A FORWARD -j ufw-reject-forward\n\
                 -A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n";
    f.host().check("iptables-nft-restore", &[], fresh).unwrap();
    f.lost_and_comes_back("a restored table");
    f.run("nft", "flush ruleset");
    // Docker's policy went with the table, and ours too.
    f.lost_and_comes_back("nft flush ruleset");
    f.rig.engine.close().unwrap();
    assert!(!f.run("nft", "list ruleset").contains("enisle"));
}

#[test]
fn a_chain_that_ends_with_a_refusal_lets_our_guests_through() {
    let mut f = Followed::new();
    // firewalld's shape: open at first sight, with a last rule that refuses all the rest.
    let firewalld = "table inet firewalld {\n chain filter_FORWARD {\n\
        type filter hook forward priority filter + 10; policy accept;\n\
        ct status dnat accept\n iifname \"lo\" accept\n jump filter_FORWARD_POLICIES\n\
        reject with icmpx admin-prohibited\n }\n chain filter_FORWARD_POLICIES {\n }\n}\n";
    f.host().check("nft", &["-f", "-"], firewalld).unwrap();
    f.lost_and_comes_back("firewalld");
    // Its reload.
    let again = format!("destroy table inet firewalld\n{firewalld}");
    let again = again.replacen("destroy table", "delete table", 1);
    f.host().check("nft", &["-f", "-"], &again).unwrap();
    f.lost_and_comes_back("firewalld's reload");
    let listed = f.run("nft", "list chain inet firewalld filter_FORWARD");
    assert_eq!(listed.matches("comment \"enisle 0badcafe\"").count(), 2, "{listed}");
    // A plain ruleset of an operator, in both families.
    for family in ["inet", "ip"] {
        let table = format!(
            "table {family} mine {{\n chain through {{\n type filter hook forward priority 5; policy drop;\n\
             ct state established,related accept\n }}\n}}\n"
        );
        f.host().check("nft", &["-f", "-"], &table).unwrap();
        f.lost_and_comes_back(family);
    }
    f.rig.engine.close().unwrap();
    let rest = f.run("nft", "list ruleset");
    assert!(rest.contains("firewalld") && rest.contains("through") && !rest.contains("enisle"), "{rest}");
}

#[test]
fn two_daemons_keep_their_own_pairs() {
    let mut f = Followed::new();
    f.run("iptables-nft", "-P FORWARD DROP");
    f.lost_and_comes_back("a policy of drop");
    let second = f.rig.second_engine();
    // Neither takes the other's for somebody who fights.
    for _ in 0..20 {
        f.rig.engine.refresh().unwrap();
        second.refresh().unwrap();
    }
    assert_eq!((f.rig.engine.postponed(), second.postponed()), (None, None));
    assert_eq!(f.forward().matches("en-+").count(), 4, "{}", f.forward());
    second.close().unwrap();
    drop(second);
    assert_eq!(f.forward().matches("169.254.100.0/22").count(), 2, "{}", f.forward());
    assert!(f.online());
    // A third run of the second's scope finds what a killed one left.
    let second = f.rig.second_engine();
    drop(second);
    let second = f.rig.second_engine();
    assert_eq!(f.forward().matches("10.99.0.0/24").count(), 2, "{}", f.forward());
    second.close().unwrap();
}

/// Our table but for live flows, which come and go.
fn look(f: &Followed) -> String {
    let text = f.run("nft", &format!("-s list table inet {TABLE}"));
    text.lines().filter(|l| !l.contains("elements") || !l.contains("ct count")).collect::<Vec<_>>().join("\n")
}

#[test]
fn whatever_is_done_to_our_table_is_undone() {
    let mut f = Followed::new();
    let handle = |f: &Followed, chain: &str, what: &str| {
        let text = f.run("nft", &format!("-a list chain inet {TABLE} {chain}"));
        let line = text.lines().find(|l| l.contains(what)).unwrap().to_owned();
        line.rsplit_once("handle ").unwrap().1.to_owned()
    };
    let whole = look(&f);
    for damage in [
        "flush ruleset".to_owned(),
        format!("flush table inet {TABLE}"),
        format!("delete table inet {TABLE}"),
        format!("flush chain inet {TABLE} postrouting"),
        format!("flush set inet {TABLE} slots"),
    ] {
        f.run("nft", &damage);
        f.lost_and_comes_back(&damage);
        assert_eq!(look(&f), whole, "{damage}");
    }
    for (chain, rule) in [("postrouting", "masquerade"), ("to_slot", "ct state")] {
        let damage = format!("delete rule inet {TABLE} {chain} handle {}", handle(&f, chain, rule));
        f.run("nft", &damage);
        f.lost_and_comes_back(&damage);
        assert_eq!(look(&f), whole, "{damage}");
    }
}

#[test]
fn a_weaker_second_guard_is_not_felt_and_put_back_all_the_same() {
    let mut f = Followed::new();
    let whole = look(&f);
    for damage in [
        format!("flush chain inet {TABLE} prerouting"),
        format!("insert rule inet {TABLE} forward accept"),
        format!("chain inet {TABLE} forward {{ policy drop; }}"),
        format!("flush set inet {TABLE} opened"),
    ] {
        f.run("nft", &damage);
        f.closed(&damage);
        f.comes_back(&damage);
        assert_eq!(look(&f), whole, "{damage}");
    }
}

#[test]
fn a_fight_is_bounded_and_ends_when_the_other_gives_up() {
    let mut f = Followed::new();
    let damage = format!("delete table inet {TABLE}");
    let mut put_back = 0;
    for _ in 0..40 {
        f.run("nft", &damage);
        f.rig.engine.refresh().unwrap();
        let there = f.run("nft", "list tables").contains(TABLE);
        if !there {
            break;
        }
        put_back += 1;
    }
    assert!((3..30).contains(&put_back), "put back {put_back} times");
    assert!(f.rig.engine.postponed().is_some(), "it will be tried again");
    f.closed("a fight");
    f.comes_back("a fight");
    assert_eq!(f.rig.engine.postponed(), None);
}
