//! Owns asking QEMU for its version, and the range that is supported.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::error::{Cause, OnPath};

/// Ubuntu 22.04's, the oldest of the supported distributions.
const OLDEST: (u32, u32) = (6, 2);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// QEMU's version, as `7.2.22`.
pub(super) async fn check(binary: &Path) -> Result<String, Cause> {
    let mut command = Command::new(binary);
    command.arg("--version").env_clear().current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(ANSWER_LIMIT, command.output())
        .await
        .map_err(|_| Cause::TimedOut { what: "QEMU's answer to --version", limit: ANSWER_LIMIT })?
        .on("run", binary)?;
    let answer = String::from_utf8_lossy(&output.stdout);
    let unsuitable = |problem: String| Cause::Unsuitable { path: binary.to_owned(), problem };
    let version =
        parse(&answer).ok_or_else(|| unsuitable("does not tell its version: is it QEMU?".into()))?;
    if (version.0, version.1) < OLDEST {
        let (major, minor) = OLDEST;
        return Err(unsuitable(format!(
            "is QEMU {}.{}.{}; {major}.{minor} or newer is needed",
            version.0, version.1, version.2
        )));
    }
    Ok(format!("{}.{}.{}", version.0, version.1, version.2))
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`, as printed by `system/vl.c`.
fn parse(answer: &str) -> Option<(u32, u32, u32)> {
    let rest = answer.strip_prefix("QEMU emulator version ")?;
    let dotted = rest.split(|letter: char| !(letter.is_ascii_digit() || letter == '.'));
    let mut numbers = dotted.into_iter().next()?.split('.').map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_distributions_print_them() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright";
        assert_eq!(parse(debian), Some((7, 2, 22)));
        assert_eq!(parse("QEMU emulator version 10.0.2\n"), Some((10, 0, 2)));
        assert_eq!(parse("QEMU emulator version 6.2 (x)"), Some((6, 2, 0)));
        assert_eq!(parse("bash: no"), None);
        assert_eq!(parse("QEMU emulator version x"), None);
    }

    #[tokio::test]
    async fn another_program_is_refused() {
        let refused = check(Path::new("/bin/true")).await.unwrap_err().to_string();
        assert!(refused.contains("is it QEMU?"), "{refused}");
    }
}
