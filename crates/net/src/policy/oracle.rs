//! Proof of the compiler: a brute-force reading of "the most specific rule wins" must agree with
//! the compiled form on every packet, and the golden texts must not change unseen.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use proptest::prelude::*;
use proptest::sample::select;

use super::compiled::Origin;
use super::*;

/// Specificity and precedence of the text of `policy`, lowest wins; straight from the sentence.
type Key = (u8, bool, u8, usize);

/// Reads the rules one by one, without any structure.
fn oracle(spec: &PolicySpec, floor: bool, packet: Packet) -> (Verdict, Origin) {
    let mut best: (Key, Verdict, Origin) = ((33, true, 3, 0), Verdict::Allow, Origin::Default);
    let mut offer = |rule: &Rule, class: u8, index: usize, verdict: Verdict, origin: Origin| {
        if rule.matches(packet.addr, packet.proto, packet.port) {
            let key = (32 - rule.net().prefix_len(), rule.ports().is_none(), class, index);
            if key < best.0 {
                best = (key, verdict, origin);
            }
        }
    };
    for (i, rule) in spec.drop.iter().enumerate() {
        offer(rule, 0, i, Verdict::Refuse, Origin::Drop(i));
    }
    for (i, rule) in spec.allow.iter().enumerate() {
        offer(rule, 1, i, Verdict::Allow, Origin::Allow(i));
    }
    for row in FLOOR.iter().filter(|_| floor) {
        offer(&Rule::network(row.net), 2, 0, Verdict::Refuse, Origin::Floor(row.row));
    }
    (best.1, best.2)
}

#[derive(Debug, Clone, Copy)]
struct Packet {
    addr: Ipv4Addr,
    proto: Proto,
    port: Option<u16>,
}

