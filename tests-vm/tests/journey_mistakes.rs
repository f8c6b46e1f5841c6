//! A file with mistakes: each is told with its line and a snippet, and nothing on the machine
//! changes. The real binary, as root, in a world's host namespace.

use enisle_tests_vm::{Site, program};
use std::fs;
use std::process::Command;

/// A group's lines, and words that the report must have.
const MISTAKES: [(&str, &str, &[&str]); 12] = [
    (
        "unknown key",
        "- { name: a, colour: red, network: { mode: isolated, range: 169.254.100.0/22 } }",
        &["colour"],
    ),
    (
        "duplicate key",
        "- { name: a, name: b, network: { mode: isolated, range: 169.254.100.0/22 } }",
        &["name"],
    ),
    ("no network", "- { name: a, network: { mode: isolated, range: banana } }", &["banana"]),
    ("IPv6", "- { name: a, network: { mode: isolated, range: \"fd00::/64\" } }", &["IPv4"]),
    ("smaller than a block", "- { name: a, network: { mode: isolated, range: 169.254.100.0/31 } }", &["/30"]),
    (
        "host bits",
        "- { name: a, network: { mode: isolated, range: 169.254.100.1/22 } }",
        &["169.254.100.0/22"],
    ),
    (
        "count",
        "- { name: a, count: 300, network: { mode: isolated, range: 169.254.100.0/22 } }",
        &["300", "256"],
    ),
    (
        "CIDR",
        "- { name: a, network: { mode: isolated, range: 169.254.100.0/22, drop: [300.1.1.1/8] } }",
        &["300.1.1.1/8"],
    ),
    ("no CPU", "- { name: a, vcpu: 0, network: { mode: isolated, range: 169.254.100.0/22 } }", &["vcpu"]),
    (
        "image",
        "- { name: a, image: atlantis, network: { mode: isolated, range: 169.254.100.0/22 } }",
        &["atlantis"],
    ),
    (
        "overlap",
        "- { name: a, network: { mode: isolated, range: 169.254.100.0/22 } }\n\
         - { name: b, network: { mode: isolated, range: 169.254.101.0/24 } }",
        &["169.254.101.0/24"],
    ),
    (
        "in use",
        "- { name: a, network: { mode: isolated, range: 172.17.4.0/22 } }",
        &["172.17.4.0/22", "docker0"],
    ),
];

#[test]
fn every_mistake_has_its_line_and_snippet_and_changes_nothing() {
    let site = Site::new();
    let before = site.listing("\u{1}");
    for (name, groups, words) in MISTAKES {
        let config = site.config(groups);
        let mut command = Command::new(program("enisle"));
        command.arg("up").arg(&config).current_dir(site.dir());
        let output = site.world.host.output(&mut command).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        for word in words {
            assert!(said.contains(word), "{name}: no {word:?} in\n{said}");
        }
        assert!(
            said.contains("enisle.yaml:6") || said.contains("enisle.yaml:7"),
            "{name}: no line in\n{said}"
        );
        let snippet = groups.lines().last().unwrap();
        assert!(said.contains(snippet.get(..20).unwrap()), "{name}: no snippet in\n{said}");
        let changed: Vec<String> = site
            .listing("\u{1}")
            .since(&before)
            .into_iter()
            // Other tests' namespaces come and go beside this one.
            .filter(|line| !line.contains(" namespaces: "))
            .collect();
        assert!(changed.is_empty(), "{name}: {changed:#?}");
        assert!(!site.state_dir().exists() && !site.api().exists(), "{name}: something was made");
    }
    all_at_once(&site);
}

fn all_at_once(site: &Site) {
    let config =
        site.config("- { name: A!, vcpu: 0, colour: red, network: { mode: isolated, range: banana } }");
    let mut command = Command::new(program("enisle"));
    command.arg("--json").arg("up").arg("--check").arg(&config).current_dir(site.dir());
    let output = site.world.host.output(&mut command).unwrap();
    let text = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&text);
    for word in ["A!", "vcpu", "colour", "banana"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(fs::read_dir(site.dir()).unwrap().count() <= 2, "nothing but the file was made");
}
