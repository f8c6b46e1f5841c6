//! A place to run a daemon: a world, a state directory, a configuration file.

use crate::Daemon;
use enisle_testkit::World;
use enisle_testkit::listing::{Listing, Scope};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use tempfile::TempDir;

/// One daemon's world and directories. Dropping the last site of a world takes that away too.
#[derive(Debug)]
pub struct Site {
    /// The namespaces: `host` is where the daemon runs.
    pub world: Arc<World>,
    dir: TempDir,
}

impl Site {
    /// A fresh world.
    ///
    /// # Panics
    /// Without root, `ip` or room in `/tmp`.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Arc::new(World::new().expect("a world of namespaces")))
    }

    /// Another daemon's place in the same world.
    ///
    /// # Panics
    /// Without room in `/tmp`.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self::of(Arc::clone(&self.world))
    }

    fn of(world: Arc<World>) -> Self {
        let dir = tempfile::Builder::new().prefix("enisle-vm-").tempdir().expect("a directory in /tmp");
        Self { world, dir }
    }

    /// A directory of this test.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The daemon's state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The daemon's API socket.
    #[must_use]
    pub fn api(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    /// Writes a configuration file with these host groups (YAML, a list) and this site's paths.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn config(&self, groups: &str) -> PathBuf {
        let indented: String = groups.lines().map(|line| format!("    {line}\n")).collect();
        let text = format!(
            "config:\n  api: \"unix:{}\"\n  state_dir: \"{}\"\n  image_dir: \"{}\"\n  host_groups:\n{indented}",
            self.api().display(),
            self.state_dir().display(),
            image_dir().display()
        );
        let path = self.dir.path().join("enisle.yaml");
        fs::write(&path, text).expect("write the configuration");
        path
    }

    /// Starts a daemon on these host groups and waits until its API answers.
    ///
    /// # Panics
    /// If it does not come up; with its log.
    #[must_use]
    pub fn up(&self, groups: &str) -> Daemon<'_> {
        let config = self.config(groups);
        Daemon::start(self, &config, &[]).expect("the daemon comes up")
    }

    /// The command line, speaking to this site's daemon.
    #[must_use]
    pub fn enisle(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("enisle"));
        command.arg("--api").arg(format!("unix:{}", self.api().display())).args(args);
        command.current_dir(self.dir.path());
        command
    }

    /// Runs `enisle gc` on this site's state directory, in the world's `host`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn gc(&self, flags: &[&str]) -> Output {
        let mut command = self.enisle(&["gc", "--state-dir"]);
        command.arg(self.state_dir()).args(flags).stdin(Stdio::null());
        self.world.host.output(&mut command).expect("run enisle gc")
    }

    /// Everything a leak could hide in: the host namespace, and what names this site's directory.
    ///
    /// # Panics
    /// If a tool for looking is missing.
    #[must_use]
    pub fn listing(&self, scope_mark: &str) -> Listing {
        let dir = self.dir.path().to_string_lossy().into_owned();
        let state = self.state_dir();
        let trees = [state.as_path()];
        let scope = Scope {
            processes: &[dir.as_str()],
            // Other tests' daemons run beside this one: only names with our own scope count.
            bpf: &[scope_mark],
            cgroups: &[scope_mark],
            trees: &trees,
        };
        Listing::take(&self.world.host, &scope).expect("a listing")
    }
}

/// VMs outlive their daemon: those of a test that failed end here.
impl Drop for Site {
    fn drop(&mut self) {
        let found = self.gc(&[]);
        if !found.status.success() {
            eprintln!("enisle gc: {}", String::from_utf8_lossy(&found.stderr));
        }
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

/// A program built beside this test.
///
/// # Panics
/// If it is not there: `./test` builds it.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the test's own path");
    // target/release/deps/test-0123 → target/release
    let dir = own.parent().and_then(Path::parent).expect("a target directory");
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run ./test, or build it first", path.display());
    path
}

/// Where the guest images are: `ENISLE_TEST_IMAGES`, or the default place.
#[must_use]
pub fn image_dir() -> PathBuf {
    std::env::var_os("ENISLE_TEST_IMAGES").map_or_else(|| "/var/lib/enisle/images".into(), PathBuf::from)
}
