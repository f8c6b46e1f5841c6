//! What the configuration promises: files that are valid, and the whole report of each kind of
//! mistake. `ENISLE_UPDATE_GOLDEN=1 cargo test -p enisle-daemon config` writes the reports anew.

mod garbage;
mod golden;
mod schema;
mod valid;

use std::path::{Path, PathBuf};

use super::{Config, ConfigErrors, Host, InUse, parse};

/// A machine with Docker on it, two images and one kernel.
pub(super) struct TestHost;

impl Host for TestHost {
    fn networks(&self, _: &Path) -> Vec<InUse> {
        let used = |net: &str, by: &str| InUse { net: net.parse().unwrap(), by: by.to_owned() };
        vec![used("192.168.1.0/24", "interface eth0"), used("172.17.0.0/16", "interface docker0")]
    }

    fn images(&self, _: &Path) -> Option<Vec<String>> {
        Some(vec!["default".to_owned(), "ubuntu-24.04".to_owned()])
    }

    fn is_file(&self, path: &Path) -> bool {
        path == Path::new("/boot/vmlinuz") || path == Path::new("/boot/initrd.img")
    }
}

fn read(text: &str) -> Result<Config, ConfigErrors> {
    parse("enisle.yaml", text, &TestHost)
}

/// A group around some keys, with `config:` around it.
fn with_group(keys: &str) -> String {
    let indented: String = keys.lines().map(|line| format!("      {line}\n")).collect();
    format!("config:\n  host_groups:\n    - name: agents\n{indented}")
}

const NETWORK: &str = "network: {mode: isolated, range: 169.254.100.0/22}\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares with a file, or writes it when asked to.
fn assert_golden(path: &Path, text: &str) {
    if std::env::var_os("ENISLE_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; ENISLE_UPDATE_GOLDEN=1 writes it anew", path.display());
}
