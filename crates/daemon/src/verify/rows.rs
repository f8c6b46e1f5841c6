//! The rows: what is asked of a guest, and what the contract says about each; pure.
//!
//! Owns: the list, by row of `docs/networking.md`. Refuses: rows 13 and 15 (a policy that changes
//! under a flow, a flood): a self-test must not change a policy, nor load the host it runs on.

use super::frames::{self, ACK, BROADCAST, Ends, ICMP, RST, SYN, Shape, TCP, UDP};
use super::probe::{Flow, Run, Via};
use super::subject::Subject;
use enisle_api::verify::Expected;
use enisle_net::policy::Proto;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Samples of what there may be many of: host addresses, VMs, entries of a list.
pub(super) const SAMPLES: usize = 16;
/// The source port of every frame that has one; no socket of a guest has it (it is reserved, RFC 6335).
const FROM: u16 = 1023;

/// One probe.
#[derive(Debug)]
pub(super) struct Row {
    /// Row of the contract.
    pub(super) number: u8,
    pub(super) target: String,
    pub(super) asked: String,
    pub(super) via: Via,
    pub(super) flow: Option<Flow>,
    pub(super) expected: Expected,
    /// It is aimed at a listener of the daemon.
    pub(super) canary: bool,
    /// It is a query: whether it must be answered REFUSED.
    pub(super) dns_refused: Option<bool>,
}

impl Row {
    /// TCP is refused in its own way.
    pub(super) fn is_tcp(&self) -> bool {
        self.flow.is_some_and(|flow| flow.protocol == TCP)
    }
}

/// What cannot be asked here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Untested {
    pub(super) number: u8,
    pub(super) target: String,
    pub(super) reason: String,
}

/// Builds the list.
pub(super) struct Rows<'a> {
    pub(super) subject: &'a Subject,
    pub(super) run: Run,
    pub(super) rows: Vec<Row>,
    pub(super) untested: Vec<Untested>,
}

impl<'a> Rows<'a> {
    /// Every row for this subject.
    pub(super) fn of(subject: &'a Subject, run: Run) -> Self {
        let mut rows = Self { subject, run, rows: Vec::new(), untested: Vec::new() };
        rows.internet();
        rows.dropped();
        rows.hosts();
        rows.siblings();
        rows.lan();
        rows.special();
        rows.protocols();
        super::rows_forged::add(&mut rows);
        rows.gateway();
        super::rows_inbound::add(&mut rows);
        rows
    }

    /// The token of the next row: its place in the list.
    pub(super) fn token(&self) -> String {
        self.run.token(self.rows.len())
    }

    pub(super) fn guest(&self) -> Ipv4Addr {
        self.subject.block.guest()
    }

    /// Honest ends of a packet to `dst`.
    pub(super) fn to(&self, dst: Ipv4Addr) -> Ends {
        let block = self.subject.block;
        let (src_mac, dst_mac) = (block.guest_mac().octets(), block.host_mac().octets());
        Ends { src_mac, dst_mac, src: self.guest(), dst }
    }

    pub(super) fn frame(
        &mut self,
        (number, target): (u8, &str),
        asked: String,
        bytes: Vec<u8>,
        expected: Expected,
    ) {
        self.flowing((number, target), asked, bytes, (expected, None));
    }

    fn flowing(
        &mut self,
        (number, target): (u8, &str),
        asked: String,
        bytes: Vec<u8>,
        (expected, flow): (Expected, Option<Flow>),
    ) {
        let via = Via::Frame { shown: bytes.clone(), bytes };
        self.rows.push(Row {
            number,
            target: target.to_owned(),
            asked,
            via,
            flow,
            expected,
            canary: false,
            dns_refused: None,
        });
    }

    fn socket(&mut self, (number, target): (u8, &str), protocol: u8, to: SocketAddrV4, expected: Expected) {
        let (via, name) = match protocol {
            TCP => (Via::Tcp(to), "tcp"),
            _ => (Via::Udp(to, self.token().into_bytes()), "udp"),
        };
        let flow = Some(Flow { protocol, from: None, to });
        let asked = format!("{name} {to}");
        self.rows.push(Row {
            number,
            target: target.to_owned(),
            asked,
            via,
            flow,
            expected,
            canary: false,
            dns_refused: None,
        });
    }