/// Addresses that meet: the ends of the address space, floor rows, and a few neighbours.
fn address() -> impl Strategy<Value = u32> {
    let anchors: Vec<u32> = [
        "0.0.0.0",
        "255.255.255.255",
        "10.0.0.0",
        "10.255.255.255",
        "127.0.0.1",
        "169.254.169.254",
        "192.168.1.10",
        "192.168.1.11",
        "8.8.8.8",
        "8.8.4.4",
        "223.255.255.255",
        "224.0.0.1",
        "128.0.0.0",
        "127.255.255.255",
    ]
    .iter()
    .map(|s| u32::from(s.parse::<Ipv4Addr>().unwrap()))
    .collect();
    prop_oneof![
        4 => (select(anchors), 0u32..4).prop_map(|(a, d)| a.wrapping_add(d)),
        1 => any::<u32>(),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![select(vec![1u16, 2, 22, 53, 80, 443, 444, 32768, 65534, 65535]), 1u16..]
}

fn rule() -> impl Strategy<Value = Rule> {
    let ports = proptest::option::of((port(), port(), any::<bool>()));
    (address(), 0u8..=32, ports, 0usize..3).prop_map(|(addr, len, ports, proto)| {
        let net = Ipv4Net::new_assert(Ipv4Addr::from(addr), len).trunc();
        let Some((a, b, single)) = ports else {
            return Rule::network(net);
        };
        let last = if single { a.min(b) } else { a.max(b) };
        let text = format!("{net}:{}-{last}{}", a.min(b), ["", "/tcp", "/udp"][proto]);
        text.parse().unwrap()
    })
}

fn can_open(rule: &Rule) -> bool {
    !FLOOR.iter().any(|row| !row.can_open && row.net.contains(&rule.net()))
}

fn spec() -> impl Strategy<Value = PolicySpec> {
    let list = || proptest::collection::vec(rule(), 0..24);
    (list(), list()).prop_map(|(drop, mut allow)| {
        allow.retain(can_open);
        PolicySpec { drop, allow }
    })
}

fn packets() -> impl Strategy<Value = Vec<Packet>> {
    let one = (address(), 0usize..3, prop_oneof![port(), Just(0u16)]);
    proptest::collection::vec(one, 64)
        .prop_map(|list| list.into_iter().map(|(a, p, port)| packet(Ipv4Addr::from(a), p, port)).collect())
}

fn packet(addr: Ipv4Addr, proto: usize, port: u16) -> Packet {
    let proto = [Proto::Tcp, Proto::Udp, Proto::Icmp][proto];
    Packet { addr, proto, port: (proto != Proto::Icmp).then_some(port) }
}

/// Packets at every edge of a rule: inside and outside its network and its ports.
fn edges(rule: &Rule) -> Vec<Packet> {
    let net = rule.net();
    let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
    let addrs = [first, last, first.wrapping_sub(1), last.wrapping_add(1)];
    let ports = match rule.ports() {
        Some(p) => {
            vec![p.first(), p.last(), p.first().wrapping_sub(1), p.last().wrapping_add(1)]
        }
        None => vec![0, 80, 65535],
    };
    let mut list = Vec::new();
    for addr in addrs {
        for proto in 0..3 {
            list.extend(ports.iter().map(|p| packet(Ipv4Addr::from(addr), proto, *p)));
        }
    }
    list
}

fn all_edges(spec: &PolicySpec) -> Vec<Packet> {
    spec.drop.iter().chain(&spec.allow).flat_map(edges).collect()
}

fn judged(policy: &CompiledPolicy, p: Packet) -> (Verdict, Origin) {
    let (verdict, rule) = policy.judge(p.addr, p.proto, p.port);
    (verdict, policy.rule(rule).expect("a rule of this policy").origin)
}

/// Fragments carry no port: refused unless all 65,536 ports of both protocols would pass, but for
/// the ports that no span edge separates, which are alike.
fn fragment_oracle(spec: &PolicySpec, addr: Ipv4Addr) -> Verdict {
    let mut ports = vec![0u16, 65535];
    for rule in spec.drop.iter().chain(&spec.allow) {
        if let Some(p) = rule.ports() {
            ports.extend([p.first() - 1, p.first(), p.last(), p.last().saturating_add(1)]);
        }
    }
    let passes =
        |port: &u16| (0..2).all(|proto| oracle(spec, true, packet(addr, proto, *port)).0 == Verdict::Allow);
    if ports.iter().all(passes) { Verdict::Allow } else { Verdict::Refuse }
}

/// What a map needs: unique keys, an entry for every address, disjoint port prefixes, sane ids.
fn assert_well_formed(policy: &CompiledPolicy) {
    assert_eq!(policy.entries()[0].net.to_string(), "0.0.0.0/0");
    assert!(policy.entries().is_sorted_by(|a, b| a.net < b.net), "keys sorted and unique");
    for e in policy.entries() {
        assert!(policy.rule(e.rule).is_some());
        assert_eq!(e.net, e.net.trunc());
        assert_ne!(e.ports, Some(PortsId(0)));
    }
    for pair in policy.port_entries().windows(2) {
        let (a, b) = (&pair[0], &pair[1]);
        assert_ne!(a.proto, Proto::Icmp);
        assert!((a.ports, a.proto, a.prefix.port) < (b.ports, b.proto, b.prefix.port));
        if (a.ports, a.proto) == (b.ports, b.proto) {
            assert!(a.prefix.last() < b.prefix.port, "{a:?} meets {b:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn compiled_agrees_with_the_oracle(spec in spec(), mut packets in packets()) {
        let policy = compile(&spec).unwrap();
        assert_well_formed(&policy);
        packets.extend(all_edges(&spec));
        for p in &packets {
            prop_assert_eq!(judged(&policy, *p), oracle(&spec, true, *p), "{:?}", p);
        }
        // The oracle for fragments is slow; edges repeat an address 9 or 12 times anyway.
        for p in packets.iter().step_by(37) {
            let (fragment, _) = policy.judge(p.addr, Proto::Udp, None);
            prop_assert_eq!(fragment, fragment_oracle(&spec, p.addr), "fragment {}", p.addr);
        }
    }

    #[test]
    fn order_and_duplicates_never_matter(spec in spec(), packets in packets()) {
        let mut other = spec.clone();
        other.drop.reverse();
        other.allow.reverse();
        other.drop.extend(spec.drop.iter());
        other.allow.extend(spec.allow.iter());
        let (a, b) = (compile(&spec).unwrap(), compile(&other).unwrap());
        for p in packets {
            prop_assert_eq!(judged(&a, p).0, judged(&b, p).0, "{:?}", p);
        }
    }

    #[test]
    fn narrowed_passes_exactly_what_both_pass(
        group in spec(), vm in spec(), mut packets in packets(),
    ) {
        let policy = compile_narrowed(&group, &vm).unwrap();
        assert_well_formed(&policy);
        packets.extend(all_edges(&group));
        packets.extend(all_edges(&vm));
        for p in packets {
            let (outer, by_group) = oracle(&group, true, p);
            let (inner, by_vm) = oracle(&vm, false, p);
            let expected = match (outer, inner, by_vm) {
                (Verdict::Allow, Verdict::Refuse, Origin::Drop(i)) => {
                    (Verdict::Refuse, Origin::VmDrop(i))
                }
                _ => (outer, by_group),
            };
            prop_assert_eq!(judged(&policy, p), expected, "{:?}", p);
        }
    }

    #[test]
    fn a_vm_without_lists_narrows_nothing(group in spec(), packets in packets()) {
        let wide = compile(&group).unwrap();
        let narrowed = compile_narrowed(&group, &PolicySpec::default()).unwrap();
        for p in packets {
            prop_assert_eq!(judged(&wide, p), judged(&narrowed, p));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Lines for people say what the compiled form says: the longest network, then its ports.
    #[test]
    fn effects_say_what_is_judged(group in spec(), vm in spec(), mut packets in packets()) {
        let policy = compile_narrowed(&group, &vm).unwrap();
        packets.extend(all_edges(&group).into_iter().step_by(29));
        let effects = policy.effects();
        let mut open = false;
        for p in packets {
            let holds = |e: &&Effect| e.net.contains(&p.addr) && match (e.ports, p.port) {
                (None, _) => true,
                (Some((proto, first, last)), Some(port)) => proto == p.proto && (first..=last).contains(&port),
                (Some(_), None) => false,
            };
            let line = effects.iter().filter(holds).max_by_key(|e| (e.net.prefix_len(), e.ports.is_some()));
            let (verdict, rule) = policy.judge(p.addr, p.proto, p.port);
            prop_assert_eq!(line.map(|e| (e.verdict, e.rule)), Some((verdict, rule)), "{:?}", p);
            open |= verdict == Verdict::Allow;
            let about = policy.rules_about(p.addr, p.proto, p.port);
            prop_assert!(about.contains(&rule), "{:?}: {:?} is not about it", p, rule);
            let groups = about.iter().find(|r| {
                !matches!(policy.rule(**r).unwrap().origin, Origin::VmDrop(_) | Origin::VmAllow(_))
            });
            let (outer, by) = oracle(&group, true, p);
            prop_assert_eq!(groups.and_then(|r| policy.rule(*r)).map(|i| i.origin), Some(by), "{:?}", outer);
        }
        prop_assert!(!(open && policy.reaches_nothing()));
    }

    #[test]
    fn a_policy_that_reaches_nothing_has_no_open_line(group in spec()) {
        let policy = compile(&group).unwrap();
        let open = policy.effects().iter().any(|e| e.verdict == Verdict::Allow);
        prop_assert_eq!(policy.reaches_nothing(), !open);
    }
}

#[test]
fn egress_none_is_known_however_it_is_written() {
    let none = |drop: &[&str], allow: &[&str]| compile(&parse(drop, allow)).unwrap().reaches_nothing();
    assert!(none(&["0.0.0.0/0"], &[]));
    assert!(none(&["0.0.0.0/1", "128.0.0.0/1"], &[]));
    assert!(none(&["0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/1"], &[]));
    assert!(none(&["0.0.0.0/0", "8.8.8.8:53"], &[]));
    assert!(none(&["0.0.0.0/0", "8.8.8.8"], &["8.8.8.8"]), "dropped at the same length");
    assert!(none(&["0.0.0.0/0", "8.8.8.0/25", "8.8.8.128/25"], &["8.8.8.0/24"]), "opened, and hidden");
    assert!(!none(&[], &[]));
    assert!(!none(&["0.0.0.0/1"], &[]));
    assert!(!none(&["0.0.0.0/1", "128.0.0.0/2"], &[]));
    assert!(!none(&["0.0.0.0/0:1-65535"], &[]), "ICMP passes");
    assert!(!none(&["0.0.0.0/0"], &["8.8.8.8:53/udp"]));
    let all = parse(&["0.0.0.0/0"], &[]);
    let narrowed = compile_narrowed(&PolicySpec::default(), &all).unwrap();
    assert!(narrowed.reaches_nothing(), "by the VM's own lists");
    let more = parse(&["0.0.0.0/0"], &["8.8.8.8"]);
    assert!(!compile_narrowed(&PolicySpec::default(), &more).unwrap().reaches_nothing());
    assert!(compile_narrowed(&all, &more).unwrap().reaches_nothing(), "a VM's allow opens nothing");
}

#[test]
fn the_ends_of_the_address_space() {
    use Verdict::{Allow, Refuse};
    let tcp = |policy: &CompiledPolicy, addr: &str| verdict(policy, addr, Proto::Tcp, Some(65535));
    let ends = compile(&parse(&["1.0.0.0", "223.255.255.255"], &[])).unwrap();
    for (addr, expected) in [
        ("0.0.0.0", Refuse),
        ("0.255.255.255", Refuse),
        ("1.0.0.0", Refuse),
        ("1.0.0.1", Allow),
        ("223.255.255.254", Allow),
        ("223.255.255.255", Refuse),
        ("224.0.0.0", Refuse),
        ("255.255.255.254", Refuse),
        ("255.255.255.255", Refuse),
    ] {
        assert_eq!(tcp(&ends, addr), expected, "{addr}");
    }
    let last = compile(&parse(&["255.255.255.255", "0.0.0.0", "0.0.0.0"], &["0.0.0.0/0"])).unwrap();
    assert_well_formed(&last);
    assert_eq!(last.judge(Ipv4Addr::BROADCAST, Proto::Udp, Some(1)).0, Refuse);
    assert_eq!(judged(&last, packet(Ipv4Addr::BROADCAST, 1, 1)).1, Origin::Drop(0));
    assert_eq!(judged(&last, packet(Ipv4Addr::UNSPECIFIED, 1, 1)).1, Origin::Drop(1), "the first of two");
}

fn parse(drop: &[&str], allow: &[&str]) -> PolicySpec {
    let list = |l: &[&str]| l.iter().map(|s| s.parse().unwrap()).collect();
    PolicySpec { drop: list(drop), allow: list(allow) }
}

fn verdict(policy: &CompiledPolicy, addr: &str, proto: Proto, port: Option<u16>) -> Verdict {
    policy.judge(addr.parse().unwrap(), proto, port).0
}

#[test]
fn the_sentences_of_the_documentation() {
    use Proto::{Icmp, Tcp};
    use Verdict::{Allow, Refuse};
    let open = compile(&parse(&[], &["0.0.0.0/0"])).unwrap();
    assert_eq!(verdict(&open, "192.168.1.10", Tcp, Some(80)), Refuse, "opens no LAN");
    assert_eq!(verdict(&open, "93.184.216.34", Tcp, Some(80)), Allow);

    let one = compile(&parse(&[], &["192.168.1.10:5432"])).unwrap();
    assert_eq!(verdict(&one, "192.168.1.10", Tcp, Some(5432)), Allow);
    assert_eq!(verdict(&one, "192.168.1.10", Tcp, Some(5433)), Refuse);
    assert_eq!(verdict(&one, "192.168.1.10", Icmp, None), Refuse, "that port only");
    assert_eq!(verdict(&one, "192.168.1.11", Tcp, Some(5432)), Refuse);

    let list = compile(&parse(&["0.0.0.0/0"], &["93.184.216.34:443/tcp"])).unwrap();
    assert_eq!(verdict(&list, "93.184.216.34", Tcp, Some(443)), Allow);
    assert_eq!(verdict(&list, "93.184.216.34", Proto::Udp, Some(443)), Refuse);
    assert_eq!(verdict(&list, "8.8.8.8", Tcp, Some(443)), Refuse);

    let none = compile(&PolicySpec::default()).unwrap();
    assert_eq!(verdict(&none, "8.8.8.8", Icmp, None), Allow);
    for row in FLOOR {
        for addr in [row.net.network(), row.net.broadcast()] {
            assert_eq!(none.judge(addr, Icmp, None).0, Refuse, "{addr} of row {}", row.row);
        }
    }
}

#[test]
fn what_cannot_be_enforced_is_refused_with_its_place() {
    let inside = compile(&parse(&[], &["8.8.8.8", "127.0.0.1:80"])).unwrap_err();
    assert!(matches!(inside, CompileError::CannotAllow { at: Origin::Allow(1), .. }), "{inside}");
    assert!(inside.to_string().starts_with("allow[1]: 127.0.0.1:80 "), "{inside}");
    let vm = compile_narrowed(&PolicySpec::default(), &parse(&[], &["240.0.0.0/8"]));
    assert!(matches!(vm, Err(CompileError::CannotAllow { at: Origin::VmAllow(0), .. })));

    let one: Rule = "1.1.1.1".parse().unwrap();
    let many = PolicySpec { drop: vec![one; MAX_RULES], allow: vec![one] };
    assert_eq!(compile(&many), Err(CompileError::TooManyRules { at: Origin::Allow(0) }));

    // 1,000 port rules for everybody under 1,000 hosts with one each would be a million entries.
    let mut wide = PolicySpec::default();
    for i in 0..1000u16 {
        wide.drop.push(format!("0.0.0.0/0:{}", 1000 + 2 * i).parse().unwrap());
        wide.drop.push(format!("8.8.{}.{}:80", i / 250, i % 250).parse().unwrap());
    }
    let error = compile(&wide).unwrap_err();
    assert!(matches!(error, CompileError::TooManyPorts { at: Origin::Drop(_), .. }), "{error}");
}

#[test]
fn ten_thousand_entries_with_ports_compile_and_agree() {
    let mut spec = PolicySpec::default();
    for i in 0..10_000u32 {
        let addr = Ipv4Addr::from(0x0808_0000 + i * 7);
        let len = 24 + (i % 9) as u8;
        let net = Ipv4Net::new_assert(addr, len).trunc();
        let rule = match i % 3 {
            0 => Rule::network(net),
            n => format!("{net}:{}-{}/tcp", n * 100, n * 200 + i % 50).parse().unwrap(),
        };
        if i % 2 == 0 { spec.drop.push(rule) } else { spec.allow.push(rule) }
    }
    let policy = compile(&spec).unwrap();
    assert_well_formed(&policy);
    for p in all_edges(&spec).into_iter().step_by(997) {
        assert_eq!(judged(&policy, p), oracle(&spec, true, p), "{p:?}");
    }
}

#[test]
fn specs_are_lists_of_strings() {
    let text = r#"{"drop":["192.168.1.0/24"],"allow":["192.168.1.10:5432/tcp"]}"#;
    let spec: PolicySpec = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&spec).unwrap(), text);
    assert_eq!(serde_json::from_str::<PolicySpec>("{}").unwrap(), PolicySpec::default());
    assert!(serde_json::from_str::<PolicySpec>(r#"{"dorp":[]}"#).is_err());
    let error = serde_json::from_str::<PolicySpec>(r#"{"drop":["10.0.0.1/8"]}"#).unwrap_err();
    assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
}

/// Compares with a golden text; `BLESS=1` writes it anew.
fn assert_golden(name: &str, policy: &CompiledPolicy) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/policy/golden").join(name);
    let text = policy.to_string();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{} differs; now it reads\n{text}", path.display());
}

#[test]
fn golden_texts() {
    assert_golden("floor.txt", &compile(&PolicySpec::default()).unwrap());
    assert_golden("example.txt", &compile(&parse(&["192.168.1.0/24"], &[])).unwrap());
    let service = parse(
        &["192.168.0.0/16", "192.168.1.0/24:25", "192.168.1.10:5430-5440/udp"],
        &["192.168.1.0/24:20-30", "192.168.1.10:5432", "8.8.8.8:53"],
    );
    assert_golden("ports.txt", &compile(&service).unwrap());
    let allow_list = parse(&["0.0.0.0/0"], &["93.184.216.0/24:443/tcp", "8.8.8.8:53"]);
    assert_golden("allow-list.txt", &compile(&allow_list).unwrap());
    let vm = parse(&["93.184.216.0/25"], &["93.184.216.34"]);
    assert_golden("narrowed.txt", &compile_narrowed(&allow_list, &vm).unwrap());
}
