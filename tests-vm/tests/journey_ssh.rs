//! Consoles and the menu over SSH, with the real `ssh` and a real guest. One boot, and a small one.

use enisle_testkit::world;
use enisle_tests_vm::{Daemon, Site, fails, ok};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(240);
const PORT: &str = "2222";
/// Ctrl-].
const ESCAPE: &str = "\x1d";
const GROUPS: &str = "- name: agents\n  network: { mode: isolated, range: \"169.254.100.0/22\" }\n\
                      - name: small\n  count: 0\n  image: minimal\n  network: { mode: isolated, range: \"169.254.104.0/24\" }";

/// A key of a user, in the site's directory.
struct Key {
    file: PathBuf,
    public: String,
    fingerprint: String,
}

impl Key {
    fn new(site: &Site, name: &str) -> Self {
        let file = site.dir().join(name);
        let comment = format!("{name}@test");
        let mut made = Command::new("ssh-keygen");
        ok(&made.args(["-q", "-t", "ed25519", "-N", "", "-C", &comment, "-f"]).arg(&file).output().unwrap());
        let public = fs::read_to_string(file.with_extension("pub")).unwrap().trim().to_owned();
        let listed = ok(&Command::new("ssh-keygen").arg("-lf").arg(&file).output().unwrap());
        let fingerprint = listed.split_whitespace().nth(1).unwrap().to_owned();
        Self { file, public, fingerprint }
    }
}

/// `ssh` to an address of the world's host, which it has to know from its first visit on.
fn ssh(site: &Site, key: &Key, options: &[&str], user: &str, command: &[&str]) -> Command {
    let known = format!("UserKnownHostsFile={}", site.dir().join("known_hosts").display());
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-F",
        "none",
        "-e",
        "none",
        "-p",
        PORT,
        "-o",
        &known,
        "-o",
        "StrictHostKeyChecking=accept-new",
    ]);
    ssh.args(["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=60", "-i"])
        .arg(&key.file);
    ssh.args(options).arg(format!("{user}@{}", world::HOST_LAN)).args(command);
    ssh.env_remove("SSH_AUTH_SOCK").stdin(Stdio::null());
    ssh
}

fn run(site: &Site, key: &Key, options: &[&str], user: &str, command: &[&str]) -> Output {
    site.world.host.output(&mut ssh(site, key, options, user, command)).expect("run ssh")
}

/// Somebody's terminal.
struct Viewer {
    child: Child,
    stdin: ChildStdin,
    shown: Arc<Mutex<Vec<u8>>>,
    /// How much of it was looked at.
    seen: usize,
}

