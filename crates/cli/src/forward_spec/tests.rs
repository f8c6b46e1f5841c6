//! The grammar, by example and by property.

use super::*;
use proptest::prelude::*;

fn tcp(host: &str, port: u16) -> Target {
    Target::Tcp { host: host.into(), port }
}

fn parse(text: &str) -> Result<(Listen, Target), SpecError> {
    text.parse::<ForwardSpec>().map(|spec| (spec.listen, spec.target))
}

#[test]
fn every_documented_form() {
    let any4 = IpAddr::from([0, 0, 0, 0]);
    let lo6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let sock = || Target::Unix("/guest.sock".into());
    for (text, listen, target) in [
        ("8080", Listen::Loopback(8080), tcp("127.0.0.1", 8080)),
        ("2222:22", Listen::Loopback(2222), tcp("127.0.0.1", 22)),
        ("2222:127.0.0.1:22", Listen::Loopback(2222), tcp("127.0.0.1", 22)),
        ("0:example.org:80", Listen::Loopback(0), tcp("example.org", 80)),
        ("localhost:1:h:2", Listen::Loopback(1), tcp("h", 2)),
        ("0.0.0.0:8080:localhost:80", Listen::Tcp(any4, 8080), tcp("localhost", 80)),
        ("[::1]:8080:[2001:db8::1]:80", Listen::Tcp(lo6, 8080), tcp("2001:db8::1", 80)),
        ("0.0.0.0:0:80", Listen::Tcp(any4, 0), tcp("127.0.0.1", 80)),
        ("8080:/guest.sock", Listen::Loopback(8080), sock()),
        ("0.0.0.0:8080:/guest.sock", Listen::Tcp(any4, 8080), sock()),
        ("/local.sock:/guest.sock", Listen::Unix("/local.sock".into()), sock()),
        ("./l.sock:h:80", Listen::Unix("./l.sock".into()), tcp("h", 80)),
        ("/l.sock:80", Listen::Unix("/l.sock".into()), tcp("127.0.0.1", 80)),
        ("/l:/a:b", Listen::Unix("/l".into()), Target::Unix("/a:b".into())),
    ] {
        assert_eq!(parse(text), Ok((listen, target)), "{text}");
    }
}

#[test]
fn what_is_none_says_what_would_be() {
    type Check = fn(&SpecError) -> bool;
    let cases: [(&str, Check); 24] = [
        ("", |e| matches!(e, SpecError::Port(_))),
        ("0", |e| matches!(e, SpecError::AnyTarget(_))),
        ("http", |e| matches!(e, SpecError::Port(_))),
        ("65536", |e| matches!(e, SpecError::Port(_))),
        ("+80", |e| matches!(e, SpecError::Port(_))),
        ("-1:2", |e| matches!(e, SpecError::Address(_))),
        ("80:", |e| matches!(e, SpecError::Port(_))),
        ("80:0", |e| matches!(e, SpecError::Port(_))),
        ("80:h:0", |e| matches!(e, SpecError::Port(_))),
        ("80::90", |e| matches!(e, SpecError::Host(_))),
        ("1:2:3", |e| matches!(e, SpecError::Host(_))),
        ("1:h:2:3", |e| matches!(e, SpecError::Port(_))),
        ("::1:80:h:80", |e| matches!(e, SpecError::Port(_) | SpecError::Address(_))),
        ("*:80:h:80", |e| matches!(e, SpecError::Address(_))),
        ("1.2.3:80:h:80", |e| matches!(e, SpecError::Address(_))),
        ("[1.2.3.4]:80:h:80", |e| matches!(e, SpecError::Address(_))),
        ("[::1:80:h:80", |e| matches!(e, SpecError::Bracket(_))),
        ("[::1]x:80", |e| matches!(e, SpecError::Bracket(_))),
        ("127.0.0.1:80", |e| matches!(e, SpecError::NoTarget(_))),
        ("/l.sock", |e| matches!(e, SpecError::NoTarget(_))),
        ("80:./guest.sock", |e| matches!(e, SpecError::GuestPath(_))),
        ("80:/", |e| matches!(e, SpecError::GuestPath(_))),
        ("80:h h:80", |e| matches!(e, SpecError::Host(_))),
        ("/dir/:80", |e| matches!(e, SpecError::LocalPath(_))),
    ];
    for (text, check) in cases {
        let error = parse(text).unwrap_err();
        assert!(check(&error), "{text}: {error:?}");
    }
}

fn listen() -> impl Strategy<Value = Listen> {
    prop_oneof![
        any::<u16>().prop_map(Listen::Loopback),
        (any::<IpAddr>(), any::<u16>()).prop_map(|(address, port)| Listen::Tcp(address, port)),
        "(/|\\./)[a-zA-Z0-9._-]{1,20}".prop_map(|path| Listen::Unix(path.into())),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        ("[a-z][a-z0-9.-]{0,30}", 1u16..).prop_map(|(host, port)| Target::Tcp { host, port }),
        (any::<IpAddr>(), 1u16..).prop_map(|(host, port)| tcp(&host.to_string(), port)),
        "/[a-zA-Z0-9.:_-]{1,30}".prop_map(Target::Unix),
    ]
}

proptest! {
    #[test]
    fn a_spec_survives_being_written_and_read(listen in listen(), target in target()) {
        let spec = ForwardSpec { listen, target };
        prop_assert_eq!(spec.to_string().parse(), Ok(spec));
    }

    #[test]
    fn any_text_is_judged_and_what_is_accepted_reads_back(text in "[0-9a-z\\[\\]:./ -]{0,30}") {
        if let Ok(spec) = text.parse::<ForwardSpec>() {
            let again = spec.to_string().parse::<ForwardSpec>();
            prop_assert_eq!(again, Ok(spec));
        }
    }
}
