//! `enisle doctor` on this machine, which it only reads.

use crate::world::{enisle, text};
use serde_json::Value;

fn findings(output: &std::process::Output) -> (bool, Vec<Value>) {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    (report["ok"].as_bool().unwrap(), report["findings"].as_array().unwrap().clone())
}

#[test]
fn it_reports_and_its_exit_code_says_whether_microvms_would_work() {
    let dir = tempfile::tempdir().unwrap();
    let output = enisle().current_dir(dir.path()).args(["doctor", "--quick", "--json"]).output().unwrap();
    let (ok, all) = findings(&output);
    assert_eq!(output.status.code(), Some(i32::from(!ok)), "{}", text(&output.stderr));
    assert!(all.iter().any(|f| f["id"] == "hypervisor") && !all.iter().any(|f| f["id"] == "configuration"));
    for finding in &all {
        if finding["severity"] == "failure" {
            assert_ne!(finding["fix"], "", "{finding}");
        }
    }
    let table = enisle().current_dir(dir.path()).args(["doctor", "--quick"]).output().unwrap();
    assert_eq!(table.status.code(), output.status.code());
    assert!(text(&table.stdout).contains("  hypervisor "), "{}", text(&table.stdout));
}

#[test]
fn a_file_that_cannot_hold_is_a_failure_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("enisle.yaml");
    std::fs::write(
        &file,
        "config:\n  host_groups:\n  - name: a\n    network:\n      mode: isolated\n      range: 8.8.8.0/24\n",
    )
    .unwrap();
    // Without a name it takes the file `up` would take.
    for words in [&["doctor", "--quick", "--json"][..], &["doctor", "enisle.yaml", "--quick", "--json"]] {
        let output = enisle().current_dir(dir.path()).args(words).output().unwrap();
        let (ok, all) = findings(&output);
        assert_eq!((ok, output.status.code()), (false, Some(1)));
        let wrong = all.iter().find(|f| f["id"] == "configuration").unwrap();
        let what = wrong["what"].as_str().unwrap();
        assert!(what.contains("enisle.yaml:6") && what.contains("8.8.8.0/24"), "{what}");
    }
    assert_eq!(enisle().args(["doctor", "--nonsense"]).output().unwrap().status.code(), Some(2));
}
