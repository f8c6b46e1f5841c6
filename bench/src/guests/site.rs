//! A daemon in a world of its own, and its command line. Dropping it stops the daemon, which takes
//! its VMs away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use enisle_testkit::World;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// In this process's own `/run`, which vanishes with it.
const DIR: &str = "/run/bench-vms";
/// Longest wait for anything: emulated guests on a busy machine are slow.
const PATIENCE: Duration = Duration::from_secs(240);
/// Waits in the guest until systemd can be asked, and then until it has nothing more to start.
const BOOT_END: &str =
    "until [ -S /run/systemd/private ]; do sleep 0.2; done; systemctl is-system-running --wait";
/// Between two looks at what tells nobody that it changed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The daemon and its world.
pub(super) struct Site {
    child: Child,
    _world: World,
}

impl Site {
    /// A daemon with one group `bench` of this image and without VMs.
    pub(super) fn up(image: &str) -> Result<Site> {
        fs::create_dir_all(DIR)?;
        let file = format!("{DIR}/enisle.yaml");
        fs::write(
            &file,
            format!(
                "config:\n  api: {DIR}/api.sock\n  state_dir: {DIR}/state\n  image_dir: {}\n  host_groups:\n  \
                 - name: bench\n    count: 0\n    image: {image}\n    network: {{mode: isolated, range: 169.254.100.0/22}}\n",
                image_dir().display()
            ),
        )?;
        let log = format!("{DIR}/log");
        let said = fs::File::create(&log)?;
        let world = World::new()?;
        let mut command = Command::new(program("enisle")?);
        command.args(["up", &file]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        let child = world.host.run(|| command.spawn())?;
        let mut site = Site { child, _world: world };
        let deadline = Instant::now() + PATIENCE;
        while !site.cli(&["vm", "list"]).output()?.status.success() {
            if Instant::now() > deadline || site.child.try_wait()?.is_some() {
                bail!("the daemon does not come up: {}", fs::read_to_string(&log)?);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(site)
    }

    /// Where the API is.
    pub(super) fn api(&self) -> String {
        format!("unix:{DIR}/api.sock")
    }

    /// `enisle ARGS`, speaking to this daemon, silent.
    pub(super) fn cli(&self, args: &[&str]) -> Command {
        // It was there when the daemon was started.
        let mut command = Command::new(program("enisle").unwrap_or_default());
        command.args(["--api", &format!("{DIR}/api.sock")]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end; its output.
    pub(super) fn run(&self, args: &[&str]) -> Result<String> {
        let out = self.cli(args).stdout(Stdio::piped()).output()?;
        ensure!(out.status.success(), "enisle {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?)
    }

    /// All VMs.
    pub(super) fn list(&self) -> Result<Vec<Value>> {
        let text = self.run(&["--json", "vm", "list"])?;
        Ok(serde_json::from_str::<Value>(&text)?.as_array().cloned().unwrap_or_default())
    }

    /// Waits until that many VMs run, and nothing else is there.
    pub(super) fn running(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let list = self.list()?;
            if list.len() == count && list.iter().all(|vm| vm["state"] == "running") {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not all VMs run: {list:?}");
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// A VM whose init has nothing more to do, with this program in it.
    pub(super) fn settled_vm(&self) -> Result<String> {
        let name = self.run(&["vm", "new", "--wait"])?.trim().to_owned();
        // It fails where a unit failed; what counts is that it waits for the end of the boot.
        self.cli(&["vm", "exec", &name, "--", "sh", "-c", BOOT_END]).status()?;
        let own = std::env::current_exe()?;
        self.run(&["vm", "cp", &own.to_string_lossy(), &format!("{name}:/root/bench")])?;
        self.run(&["vm", "exec", &name, "--", "/root/bench", super::inside::WORD, "nothing"])
            .context("this program does not run in the guest: its C library must be the image's")?;
        Ok(name)
    }

    /// Process id of the daemon.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The console's log of a VM.
    pub(super) fn console(name: &str) -> PathBuf {
        Path::new(DIR).join("state/vms").join(name).join("console.log")
    }

    /// The socket of a VM's vsock device for programs of the host.
    pub(super) fn vsock(&self) -> Result<PathBuf> {
        let run = Path::new(DIR).join("state/run");
        let found = fs::read_dir(&run)?.filter_map(|entry| Some(entry.ok()?.path().join("vsock.sock")));
        found.filter(|path| path.exists()).last().context("no VM has a vsock device")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // It ends by itself when told to; one that is gone already needs nothing.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(DIR);
    }
}

/// A binary beside this one.
fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().map(|dir| dir.join(name)).context("this program has no directory")?;
    ensure!(path.exists(), "{} is missing: cargo xtask bench builds it", path.display());
    Ok(path)
}

/// Where the images are: `ENISLE_TEST_IMAGES`, or the default place.
fn image_dir() -> PathBuf {
    std::env::var_os("ENISLE_TEST_IMAGES").map_or_else(|| "/var/lib/enisle/images".into(), PathBuf::from)
}
