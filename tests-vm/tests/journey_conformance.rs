//! The documents suffice: a client in Python, written from them alone, drives every route of a live daemon, and what is
//! made up from the OpenAPI document gets no answer that it does not know.

use enisle_testkit::world::{ECHO, SERVER};
use enisle_tests_vm::{Daemon, Site, ok};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

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

/// Room for one VM, which is there: what is made up makes no more.
const FULL: &str = "- name: agents\n  count: 1\n  network: { mode: isolated, range: \"169.254.100.0/30\" }";

/// Where the made-up requests go: schemathesis speaks TCP.
const LOOPBACK: &str = "127.0.0.1:7480";

/// Makes up requests; what it said when one was not answered as the document says, or by a 5xx.
fn fuzz(site: &Site, env: &[(&str, &str)], arguments: &[&str]) {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let conformance = own.join("conformance");
    let mut command = Command::new(own.join("../target/tools/schemathesis/bin/schemathesis"));
    command.arg("--config-file").arg(conformance.join("schemathesis.toml")).args(["run", "--no-color"]);
    command.arg(format!("http://{LOOPBACK}/v1/openapi.json")).arg("--url").arg(format!("http://{LOOPBACK}"));
    command.args(["--exclude-path-regex", "/stream$"]).args(arguments).envs(env.iter().copied());
    command.env("FUZZ_KEEP", "agents-1");
    // It leaves its notes in the directory that it stands in.
    command.current_dir(site.dir()).env("PYTHONPATH", conformance).env("PYTHONDONTWRITEBYTECODE", "1");
    let said = site.world.host.output(&mut command).expect("schemathesis is there: ./test installs it");
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success(), "{text}\n{}", String::from_utf8_lossy(&said.stderr));
    let tested = text.lines().find(|line| line.trim_start().starts_with("Tested:")).unwrap_or_default();
    println!(
        "{} {}",
        tested.trim(),
        text.lines().find(|line| line.contains("generated,")).unwrap_or_default().trim()
    );
}

#[test]
fn made_up_requests_get_an_answer_that_the_document_knows_and_never_a_5xx() {
    let site = Site::new();
    let config = site.config(FULL);
    let daemon = Daemon::start_with(&site, &config, &["--insecure-loopback", LOOPBACK], &[]).unwrap();
    let boot = daemon.sh("agents-1", "cat /proc/sys/kernel/random/boot_id");
    let descriptors = || -> BTreeMap<String, usize> {
        let mut open = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().flatten() {
            // One that was closed meanwhile has no name any more. Sockets have numbers, which say nothing.
            if let Ok(name) = std::fs::read_link(entry.path()) {
                let name = name.to_string_lossy().split(":[").next().unwrap_or_default().to_owned();
                *open.entry(name).or_default() += 1;
            }
        }
        open
    };
    let before = descriptors();
    fuzz(&site, &[], &[]);
    // The values reach the guest. What removes or halts it is not asked.
    let at = [("FUZZ_AT", "agents-1"), ("FUZZ_GROUP", "agents")];
    fuzz(
        &site,
        &at,
        &[
            "--include-path-regex",
            "/v1/(vms|groups)/",
            "--exclude-name",
            "DELETE /v1/vms/{name}",
            "--exclude-name",
            "POST /v1/vms/{name}/pause",
        ],
    );
    assert_eq!(
        daemon.sh("agents-1", "cat /proc/sys/kernel/random/boot_id"),
        boot,
        "the same guest as before"
    );
    let begun = Instant::now();
    let more = |now: &BTreeMap<String, usize>| now.iter().any(|(name, n)| before.get(name).unwrap_or(&0) < n);
    while more(&descriptors()) {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:#?}\nbefore it were {before:#?}",
            descriptors()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = daemon.log();
    assert!(!log.contains("panicked") && !log.contains(" ERROR "), "{log}");
    assert!(daemon.stop().success());
}
