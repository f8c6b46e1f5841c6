//! `vm exec`, `vm cp`, `vm port-forward` and ssh, in a real guest.

use enisle_testkit::probe::Kind;
use enisle_testkit::world;
use enisle_tests_vm::{Daemon, Site, fails, ok};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ONE: &str = "- name: agents\n  network: { mode: isolated, range: \"169.254.100.0/22\" }";

fn random(bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    data
}

#[test]
fn ten_megabytes_pass_through_exec_unharmed_and_the_exit_code_with_them() {
    let site = Site::new();
    let daemon = site.up(ONE);
    let data = random(10 << 20);
    let mut child = site
        .enisle(&["vm", "exec", "agents-1", "--", "sh", "-c", "cat; exit 7"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert!(output.stdout == data, "{} bytes came back of {}", output.stdout.len(), data.len());
    exec_in_all_its_forms(&site, &daemon);
    assert!(daemon.stop().success());
}

fn exec_in_all_its_forms(site: &Site, daemon: &Daemon<'_>) {
    let exec = |args: &[&str]| daemon.run(&[&["vm", "exec"], args].concat());
    let apart = exec(&["agents-1", "--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((apart.stdout.as_slice(), apart.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(exec(&["agents-1", "--", "sh", "-c", "kill -TERM $$"]).status.code(), Some(143));
    assert_eq!(exec(&["agents-1", "--", "no-such-program"]).status.code(), Some(127));
    assert_eq!(exec(&["agents-1", "--", "/etc/passwd"]).status.code(), Some(126));
    assert_eq!(exec(&["--timeout", "1s", "agents-1", "--", "sleep", "60"]).status.code(), Some(124));
    assert_eq!(exec(&["no-such-vm", "--", "true"]).status.code(), Some(125));
    let user = ["--user", "ubuntu", "--cwd", "/tmp", "--env", "A=b c", "agents-1", "--", "sh", "-c"];
    let told = ok(&exec(&[&user[..], &["id -un; pwd; echo $A"]].concat()));
    assert_eq!(told, "ubuntu\n/tmp\nb c\n");
    // Ctrl-C reaches the process, whose own exit code comes back.
    let mut child = site
        .enisle(&[
            "vm",
            "exec",
            "agents-1",
            "--",
            "sh",
            "-c",
            "trap 'exit 42' INT; echo ready; while :; do sleep 0.1; done",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(42));
    // A client that is killed takes its process with it.
    let mut child =
        site.enisle(&["vm", "exec", "agents-1", "--", "sh", "-c", "exec sleep 4242"]).spawn().unwrap();
    // Processes come and go while the shell looks: what `cat` could not open does not count.
    let sleeps =
        || daemon.sh("agents-1", "cat /proc/[0-9]*/comm 2>/dev/null | grep -cx sleep || true") != "0";
    within("the sleep starts", sleeps);
    child.kill().unwrap();
    child.wait().unwrap();
    within("the sleep ends with its client", || !sleeps());
}

#[track_caller]
fn within(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(240), "{what}: not within four minutes");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn directories_and_large_files_come_back_identical() {
    let site = Site::new();
    let daemon = site.up(ONE);
    let source = site.dir().join("source");
    make_tree(&source);
    let large = site.dir().join("large");
    fs::write(&large, random(200 << 20)).unwrap();
    let cp = |from: &str, to: &str| daemon.run(&["vm", "cp", from, to]);
    ok(&cp(source.to_str().unwrap(), "agents-1:/root/tree"));
    ok(&cp("agents-1:/root/tree", site.dir().join("back").to_str().unwrap()));
    assert_eq!(describe(&source), describe(&site.dir().join("back")));
    ok(&cp(large.to_str().unwrap(), "agents-1:/root/"));
    ok(&cp("agents-1:/root/large", site.dir().join("large-back").to_str().unwrap()));
    assert!(fs::read(&large).unwrap() == fs::read(site.dir().join("large-back")).unwrap(), "200 MB differ");
    let piped = ok(&daemon.run(&["vm", "cp", "agents-1:/etc/hostname", "-"]));
    assert_eq!(piped.trim(), "agents-1");
    let missing = daemon.run(&["vm", "cp", "agents-1:/no/such/file", site.dir().to_str().unwrap()]);
    assert!(fails(&missing).contains("/no/such/file"));
    // A disk that is full says so, and the guest still works.
    let full = daemon.run(&[
        "vm",
        "exec",
        "agents-1",
        "--",
        "sh",
        "-c",
        "mkdir -p /mnt/s && mount -t tmpfs -o size=1m none /mnt/s",
    ]);
    ok(&full);
    let said = fails(&cp(large.to_str().unwrap(), "agents-1:/mnt/s/")).to_lowercase();
    assert!(said.contains("no space") || said.contains("full"), "{said}");
    // A hostile guest's links lead nowhere on this side.
    let _ = daemon
        .sh("agents-1", "mkdir -p /root/evil && ln -s /tmp /root/evil/link && echo x > /root/evil/file");
    ok(&cp("agents-1:/root/evil", site.dir().join("evil").to_str().unwrap()));
    assert!(fs::symlink_metadata(site.dir().join("evil/link")).unwrap().is_symlink());
    assert!(daemon.stop().success());
}

fn make_tree(root: &Path) {
    for dir in 0..20 {
        let path = root.join(format!("directory-{dir}"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..100 {
            let path = path.join(format!("file-{file}"));
            fs::write(&path, format!("{dir}/{file}").repeat(file + 1)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode([0o644, 0o755, 0o600][file % 3])).unwrap();
        }
    }
    std::os::unix::fs::symlink("directory-1/file-1", root.join("link")).unwrap();
}

/// Path, mode, mtime and content of everything below a directory.
fn describe(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        if meta.is_symlink() {
            found.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
            continue;
        }
        let content = if meta.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
        found.push(format!("{name} {:o} {} {content}", meta.mode(), meta.mtime()));
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    found.sort();
    found
}

#[test]
fn ssh_logs_in_through_a_forwarded_port_with_the_users_key() {
    let site = Site::new();
    let key = site.dir().join("key");
    ok(&Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).output().unwrap());
    let public = fs::read_to_string(site.dir().join("key.pub")).unwrap();
    let daemon = site.up(&format!("{ONE}\n  ssh_keys: [\"{}\"]", public.trim()));
    let mut forward = site
        .enisle(&["--json", "vm", "port-forward", "agents-1", "0:127.0.0.1:22"])
        .stdout(Stdio::piped())
        // It tells of every connection that comes before the guest's sshd, and that is each second.
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // Kept open: a forward whose reader goes away ends.
    let mut told = BufReader::new(forward.stdout.take().unwrap());
    told.read_line(&mut line).unwrap();
    let port = port_of(&line);
    within("ssh logs in", || {
        let output = ssh(&key, &port, "id -un; sudo -n id -un");
        output.status.success() && output.stdout == b"ubuntu\nroot\n"
    });
    let other = site.dir().join("other");
    ok(&Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&other)
        .output()
        .unwrap());
    assert!(!ssh(&other, &port, "true").status.success(), "another key is refused");
    rustix::process::kill_process(rustix::process::Pid::from_child(&forward), rustix::process::Signal::INT)
        .unwrap();
    let end = forward.wait().unwrap();
    assert!(end.success() || end.signal().is_some() || end.code() == Some(130), "{end}");
    assert!(daemon.stop().success());
}

fn port_of(line: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let listen = value["listen"].as_str().unwrap_or_else(|| panic!("no listen in {line}"));
    listen.rsplit(':').next().unwrap().to_owned()
}

fn ssh(key: &Path, port: &str, command: &str) -> std::process::Output {
    Command::new("ssh")
        .args(["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
        .args([
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "BatchMode=yes",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "ConnectTimeout=30",
        ])
        .arg("-i")
        .arg(key)
        .args(["-p", port, "ubuntu@127.0.0.1", command])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn egress_none_reaches_nothing_while_exec_cp_and_shell_work() {
    let site = Site::new();
    let daemon = site.up(
        "- name: shut\n  network: { mode: isolated, range: \"169.254.104.0/24\", drop: [\"0.0.0.0/0\"] }\n\
         - name: open\n  network: { mode: isolated, range: \"169.254.105.0/24\" }",
    );
    // Positive control: the same target answers the host and a guest whose policy allows it.
    assert!(site.world.ask(&site.world.host, Kind::Tcp, world::SERVER, world::ECHO).reached());
    assert_eq!(reach(&daemon, "open-1", &world::SERVER.to_string()), "reached");
    for target in [world::SERVER, world::RESOLVER, world::LAN, world::UPLINK, world::METADATA] {
        assert_ne!(reach(&daemon, "shut-1", &target.to_string()), "reached", "{target}");
    }
    assert_eq!(daemon.sh("shut-1", "echo works"), "works");
    let file = site.dir().join("file");
    fs::write(&file, "content").unwrap();
    ok(&daemon.run(&["vm", "cp", file.to_str().unwrap(), "shut-1:/tmp/file"]));
    assert_eq!(daemon.sh("shut-1", "cat /tmp/file"), "content");
    let mut shell = site.enisle(&["vm", "shell", "shut-1"]);
    let mut shell =
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"echo sum $((40+2)); exit\n").unwrap();
    let said = shell.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("sum 42"), "{said:?}");
    flushing_the_hosts_rules_opens_nothing(&site, &daemon);
    assert!(daemon.stop().success());
}

/// `reached`, or the name of the error, for TCP port 7 of an address, asked inside a guest.
fn reach(daemon: &Daemon<'_>, vm: &str, address: &str) -> String {
    let script = format!(
        "import socket\ntry:\n s=socket.create_connection(('{address}',7),timeout=5); s.sendall(b'x'); \
         assert s.recv(1)==b'x'; print('reached')\nexcept Exception as e: print(type(e).__name__)"
    );
    ok(&daemon.run(&["vm", "exec", vm, "--", "python3", "-c", &script])).trim().to_owned()
}

fn flushing_the_hosts_rules_opens_nothing(site: &Site, daemon: &Daemon<'_>) {
    let targets =
        [world::LAN, world::LAN_2, world::UPLINK, world::HOST_LAN, world::HOST_DOCKER, world::METADATA];
    let look = |when: &str| {
        for target in targets {
            assert!(site.world.ask(&site.world.host, Kind::Ping, target, 0).reached(), "{target} is there");
            assert_ne!(reach(daemon, "open-1", &target.to_string()), "reached", "{target} {when}");
        }
    };
    look("before");
    site.world.host.check("nft", &["flush", "ruleset"], "").unwrap();
    look("after nft flush ruleset");
}
