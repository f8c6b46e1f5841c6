//! Row 12: packets that nobody asked for, on their way to the guest.
//!
//! Two ways in. The host's own sockets meet the host's table. Frames that the daemon puts on the
//! host's end of the veth meet nothing but the judge; one of them, a stray reset from an allowed address,
//! is delivered, so the way in is known to be open.

use super::frames::{self, ACK, Ends, ICMP, SYN, Shape, TCP, UDP};
use super::probe::{Flow, Via};
use super::rows::{Row, Rows};
use enisle_api::verify::Expected;
use enisle_net::policy::Proto;
use std::net::{Ipv4Addr, SocketAddrV4};

/// A port of the guest that nobody has a reason to use.
const PORT: u16 = 1022;
const LAN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

pub(super) fn add(rows: &mut Rows<'_>) {
    from_host(rows);
    let control = rows.subject.control;
    let from_control = to_guest(rows, *control.ip());
    let open = rows.subject.lets_out(*control.ip(), Proto::Tcp, Some(control.port()));
    if open {
        let bytes = Rows::stray_reset(&from_control, control.port(), &rows.token());
        let asked = format!("reset from {control}, on the host's end");
        rows.injected("control: from an allowed address", asked, bytes, Expected::Delivered);
    }
    let bytes = frames::tcp(&from_control, (control.port(), PORT), SYN, rows.token().as_bytes());
    rows.injected("a call", format!("tcp SYN from {control}, on the host's end"), bytes, Expected::Dropped);
    let bytes = frames::icmp(&from_control, 8, rows.token().as_bytes());
    rows.injected(
        "a ping",
        format!("ping from {}, on the host's end", control.ip()),
        bytes,
        Expected::Dropped,
    );
    for (protocol, name) in [(47, "GRE"), (132, "SCTP")] {
        let bytes = frames::other(&from_control, protocol, rows.token().as_bytes());
        rows.injected(
            name,
            format!("{name} from {}, on the host's end", control.ip()),
            bytes,
            Expected::Dropped,
        );
    }
    let datagram = frames::udp_datagram(&from_control, (443, PORT), rows.token().as_bytes());
    let options = Shape { options: &[7, 7, 4, 0, 0, 0, 0, 0], fragment: 0 };
    let bytes = frames::ipv4(&from_control, UDP, &datagram, options);
    rows.injected(
        "IP options",
        format!("udp from {}, on the host's end", control.ip()),
        bytes,
        Expected::Dropped,
    );
    strangers(rows);
}

/// From those whom the guest may not ask.
fn strangers(rows: &mut Rows<'_>) {
    let host = rows.subject.own_addresses().next();
    let sibling = rows.subject.siblings.first().map(|block| block.guest());
    for (whose, source) in [("a LAN address", Some(LAN)), ("the host", host), ("another VM", sibling)] {
        let Some(source) = source else { continue };
        if rows.subject.lets_out(source, Proto::Udp, Some(443))
            || rows.subject.lets_out(source, Proto::Tcp, Some(443))
        {
            rows.skip(12, whose, "the policy allows to ask there");
            continue;
        }
        let ends = to_guest(rows, source);
        let bytes = frames::udp(&ends, (443, PORT), rows.token().as_bytes());
        rows.injected(whose, format!("udp from {source}, on the host's end"), bytes, Expected::Dropped);
        let bytes = frames::tcp(&ends, (443, PORT), ACK, rows.token().as_bytes());
        rows.injected(whose, format!("tcp ACK from {source}, on the host's end"), bytes, Expected::Dropped);
    }
}

fn from_host(rows: &mut Rows<'_>) {
    let to = SocketAddrV4::new(rows.guest(), PORT);
    for (protocol, name) in [(TCP, "tcp"), (UDP, "udp"), (ICMP, "ping")] {
        rows.rows.push(Row {
            number: 12,
            target: "the host's own sockets".to_owned(),
            asked: format!("{name} {to}, from the host"),
            via: Via::FromHost(protocol, to),
            // The others carry a token.
            flow: (protocol == TCP).then_some(Flow { protocol, from: None, to }),
            expected: Expected::Dropped,
            canary: false,
            dns_refused: None,
        });
    }
}

fn to_guest(rows: &Rows<'_>, src: Ipv4Addr) -> Ends {
    let block = rows.subject.block;
    Ends { src_mac: block.host_mac().octets(), dst_mac: block.guest_mac().octets(), src, dst: block.guest() }
}