impl Viewer {
    fn new(site: &Site, key: &Key, user: &str) -> Self {
        let errors = File::create(site.dir().join("ssh.err")).unwrap();
        let mut command = ssh(site, key, &["-tt"], user, &[]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = site.world.host.run(|| command.spawn()).expect("start ssh");
        let (stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let shown = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        Self { child, stdin, shown, seen: 0 }
    }

    fn types(&mut self, keys: &str) {
        self.stdin.write_all(keys.as_bytes()).unwrap();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until this is shown, after what was waited for before; what was shown up to it.
    #[track_caller]
    fn sees(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let shown = self.shown.lock().unwrap().clone();
            let new = &shown[self.seen..];
            if let Some(at) = new.windows(text.len()).position(|window| window == text.as_bytes()) {
                let end = at + text.len();
                self.seen += end;
                return String::from_utf8_lossy(&new[..end]).into_owned();
            }
            assert!(start.elapsed() < PATIENCE, "no {text:?} in:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a command at the guest's prompt and waits for its answer, which the command's own echo
    /// does not hold.
    #[track_caller]
    fn asks(&mut self, mark: &str) {
        self.types(&format!("echo {mark}-$((40+2))\r"));
        self.sees(&format!("{mark}-42"));
    }

    /// Its exit status.
    #[track_caller]
    fn ends(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "it does not end:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(site: &Site, operator: &Key, of_group: &Key) -> PathBuf {
    let groups = GROUPS.replacen("network:", &format!("ssh_keys: [\"{}\"]\n  network:", of_group.public), 1);
    let path = site.config(&groups);
    let mut text = fs::read_to_string(&path).unwrap();
    text += &format!("  ssh: {{ bind: 0.0.0.0, port: {PORT} }}\n  ssh_keys: [\"{}\"]\n", operator.public);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn consoles_and_the_menu_over_ssh() {
    let site = Site::new();
    let [ann, bob, eve] = ["ann", "bob", "eve"].map(|name| Key::new(&site, name));
    let file = config(&site, &ann, &bob);
    let daemon = Daemon::start(&site, &file, &[]).expect("the daemon comes up");
    let host_key = site.state_dir().join("ssh_host_ed25519_key");
    assert_eq!(fs::metadata(&host_key).unwrap().mode() & 0o7777, 0o600);

    let mut first = Viewer::new(&site, &ann, "agents-1");
    first.sees("you write");
    first.types("\r");
    first.sees("root@");
    first.asks("first");
    several_watch_and_one_writes(&site, &mut first, &bob);
    strangers_and_other_wishes_are_refused(&site, &daemon, (&ann, &bob, &eve));
    a_taken_port_is_refused_before_anything_is_made(&site, &ann, &bob);
    no_guest_reaches_the_port(&site, &daemon);
    it_works_without_network_and_agent(&site, &daemon, &mut first);
    the_menu_follows_and_acts(&site, &daemon, &ann);

    // A daemon that dies takes the sessions with it, and nothing else.
    let key_before = fs::read(&host_key).unwrap();
    daemon.kill();
    assert_eq!(first.ends(), Some(255));
    let daemon = Daemon::start(&site, &file, &[]).expect("the next daemon comes up");
    assert_eq!(fs::read(&host_key).unwrap(), key_before);
    let mut first = Viewer::new(&site, &ann, "agents-1");
    let scroll_back = first.sees("you write");
    assert!(scroll_back.contains("fifth-42"), "{scroll_back}");
    first.asks("sixth");
    let stopping = std::thread::spawn(move || {
        first.sees("the daemon stops; good-bye");
        first.ends()
    });
    assert!(daemon.stop().success());
    assert_eq!(stopping.join().unwrap(), Some(0));
    assert_eq!(fs::read(&host_key).unwrap(), key_before, "kept by an orderly stop too");
}

fn several_watch_and_one_writes(site: &Site, first: &mut Viewer, bob: &Key) {
    let mut second = Viewer::new(site, bob, "agents-1");
    let scroll_back = second.sees("ann@test writes; you watch");
    assert!(scroll_back.contains("first-42"), "{scroll_back}");
    first.asks("second");
    second.sees("second-42");
    second.types("echo never-$((40+2))\r");
    second.sees("not typed: ann@test writes");
    first.asks("third");
    second.sees("third-42");
    assert!(!first.text().contains("never"), "{}", first.text());
    second.types(&format!("{ESCAPE}w"));
    second.sees("you write");
    first.sees("bob@test writes; you watch");
    // The control: the same keys, now that they are typed.
    second.asks("now");
    first.sees("now-42");
    second.types(&format!("{ESCAPE}d"));
    assert_eq!(second.ends(), Some(0));
    first.sees("you write");
    first.asks("fourth");
}

fn strangers_and_other_wishes_are_refused(
    site: &Site,
    daemon: &Daemon<'_>,
    (ann, bob, eve): (&Key, &Key, &Key),
) {
    let said = fails(&run(site, eve, &["-tt"], "agents-1", &[]));
    assert!(said.contains("Permission denied (publickey)"), "{said}");
    let log = daemon.log();
    assert!(log.contains(&eve.fingerprint), "{log}");
    assert!(!log.contains(eve.public.split_whitespace().nth(1).unwrap()), "the key itself is in the log");
    let passwords = ["-o", "PreferredAuthentications=password,keyboard-interactive", "-o", "BatchMode=no"];
    let said = fails(&run(site, ann, &passwords, "agents-1", &[]));
    assert!(said.contains("Permission denied (publickey)"), "{said}");
    let refused = run(site, ann, &[], "agents-1", &["uptime"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(fails(&refused).contains("commands and subsystems are not run here"));
    assert!(fails(&run(site, ann, &["-s"], "agents-1", &["sftp"])).contains("not run here"));
    assert!(fails(&run(site, ann, &["-T"], "agents-1", &[])).contains("needs a terminal"));
    assert!(fails(&run(site, ann, &["-tt"], "agents-9", &[])).contains("no microVM \"agents-9\""));
    assert!(fails(&run(site, bob, &["-tt"], "small-1", &[])).contains("no microVM \"small-1\" for this key"));
    let said = fails(&run(site, ann, &["-W", "127.0.0.1:22"], "menu", &[]));
    assert!(said.contains("administratively prohibited"), "{said}");
    let remote = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22"];
    let said = fails(&run(site, ann, &remote, "menu", &[]));
    assert!(said.contains("forwarding failed"), "{said}");
}

fn a_taken_port_is_refused_before_anything_is_made(site: &Site, ann: &Key, bob: &Key) {
    let other = site.beside();
    let file = config(&other, ann, bob);
    let text = fs::read_to_string(&file)
        .unwrap()
        .replace("169.254.100", "169.254.108")
        .replace("169.254.104", "169.254.112");
    fs::write(&file, text).unwrap();
    let said = format!("{:#}", Daemon::start(&other, &file, &[]).expect_err("the port is taken"));
    assert!(said.contains("cannot listen on 0.0.0.0:2222 for SSH"), "{said}");
    assert!(!other.state_dir().join("ssh_host_ed25519_key").exists());
    assert!(!other.api().exists());
}

/// Row 3 of the contract holds for this port as for any other.
fn no_guest_reaches_the_port(site: &Site, daemon: &Daemon<'_>) {
    let addresses = [world::HOST_LAN, world::UPLINK, world::HOST_DOCKER];
    for address in addresses {
        assert_eq!(banner(site, address), "SSH-2.0-Enisle", "the control: the host itself reaches {address}");
    }
    let gateway = daemon.json(&["vm", "list"])[0]["gateway"].as_str().unwrap().to_owned();
    for address in addresses.iter().map(ToString::to_string).chain([gateway]) {
        let script = format!(
            "import socket\ntry:\n s=socket.create_connection(('{address}',{PORT}),timeout=5); print('reached')\n\
             except Exception as e: print(type(e).__name__)"
        );
        let answer = ok(&daemon.run(&["vm", "exec", "agents-1", "--", "python3", "-c", &script]));
        assert_ne!(answer.trim(), "reached", "{address}");
    }
}

fn banner(site: &Site, address: Ipv4Addr) -> String {
    let port: u16 = PORT.parse().unwrap();
    site.world.host.run(|| {
        let mut stream = std::net::TcpStream::connect((address, port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut banner = [0; 14];
        stream.read_exact(&mut banner).unwrap();
        String::from_utf8_lossy(&banner).into_owned()
    })
}

fn it_works_without_network_and_agent(site: &Site, daemon: &Daemon<'_>, first: &mut Viewer) {
    ok(&daemon.run(&["net", "set", "agents-1", "--drop", "0.0.0.0/0"]));
    assert_eq!(daemon.sh("agents-1", "echo alive"), "alive", "the control: the agent answers");
    first.types("pkill -STOP -f '^@enisle-agent'; echo stopped-$((40+2))\r");
    first.sees("stopped-42");
    let mut exec = site.enisle(&["vm", "exec", "agents-1", "--", "true"]);
    let mut exec = exec.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(exec.try_wait().unwrap().is_none(), "the agent still answers");
    first.asks("fifth");
    assert!(exec.try_wait().unwrap().is_none(), "the agent still answers");
    exec.kill().unwrap();
    exec.wait().unwrap();
    first.types("pkill -CONT -f '^@enisle-agent'; echo going-$((40+2))\r");
    first.sees("going-42");
    assert_eq!(daemon.sh("agents-1", "echo alive"), "alive");
}

fn the_menu_follows_and_acts(site: &Site, daemon: &Daemon<'_>, ann: &Key) {
    let mut menu = Viewer::new(site, ann, "menu");
    menu.sees("> agents-1");
    ok(&daemon.run(&["vm", "new", "small", "--wait"]));
    menu.sees("  small-1   running");
    menu.types("\x1b[B");
    menu.sees("> small-1");
    menu.types("r");
    menu.sees("root's shell in small-1");
    menu.sees("# ");
    menu.asks("shell");
    menu.types("exit\r");
    menu.sees("> small-1");
    menu.types("s");
    menu.sees("stop small-1?");
    menu.types("n");
    menu.sees("up/down select");
    assert_eq!(daemon.json(&["vm", "list"]).as_array().unwrap().len(), 2, "no is no");
    menu.types("s");
    menu.sees("stop small-1?");
    menu.types("y");
    menu.sees("stopping small-1");
    let start = Instant::now();
    while daemon.json(&["vm", "list"]).as_array().unwrap().len() > 1 {
        assert!(start.elapsed() < PATIENCE, "small-1 stays");
        std::thread::sleep(Duration::from_millis(100));
    }
    menu.sees("> agents-1");
    menu.types("\r");
    menu.sees("console of agents-1");
    menu.types(&format!("{ESCAPE}d"));
    menu.sees("> agents-1");
    menu.types("q");
    assert_eq!(menu.ends(), Some(0));
}

#[test]
fn a_host_key_that_is_none_stops_the_start() {
    let site = Site::new();
    let ann = Key::new(&site, "ann");
    let file = config(&site, &ann, &ann);
    fs::create_dir_all(site.state_dir()).unwrap();
    let broken: &Path = &site.state_dir().join("ssh_host_ed25519_key");
    fs::write(broken, "not a key").unwrap();
    for (mode, word) in [(0o640, "others than root can read"), (0o600, "is no unencrypted SSH key")] {
        fs::set_permissions(broken, fs::Permissions::from_mode(mode)).unwrap();
        let said = format!("{:#}", Daemon::start(&site, &file, &[]).expect_err("there is no host key"));
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(fs::read(broken).unwrap(), b"not a key");
}