    /// TCP, UDP and ping as frames, and TCP as a program would. What the policy lets out is not
    /// sent, unless `reach` says so.
    fn all(&mut self, (number, target): (u8, &str), to: SocketAddrV4, refused: Expected, reach: bool) {
        let address = *to.ip();
        let ends = self.to(address);
        for protocol in [TCP, UDP, ICMP] {
            let (proto, port, name) = match protocol {
                TCP => (Proto::Tcp, Some(to.port()), format!("tcp {to}, frame")),
                UDP => (Proto::Udp, Some(to.port()), format!("udp {to}, frame")),
                _ => (Proto::Icmp, None, format!("ping {address}, frame")),
            };
            let open = self.subject.lets_out(address, proto, port);
            if open && !reach {
                self.skip(number, target, format!("the policy allows {name}"));
                continue;
            }
            let expected = if open { Expected::Reached } else { refused };
            let token = self.token();
            let flow = Flow { protocol, from: Some(FROM), to };
            let (bytes, flow) = match protocol {
                TCP => (frames::tcp(&ends, (FROM, to.port()), SYN, token.as_bytes()), Some(flow)),
                UDP => (frames::udp(&ends, (FROM, to.port()), token.as_bytes()), Some(flow)),
                _ => (frames::icmp(&ends, 8, token.as_bytes()), None),
            };
            self.flowing((number, target), name, bytes, (expected, flow));
            // Its own stack would not send everything; what it does must meet the same.
            if protocol == TCP && refused == Expected::Refused {
                self.socket((number, target), TCP, to, expected);
            }
        }
    }

    pub(super) fn skip(&mut self, number: u8, target: &str, reason: impl Into<String>) {
        self.untested.push(Untested { number, target: target.to_owned(), reason: reason.into() });
    }

    fn internet(&mut self) {
        let control = self.subject.control;
        if self.subject.policy.reaches_nothing() {
            for address in [*control.ip(), Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(9, 9, 9, 9)] {
                let to = SocketAddrV4::new(address, control.port());
                self.all((14, "Internet, egress none"), to, Expected::Refused, false);
            }
            return self.skip(1, "Internet", "the policy lets nothing out");
        }
        self.all((1, "Internet, the control address"), control, Expected::Refused, true);
        let open = self.subject.lets_out(*control.ip(), Proto::Udp, Some(control.port()));
        let expected = if open { Expected::Reached } else { Expected::Refused };
        self.socket((1, "Internet, the control address"), UDP, control, expected);
        self.skip(14, "Internet, egress none", "the policy is not `none`");
    }

    fn dropped(&mut self) {
        let list = self.subject.drop.clone();
        if list.is_empty() {
            self.skip(2, "the `drop` lists", "they are empty");
        }
        for rule in list.iter().take(SAMPLES) {
            let net = rule.net();
            let address = match net.prefix_len() {
                0 => *self.subject.control.ip(),
                _ => net.hosts().next().unwrap_or(net.addr()),
            };
            let to = SocketAddrV4::new(address, rule.ports().map_or(443, |ports| ports.first()));
            self.all((2, &format!("`drop` entry {rule}")), to, Expected::Refused, false);
        }
    }

