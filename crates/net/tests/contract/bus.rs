//! A message bus for a program that talks on the system's: a private one, in the host's namespace.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use enisle_testkit::Netns;

/// A bus anybody on it may use; its socket is in a directory of ours.
const CONFIGURATION: &str = "\
<busconfig>
  <listen>unix:path=DIR/bus</listen>
  <policy context=\"default\">
    <allow send_destination=\"*\" eavesdrop=\"true\"/>
    <allow eavesdrop=\"true\"/>
    <allow own=\"*\"/>
  </policy>
</busconfig>
";

/// A running `dbus-daemon` and its directory, until dropped.
pub(crate) struct Bus {
    dir: PathBuf,
    address: String,
    daemon: Option<Child>,
}

impl Bus {
    /// Starts one for the program `name`, and waits until it can be called.
    pub(crate) fn start(host: &Netns, name: &str) -> Bus {
        let dir = std::env::temp_dir().join(format!("enisle-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let mut bus = Bus { dir, address: String::new(), daemon: None };
        let file = bus.dir.join("bus.conf");
        std::fs::write(&file, CONFIGURATION.replace("DIR", bus.dir.to_str().unwrap())).unwrap();
        let mut command = Command::new("dbus-daemon");
        command.arg(format!("--config-file={}", file.display()));
        command.args(["--nofork", "--nopidfile", "--print-address=1"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(bus.dir.join("bus.log")).unwrap());
        let daemon = bus.daemon.insert(host.run(|| command.spawn()).expect("run dbus-daemon"));
        // It says where it is once it can be called.
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut bus.address).unwrap();
        let complaint = std::fs::read_to_string(bus.dir.join("bus.log")).unwrap();
        assert!(bus.address.starts_with("unix:"), "dbus-daemon does not start: {complaint}");
        bus.address.truncate(bus.address.trim_end().len());
        bus
    }

    /// A directory for the program's files. It goes with the bus.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What `DBUS_SYSTEM_BUS_ADDRESS` has to be.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            // Dead already is dead as well.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // A directory in /tmp is no reason to fail.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
