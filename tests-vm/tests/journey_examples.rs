//! The programs in `examples/` do what they say: the same session in Rust, in Python and by the command line.

use enisle_tests_vm::{Site, program};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ON_DEMAND: &str =
    "- name: agents\n  count: 0\n  network: { mode: isolated, range: \"169.254.100.0/22\" }";

/// Its tests: one passes, one fails, and a report is written of both.
const TESTS: &str = "import unittest\n\
    class T(unittest.TestCase):\n\
    \x20   def test_good(self): pass\n\
    \x20   def test_bad(self): self.assertEqual(open('data').read(), 'other')\n";
const COMMAND: &str = "echo running; python3 -m unittest -v tests.py 2> report.txt";

fn repository(site: &Site) -> PathBuf {
    let directory = site.dir().join("repository");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("tests.py"), TESTS).unwrap();
    fs::write(directory.join("data"), "content").unwrap();
    directory
}

/// Runs an example in a directory.
fn run(site: &Site, example: &mut Command, command: &str, place: &Path) -> Output {
    let path = format!("{}:/usr/bin:/bin", program("enisle").parent().unwrap().display());
    example.arg(site.dir().join("repository")).args([command, "report.txt"]).current_dir(place);
    example.env("ENISLE_API", format!("unix:{}", site.api().display())).env("PATH", path);
    example.output().unwrap()
}

/// Runs an example in a directory of its own, where it leaves the report.
fn session(site: &Site, name: &str, mut example: Command) -> (Output, String) {
    let place = site.dir().join(name);
    fs::create_dir(&place).unwrap();
    let output = run(site, &mut example, COMMAND, &place);
    let report = fs::read_to_string(place.join("report.txt"))
        .unwrap_or_else(|e| panic!("{name}: no report ({e}): {}", String::from_utf8_lossy(&output.stderr)));
    (output, report)
}

#[test]
fn an_agents_session_in_three_languages() {
    let site = Site::new();
    let daemon = site.up(ON_DEMAND);
    repository(&site);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for (name, example) in [
        ("rust", Command::new(program("examples/agent_session"))),
        ("python", {
            let mut python = Command::new("/usr/bin/python3");
            python.arg("-B").arg(examples.join("agent_session.py"));
            python
        }),
        ("shell", Command::new(examples.join("agent_session.sh"))),
    ] {
        let mut example = example;
        if name != "shell" {
            example.env("ENISLE_GROUP", "agents");
        }
        let (output, report) = session(&site, name, example);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{name}: a test failed, and the session says so: {output:?}"
        );
        assert!(String::from_utf8_lossy(&output.stdout).contains("running"), "{name}: {output:?}");
        assert!(report.contains("test_good") && report.contains("FAILED (failures=1)"), "{name}: {report}");
        assert_eq!(daemon.json(&["vm", "list"]), json!([]), "{name}: the sandbox is gone");
    }
    // A command that fails before there is a result: its code, and no sandbox is left.
    let (name, mut failing) = ("shell, failing", Command::new(examples.join("agent_session.sh")));
    let output = run(&site, &mut failing, "exit 9", &site.dir().join("repository"));
    assert_eq!(output.status.code(), Some(9), "{name}: {output:?}");
    assert_eq!(daemon.json(&["vm", "list"]), json!([]), "{name}: the sandbox is gone");
    assert!(daemon.stop().success());
}