    fn hosts(&mut self) {
        let own: Vec<Ipv4Addr> = self.subject.own_addresses().take(SAMPLES).collect();
        let canary = self.subject.canary;
        for address in own {
            for protocol in [TCP, UDP] {
                let to = SocketAddrV4::new(address, canary);
                self.socket((3, "host, a canary"), protocol, to, Expected::Refused);
                if let Some(row) = self.rows.last_mut() {
                    row.canary = true;
                }
            }
            self.socket((3, "host, SSH"), TCP, SocketAddrV4::new(address, 22), Expected::Refused);
            let bytes = frames::icmp(&self.to(address), 8, self.token().as_bytes());
            self.frame((3, "host"), format!("ping {address}, frame"), bytes, Expected::Refused);
        }
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, canary);
        self.all((3, "host, its loopback"), to, Expected::Stopped, false);
    }

    fn siblings(&mut self) {
        let subject = self.subject;
        if subject.siblings.is_empty() {
            self.skip(4, "another live VM", "no other VM runs on this daemon");
        }
        for sibling in subject.siblings.iter().take(SAMPLES) {
            let to = SocketAddrV4::new(sibling.guest(), 22);
            self.all((4, "another live VM"), to, Expected::Refused, false);
            for (what, address) in [
                ("its gateway", sibling.gateway()),
                ("its network address", sibling.network()),
                ("its broadcast address", sibling.broadcast()),
            ] {
                self.ping(4, &format!("another live VM, {what}"), address);
            }
        }
        self.ping(4, "its own network address", subject.block.network());
        self.ping(4, "its own broadcast address", subject.block.broadcast());
        let free = subject.range().blocks().find(|b| *b != subject.block && !subject.siblings.contains(b));
        if let Some(free) = free {
            let to = SocketAddrV4::new(free.guest(), 22);
            self.all((4, "a free address of its range"), to, Expected::Refused, false);
        }
    }

    fn ping(&mut self, number: u8, target: &str, address: Ipv4Addr) {
        let bytes = frames::icmp(&self.to(address), 8, self.token().as_bytes());
        self.frame((number, target), format!("ping {address}, frame"), bytes, Expected::Refused);
    }

    fn lan(&mut self) {
        for (net, ends) in [
            ("10/8", [[10, 0, 0, 1], [10, 255, 255, 254]]),
            ("172.16/12", [[172, 16, 0, 1], [172, 31, 255, 254]]),
            ("192.168/16", [[192, 168, 0, 1], [192, 168, 255, 254]]),
            ("100.64/10", [[100, 64, 0, 1], [100, 127, 255, 254]]),
            ("169.254/16", [[169, 254, 0, 1], [169, 254, 255, 254]]),
        ] {
            for address in ends {
                let to = SocketAddrV4::new(Ipv4Addr::from(address), 80);
                self.all((5, &format!("LAN, {net}")), to, Expected::Refused, false);
            }
        }
        for net in self.subject.hosts.clone().iter().take(SAMPLES).filter(|net| !net.addr().is_loopback()) {
            let own: Vec<Ipv4Addr> = self.subject.own_addresses().collect();
            let neighbour = net.hosts().take(SAMPLES + 1).find(|address| !own.contains(address));
            if let Some(address) = neighbour {
                let to = SocketAddrV4::new(address, 80);
                self.all(
                    (5, &format!("LAN, the host's subnet {}", net.trunc())),
                    to,
                    Expected::Refused,
                    false,
                );
            }
        }
    }

    fn special(&mut self) {
        for address in [
            [169, 254, 169, 254],
            [169, 254, 169, 253],
            [169, 254, 170, 2],
            [168, 63, 129, 16],
            [100, 100, 100, 200],
            [192, 0, 0, 192],
        ] {
            let to = SocketAddrV4::new(Ipv4Addr::from(address), 80);
            self.all((6, "cloud metadata"), to, Expected::Refused, false);
        }
        for (target, address, expected) in [
            ("0/8", [0, 1, 2, 3], Expected::Stopped),
            ("127/8", [127, 1, 2, 3], Expected::Stopped),
            ("192.0.0/24", [192, 0, 0, 8], Expected::Refused),
            ("TEST-NET-1", [192, 0, 2, 1], Expected::Refused),
            ("TEST-NET-2", [198, 51, 100, 1], Expected::Refused),
            ("TEST-NET-3", [203, 0, 113, 1], Expected::Refused),
            ("198.18/15", [198, 19, 255, 254], Expected::Refused),
            ("multicast", [224, 0, 0, 1], Expected::Stopped),
            ("240/4", [240, 0, 0, 1], Expected::Stopped),
            ("broadcast", [255, 255, 255, 255], Expected::Stopped),
        ] {
            let to = SocketAddrV4::new(Ipv4Addr::from(address), 80);
            self.all((7, target), to, expected, false);
        }
        for (target, mac, address, port) in [
            ("mDNS", [1, 0, 0x5e, 0, 0, 0xfb], [224, 0, 0, 251], 5353),
            ("SSDP", [1, 0, 0x5e, 0x7f, 0xff, 0xfa], [239, 255, 255, 250], 1900),
            ("DHCP", BROADCAST, [255, 255, 255, 255], 67),
        ] {
            let ends = Ends { dst_mac: mac, ..self.to(Ipv4Addr::from(address)) };
            let bytes = frames::udp(&ends, (FROM, port), self.token().as_bytes());
            self.frame((7, target), format!("udp {}:{port}, frame", ends.dst), bytes, Expected::Dropped);
        }
    }

    fn protocols(&mut self) {
        let ends = self.to(*self.subject.control.ip());
        for (name, protocol) in [
            ("IGMP", 2),
            ("IP in IP", 4),
            ("IPv6 in IP", 41),
            ("GRE", 47),
            ("ESP", 50),
            ("AH", 51),
            ("OSPF", 89),
            ("VRRP", 112),
            ("SCTP", 132),
            ("UDP-Lite", 136),
        ] {
            let bytes = frames::other(&ends, protocol, self.token().as_bytes());
            self.frame(
                (8, name),
                format!("protocol {protocol} to {}, frame", ends.dst),
                bytes,
                Expected::Refused,
            );
        }
        for (name, options) in [
            ("record route", [7, 7, 4, 0, 0, 0, 0, 0]),
            ("loose source route", [131, 7, 4, 192, 168, 1, 10, 0]),
            ("strict source route", [137, 7, 4, 192, 168, 1, 10, 0]),
            ("timestamp", [68, 8, 5, 0, 0, 0, 0, 0]),
            ("router alert", [148, 4, 0, 0, 0, 0, 0, 0]),
        ] {
            let datagram = frames::udp_datagram(&ends, (FROM, 443), self.token().as_bytes());
            let bytes = frames::ipv4(&ends, UDP, &datagram, Shape { options: &options, fragment: 0 });
            let asked = format!("udp to {} with this option, frame", ends.dst);
            self.frame((8, &format!("IP option: {name}")), asked, bytes, Expected::Refused);
        }
        for (name, kind) in [("ICMP redirect", 5), ("ICMP timestamp", 13), ("ICMP echo reply", 0)] {
            let bytes = frames::icmp(&ends, kind, self.token().as_bytes());
            self.frame((8, name), format!("ICMP {kind} to {}, frame", ends.dst), bytes, Expected::Stopped);
        }
        let lan = self.to(Ipv4Addr::new(10, 0, 0, 1));
        if self.subject.lets_out(lan.dst, Proto::Udp, None) {
            return self.skip(8, "fragments", "the policy allows their destination");
        }
        for (name, fragment) in [("first fragment", 0x2000), ("later fragment", 0x2002), ("last fragment", 2)]
        {
            let datagram = frames::udp_datagram(&lan, (FROM, 80), self.token().as_bytes());
            let bytes = frames::ipv4(&lan, UDP, &datagram, Shape { options: &[], fragment });
            self.frame((8, name), format!("udp {}:80, frame", lan.dst), bytes, Expected::Stopped);
        }
    }

    fn gateway(&mut self) {
        let gateway = self.subject.block.gateway();
        let dns = SocketAddrV4::new(gateway, 53);
        let token = self.token();
        // The last label is of no zone (RFC 6761 §6.4): no resolver passes it on far.
        let query = frames::dns_query(u16::from_be_bytes([0x45, 0x4e]), &[&token, "enisle", "invalid"]);
        let target = if self.subject.policy.reaches_nothing() {
            "gateway, DNS (says REFUSED)"
        } else {
            "gateway, DNS"
        };
        let flow = Some(Flow { protocol: UDP, from: None, to: dns });
        self.rows.push(Row {
            number: 11,
            target: target.to_owned(),
            asked: format!("udp {dns}, a query"),
            via: Via::Udp(dns, query),
            flow,
            expected: Expected::Served,
            canary: false,
            dns_refused: Some(self.subject.policy.reaches_nothing()),
        });
        self.socket((11, "gateway, DNS"), TCP, dns, Expected::Served);
        for port in [22, 80, 54] {
            self.socket(
                (11, "gateway, another port"),
                TCP,
                SocketAddrV4::new(gateway, port),
                Expected::Refused,
            );
        }
        for port in [67, 123, 5353] {
            self.socket(
                (11, "gateway, another port"),
                UDP,
                SocketAddrV4::new(gateway, port),
                Expected::Refused,
            );
        }
        self.ping(11, "gateway", gateway);
    }

    /// A frame that the daemon puts on the host's end of the veth.
    pub(super) fn injected(&mut self, target: &str, asked: String, bytes: Vec<u8>, expected: Expected) {
        let via = Via::Injected(bytes);
        let target = target.to_owned();
        self.rows.push(Row {
            number: 12,
            target,
            asked,
            via,
            flow: None,
            expected,
            canary: false,
            dns_refused: None,
        });
    }

    /// Source port of frames.
    pub(super) const fn from() -> u16 {
        FROM
    }

    /// A segment that belongs to no connection: allowed from an allowed address, and without effect.
    pub(super) fn stray_reset(ends: &Ends, from: u16, token: &str) -> Vec<u8> {
        frames::tcp(ends, (from, FROM), RST | ACK, token.as_bytes())
    }
}
