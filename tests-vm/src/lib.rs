//! Journeys with real guests: a world of namespaces, the real daemon in its `host`, the real
//! command line.
//!
//! Owns: starting and stopping the daemon, running `enisle`, bounded waits. Refuses: the machine's
//! own network (the daemon runs inside a world), and skipping: what is missing fails a test.
//!
//! The binaries are those beside the test's own (`target/release`), which `./test` builds.

mod daemon;
mod site;

pub use daemon::Daemon;
pub use site::{Site, image_dir, program};

use std::process::Output;

/// What a command printed on standard output, or a panic with all it said.
///
/// # Panics
/// If the command failed.
#[track_caller]
#[expect(clippy::must_use_candidate, reason = "that it succeeded is often all a test wants")]
pub fn ok(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command printed on standard error, or a panic if it succeeded.
///
/// # Panics
/// If the command succeeded.
#[track_caller]
#[must_use]
pub fn fails(output: &Output) -> String {
    assert!(!output.status.success(), "succeeded: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}
