//! No text panics, hangs or is accepted by accident.

use proptest::prelude::*;

use super::super::Look;
use super::{NETWORK, read, with_group};

/// Pieces of which files are made, in any order.
const PIECES: [&str; 40] = [
    "config:",
    "host_groups:",
    "- name: agents",
    "- ",
    "name",
    "network:",
    "mode: isolated",
    "range:",
    "\"169.254.100.0/22\"",
    "10.0.0.0/8",
    "drop:",
    "allow: [",
    "]",
    "{",
    "}",
    ",",
    ": ",
    "\n",
    "\n  ",
    "\n    ",
    "\n      ",
    "\n        ",
    "\t",
    "|",
    ">-",
    "&a ",
    "*a",
    "!!str ",
    "? ",
    "---",
    "...",
    "# x",
    "'",
    "\"",
    "\u{feff}",
    "\u{0}",
    "ü",
    "日本",
    "count: -1",
    "1e999",
];

fn text_of_pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(&PIECES[..]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// A report must hold together whatever it is about.
fn check(text: &str) {
    if let Err(errors) = read(text) {
        assert!(errors.len() > 0);
        let lines = text.lines().count().max(1) as u64 + 1;
        for mistake in errors.to_json().as_array().unwrap() {
            assert!(mistake["line"].as_u64().is_none_or(|line| (1..=lines).contains(&line)));
            assert!(!mistake["message"].as_str().unwrap().is_empty());
        }
        for look in [Look::Plain, Look::Terminal { width: 80 }] {
            assert!(errors.render(look).contains("nothing was started"));
        }
    }
}

proptest! {
    #[test]
    fn any_text_gives_a_configuration_or_a_report(text in ".{0,400}") {
        check(&text);
    }

    #[test]
    fn any_yaml_like_text_gives_a_configuration_or_a_report(text in text_of_pieces()) {
        check(&text);
    }

    #[test]
    fn any_change_of_a_valid_file_gives_a_configuration_or_a_report(
        at in 0usize..400, cut in 0usize..20, piece in prop::sample::select(&PIECES[..]),
    ) {
        let mut text = include_str!("../../../../../examples/agents.yaml").to_owned();
        let at = text.floor_char_boundary(at.min(text.len()));
        let end = text.ceil_char_boundary((at + cut).min(text.len()));
        text.replace_range(at..end, piece);
        check(&text);
    }

    #[test]
    fn any_value_of_any_key_gives_a_configuration_or_a_report(
        key in prop::sample::select(vec![
            "count", "vcpu", "ram_gb", "ram_mb", "image", "disk", "userdata", "ssh_keys", "network",
        ]),
        value in "[ -~]{0,40}",
    ) {
        check(&with_group(&format!("{NETWORK}{key}: {value}\n")));
    }
}

#[test]
fn deep_nesting_is_a_mistake_not_a_crash() {
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        let text = format!("config: {}{}", open.repeat(100_000), close.repeat(100_000));
        check(&text);
        assert!(read(&text).is_err());
    }
    let mut text = String::new();
    for depth in 0..2_000 {
        text.push_str(&" ".repeat(depth));
        text.push_str("a:\n");
    }
    check(&text);
    assert!(read(&text).is_err());
}
