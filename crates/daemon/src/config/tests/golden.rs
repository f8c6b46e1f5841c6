//! The whole report of each kind of mistake, in `golden/`: `NAME.yaml` is the file, `NAME.txt` what
//! is said about it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::{Config, ConfigErrors, Look, load};
use super::{TestHost, assert_golden, root};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/tests/golden")
}

/// The mistakes of a golden file, read from the disk as a user's file is.
fn mistakes(name: &str) -> ConfigErrors {
    let path = directory().join(format!("{name}.yaml"));
    let mut errors = load(&path, &TestHost).map(|config: Config| config.groups).unwrap_err();
    errors.source.name = "enisle.yaml".to_owned();
    errors
}

macro_rules! golden {
    ($($name:ident)+) => {
        const NAMES: &[&str] = &[$(stringify!($name)),+];
        $(
            #[test]
            fn $name() {
                let name = stringify!($name);
                assert_golden(&directory().join(format!("{name}.txt")), &mistakes(name).to_string());
            }
        )+
    };
}

golden! {
    alias_bomb
    alias_of_itself
    alias_unknown
    api_relative
    config_not_a_mapping
    count_much_too_large
    count_too_large
    disk_sizes
    dns
    duplicate_keys
    duplicate_top
    empty_file
    empty_values
    group_names
    groups_not_a_list
    hypervisor
    image_missing
    initramfs_alone
    kernel_missing
    limits
    listen
    long_line
    many
    merge_key
    missing_keys
    mode_bridge
    no_mapping_at_all
    not_utf8
    odd_keys
    only_comments
    overlap_through_alias
    overlapping_groups
    paths
    policy_cannot_allow
    policy_entries
    ram_gb_zero
    ram_twice
    range_host_bits
    range_in_use
    range_metadata
    range_no_length
    range_not_ipv4
    range_number
    range_public
    range_too_small
    range_words
    same_name
    ssh_keys
    ssh_server
    ssh_without_keys
    syntax
    syntax_indentation
    syntax_tab
    syntax_unclosed_quote
    tags
    tls_files
    two_documents
    unknown_keys
    userdata_is_a_path
    wide_characters
    wrong_types
    zero_cpus_and_ram
}

#[test]
fn every_golden_file_has_its_test() {
    let files = std::fs::read_dir(directory()).unwrap();
    let names: BTreeSet<String> =
        files.filter_map(|file| Some(file.unwrap().path().file_stem()?.to_str()?.to_owned())).collect();
    let tested: BTreeSet<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names, tested);
}

#[test]
fn a_terminal_gets_graphics_with_every_place() {
    let drawn = mistakes("overlapping_groups").render(Look::Terminal { width: 80 });
    for part in ["169.254.100.0/22", "169.254.102.0/24", "help: ", "──"] {
        assert!(drawn.contains(part), "{part} is missing in:\n{drawn}");
    }
}

#[test]
fn a_terminal_is_never_sent_control_characters_of_the_file() {
    let text = "config:\n  image: \"a\u{1b}[31mb\"\n";
    let errors = super::read(text).unwrap_err();
    for look in [Look::Plain, Look::Terminal { width: 80 }] {
        let report = errors.render(look);
        assert!(!report.contains("\u{1b}[31mb"), "{report:?}");
    }
}

#[test]
fn json_names_place_message_and_help_of_each_mistake() {
    let json = mistakes("same_name").to_json();
    assert_eq!(
        json,
        serde_json::json!([{
            "file": "enisle.yaml",
            "line": 7,
            "column": 13,
            "message": "two groups are named `agents`",
            "help": "VMs are named after their group: give one of the two another name",
        }])
    );
}

#[test]
fn json_of_a_missing_file_has_no_place() {
    let errors = load(Path::new("/nonexistent/enisle.yaml"), &TestHost).unwrap_err();
    let json = errors.to_json();
    assert_eq!(json[0]["line"], serde_json::Value::Null);
    assert_eq!(json[0]["message"], "there is no such file");
}

#[test]
fn missing_file_says_how_to_write_one() {
    let report = load(Path::new("/nonexistent/enisle.yaml"), &TestHost).unwrap_err().to_string();
    let minimal = std::fs::read_to_string(root().join("examples/minimal.yaml")).unwrap();
    for line in minimal.lines() {
        assert!(report.contains(line), "{report}");
    }
}

#[test]
fn directories_and_endless_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let report = load(directory.path(), &TestHost).unwrap_err().to_string();
    assert!(report.contains("this is a directory, not a file"), "{report}");

    let report = load(Path::new("/dev/zero"), &TestHost).unwrap_err().to_string();
    assert!(report.contains("larger than 1024 KiB"), "{report}");

    let large = directory.path().join("large.yaml");
    std::fs::File::create(&large).unwrap().set_len(100_000_000).unwrap();
    let report = load(&large, &TestHost).unwrap_err().to_string();
    assert!(report.contains("larger than 1024 KiB"), "{report}");
}

#[test]
fn at_most_200_mistakes_are_shown_and_all_are_counted() {
    let entries = "\"x\", ".repeat(1000);
    let keys = format!("network: {{mode: isolated, range: 10.0.0.0/24, drop: [{entries}]}}");
    let errors = super::read(&super::with_group(&keys)).unwrap_err();
    assert_eq!(errors.len(), 1000);
    assert!(errors.to_string().contains("... and 800 more mistakes"));
}

#[test]
fn keys_that_do_not_fit_a_boot_message_are_refused_where_they_stand() {
    let key = format!("'{} {}'", super::valid::KEY, "c".repeat(4000));
    let list = |count| vec![key.as_str(); count].join(", ");
    let file = |common, own| {
        let group = super::with_group(&format!("{}ssh_keys: [{}]", super::NETWORK, list(own)));
        format!("{group}  ssh_keys: [{}]\n", list(common))
    };
    assert!(super::read(&file(1, 2)).is_ok());
    for (common, own, line) in [(2, 2, 5), (0, 4, 5), (4, 1, 6)] {
        let report = super::read(&file(common, own)).unwrap_err().to_string();
        assert!(report.starts_with(&format!("enisle.yaml:{line}:")), "{report}");
        assert!(report.contains("bytes together, but 15360 fit"), "{report}");
    }
}
