//! The documents suffice: a client in Python, written from them alone, drives every route of a live daemon.

use enisle_testkit::world::{ECHO, SERVER};
use enisle_tests_vm::{Site, ok};
use std::path::Path;
use std::process::Command;

const ONE: &str = "- name: agents\n  count: 1\n  network: { mode: isolated, range: \"169.254.100.0/22\" }";

/// The distribution's interpreter, which has the distribution's WebSocket package.
const PYTHON: &str = "/usr/bin/python3";

#[test]
fn a_client_written_from_the_documents_drives_every_route() {
    let site = Site::new();
    let daemon = site.up(ONE);
    assert_eq!(daemon.sh("agents-1", "echo up"), "up");
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/drive.py");
    let mut drive = Command::new(PYTHON);
    // Nothing is written beside the sources.
    drive.arg("-B").arg(program).arg(site.api()).arg(format!("{SERVER}:{ECHO}"));
    let said = ok(&drive.output().unwrap());
    assert!(said.lines().any(|line| line.ends_with("routes answer as the documents say")), "{said}");
    assert!(daemon.stop().success());
}
