//! The API over TCP with a real guest: from another machine with a token, and from the guest not at all.

use enisle_testkit::probe::{Kind, Target, ask};
use enisle_testkit::world::{ECHO, HOST_DOCKER, HOST_LAN, HOST_LAN_2, SERVER, UPLINK};
use enisle_tests_vm::{Daemon, Site, fails, ok, program};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

const PORT: u16 = 7443;
const GROUPS: &str = "- name: agents\n  image: minimal\n  network: { mode: isolated, range: \"169.254.100.0/24\", dns: [\"8.8.8.8\"] }\n\
                      - name: others\n  count: 0\n  image: minimal\n  network: { mode: isolated, range: \"169.254.101.0/24\" }";

/// A machine on the LAN with a home directory of its own.
struct Machine<'site> {
    site: &'site Site,
}

impl Machine<'_> {
    fn home(&self) -> PathBuf {
        self.site.dir().join("home")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("enisle"));
        command.args(args).env("XDG_CONFIG_HOME", self.home()).stdin(Stdio::null());
        for name in ["ENISLE_API", "ENISLE_CONTEXT", "ENISLE_TOKEN_FILE", "ENISLE_PIN", "ENISLE_CA_FILE"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.site.world.lan.output(&mut self.command(args)).unwrap()
    }

    fn run_with(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .spawn(self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    fn spawn(&self, command: &mut Command) -> Child {
        self.site.world.lan.run(|| command.spawn()).unwrap()
    }

    /// Adds a context with a token that was just made.
    fn add(&self, name: &str, made: &Value) {
        let (pin, api) = (made["pin"].as_str().unwrap(), format!("https://{HOST_LAN}:{PORT}"));
        let args = ["context", "add", name, "--api", &api, "--pin", pin, "--token-file", "-"];
        ok(&self.run_with(&args, made["secret"].as_str().unwrap().as_bytes()));
    }
}

fn within(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}: not in a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ends(child: &mut Child) -> ExitStatus {
    let mut status = None;
    within("it ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

#[test]
fn another_machine_works_with_a_token_and_a_guest_reaches_no_api() {
    let site = Site::new();
    let config = site.config(GROUPS);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}  listen:\n    - {{ address: \"0.0.0.0\" }}\n")).unwrap();
    let daemon = Daemon::start(&site, &config, &[]).unwrap();
    let machine = Machine { site: &site };
    let admin = daemon.json(&["token", "create", "--scope", "admin", "--name", "boss"]);
    let writer = daemon.json(&["token", "create", "--scope", "group:agents:rw", "--expires", "90d"]);
    let reader = daemon.json(&["token", "create", "--scope", "group:agents:ro"]);
    let typo = daemon.run(&["token", "create", "--scope", "group:agent:ro", "--expires", "1h"]);
    assert!(ok(&typo).starts_with("enisle_") && ok(&typo).lines().count() == 1);
    assert!(String::from_utf8_lossy(&typo.stderr).contains("there is no group named agent yet"));
    for (name, made) in [("boss", &admin), ("rw", &writer), ("ro", &reader)] {
        machine.add(name, made);
    }
    assert_eq!(daemon.sh("agents-1", "echo up"), "up");
    no_address_is_reachable_from_the_guest(&site, &daemon);
    every_command_works(&machine);
    scopes_hold(&machine);
    mistakes_are_told(&machine, &admin);
    curl_knows_the_daemon(&machine, &admin);
    a_revoked_token_ends_what_runs(&machine, &daemon, &writer);
    let log = daemon.log();
    for made in [&admin, &writer, &reader] {
        assert!(!log.contains(&made["secret"].as_str().unwrap()[16..]), "a secret is in the log");
    }
    assert!(daemon.stop().success());
}

/// Row 3 of the contract, for the address that answers everybody else.
fn no_address_is_reachable_from_the_guest(site: &Site, daemon: &Daemon<'_>) {
    let reached = |from: &enisle_testkit::netns::Netns, addr: Ipv4Addr| {
        let target = Target { kind: Kind::Connect, addr, port: PORT };
        from.run(|| ask(target, Duration::from_secs(5))).reached()
    };
    let world = &site.world;
    assert!(
        reached(&world.lan, HOST_LAN) && reached(&world.lan, HOST_LAN_2) && reached(&world.internet, UPLINK)
    );
    let gateway = Ipv4Addr::new(169, 254, 100, 1);
    let dials = |addr: Ipv4Addr, port: u16| {
        let script =
            format!("echo hi | nc -w 10 {addr} {port} >/dev/null 2>&1 && echo reached || echo refused");
        daemon.sh("agents-1", &script)
    };
    assert_eq!(dials(SERVER, ECHO), "reached", "the guest's own way of asking works");
    for addr in [HOST_LAN, HOST_LAN_2, UPLINK, HOST_DOCKER, gateway] {
        // The host can reach it there: what refuses the guest is not that nobody listens.
        assert!(addr == gateway || reached(&world.host, addr), "{addr}");
        assert_eq!(dials(addr, PORT), "refused", "{addr}");
    }
}

fn every_command_works(machine: &Machine<'_>) {
    ok(&machine.run(&["context", "use", "rw"]));
    assert_eq!(ok(&machine.run(&["vm", "list", "-q"])), "agents-1\n");
    let output =
        machine.run_with(&["vm", "exec", "agents-1", "--", "sh", "-c", "cat; exit 3"], &[0, 255, 10]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &[0, 255, 10][..]));
    let shell = machine.run_with(&["vm", "shell", "agents-1"], b"echo from the shell\nexit\n");
    assert!(ok(&shell).contains("from the shell"));
    let (there, back) = (machine.site.dir().join("there"), machine.site.dir().join("back"));
    let mut data = vec![0; 3 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    fs::write(&there, &data).unwrap();
    ok(&machine.run(&["vm", "cp", there.to_str().unwrap(), "agents-1:/root/file"]));
    ok(&machine.run(&["vm", "cp", "agents-1:/root/file", back.to_str().unwrap()]));
    assert!(fs::read(back).unwrap() == data);
    assert!(ok(&machine.run(&["vm", "logs", "agents-1"])).len() > 100);
    assert!(ok(&machine.run(&["net", "why", "agents-1", "8.8.8.8:53"])).contains("8.8.8.8"));
    assert_eq!(forwarded(machine), b"through the forward");
    let control = format!("{SERVER}:{ECHO}");
    let verified = machine.run(&["net", "verify", "agents-1", "--json", "--control", &control]);
    let report: Value = serde_json::from_str(&ok(&verified)).unwrap();
    assert_eq!(report["ok"], true);
}

fn forwarded(machine: &Machine<'_>) -> Vec<u8> {
    ok(&machine.run(&[
        "vm",
        "exec",
        "agents-1",
        "--",
        "sh",
        "-c",
        "nc -ll -p 9000 -e cat >/dev/null 2>&1 </dev/null &",
    ]));
    let mut command = machine.command(&["--json", "vm", "port-forward", "agents-1", "0:127.0.0.1:9000"]);
    let mut forward = machine.spawn(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut told = BufReader::new(forward.stdout.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    let told_of: Value = serde_json::from_str(&line).unwrap();
    let port: u16 = told_of["listen"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
    let mut back = vec![0; 19];
    within("the forward answers", || {
        machine.site.world.lan.run(|| {
            let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(b"through the forward").is_ok() && stream.read_exact(&mut back).is_ok()
        })
    });
    forward.kill().unwrap();
    forward.wait().unwrap();
    back
}

fn scopes_hold(machine: &Machine<'_>) {
    let with = |context: &str, args: &[&str]| machine.run(&[&["--context", context][..], args].concat());
    assert_eq!(ok(&with("ro", &["vm", "list", "-q"])), "agents-1\n");
    let output = with("ro", &["vm", "exec", "agents-1", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(fails(&output).contains("it takes the scope group:NAME:rw"));
    assert!(fails(&with("rw", &["net", "set", "agents", "--clear", "--group"])).contains("the scope admin"));
    assert!(fails(&with("rw", &["token", "list"])).contains("the scope admin"));
    let name = ok(&with("boss", &["vm", "new", "others", "--wait", "--timeout", "4m"]));
    assert_eq!(name, "others-1\n");
    for args in [&["vm", "delete", "others-1"][..], &["vm", "logs", "others-1"], &["net", "show", "others-1"]]
    {
        let output = with("rw", args);
        assert_eq!(output.status.code(), Some(4), "{}", fails(&output));
    }
    assert_eq!(ok(&with("rw", &["vm", "list", "-q"])), "agents-1\n");
    assert!(!ok(&with("rw", &["events", "--json"])).contains("others"));
    assert!(ok(&with("boss", &["events", "--json"])).contains("others-1"));
    ok(&with("boss", &["vm", "delete", "others-1"]));
}

fn mistakes_are_told(machine: &Machine<'_>, admin: &Value) {
    let api = format!("https://{HOST_LAN}:{PORT}");
    let token = machine.home().join("enisle/tokens/boss");
    assert_eq!(fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o600);
    let says = |api: &str, env: &[(&str, &str)], code: i32, words: &[&str]| {
        let mut command = machine.command(&["--api", api, "vm", "list"]);
        command.envs(env.iter().copied());
        let output = machine.site.world.lan.output(&mut command).unwrap();
        let said = fails(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    let (file, pin) = (token.to_str().unwrap(), admin["pin"].as_str().unwrap());
    let other = "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    let with = |pin| [("ENISLE_TOKEN_FILE", file), ("ENISLE_PIN", pin)];
    says(&api, &with(other), 3, &["is not the pinned", "it shows the key", pin]);
    says(&api, &[("ENISLE_TOKEN_FILE", file)], 3, &["nobody whom this client believes signed it"]);
    says(&api, &[("ENISLE_PIN", pin)], 3, &["no token for", "--token-file"]);
    says(&format!("https://{HOST_LAN}:1"), &with(pin), 3, &["nothing answers at", "refused"]);
    says(&format!("https://{HOST_LAN}:7777"), &with(pin), 3, &["does not speak TLS"]);
    says(&format!("http://{HOST_LAN}:{PORT}"), &[], 2, &["write https://"]);
    let wrong = machine.site.dir().join("wrong");
    fs::write(&wrong, format!("enisle_0123abcd_{}", "0".repeat(64))).unwrap();
    let env = [("ENISLE_TOKEN_FILE", wrong.to_str().unwrap()), ("ENISLE_PIN", pin)];
    says(&api, &env, 3, &["the token is not known here"]);
    let said = fails(&machine.run(&["--context", "nowhere", "vm", "list"]));
    assert!(said.contains("there is no context named \"nowhere\""), "{said}");
}

fn curl_knows_the_daemon(machine: &Machine<'_>, admin: &Value) {
    let header = machine.site.dir().join("header");
    fs::write(&header, format!("Authorization: Bearer {}\n", admin["secret"].as_str().unwrap())).unwrap();
    let header = format!("@{}", header.display());
    let own = machine.site.state_dir().join("tls/certificate.pem");
    let url = format!("https://{HOST_LAN}:{PORT}/v1/vms");
    let curl = |args: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "-w", "\n%{http_code}", "-H", &header]).args(args);
        machine.site.world.lan.output(&mut command).unwrap()
    };
    let pin = admin["pin"].as_str().unwrap();
    for args in [&["--cacert", own.to_str().unwrap(), &url][..], &["-k", "--pinnedpubkey", pin, &url]] {
        let said = ok(&curl(args));
        assert!(said.ends_with("\n200") && said.contains("agents-1"), "{said}");
    }
    let other = "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    assert_eq!(curl(&["-k", "--pinnedpubkey", other, &url]).status.code(), Some(90), "the pin decides");
    let plain = ok(&curl(&[&url.replace("https", "http")]));
    assert!(plain.ends_with("\n400") && plain.contains("speaks TLS"), "{plain}");
}

fn a_revoked_token_ends_what_runs(machine: &Machine<'_>, daemon: &Daemon<'_>, writer: &Value) {
    let mut running: Vec<Child> = Vec::new();
    for args in
        [&["vm", "exec", "agents-1", "--", "sh", "-c", "echo runs; sleep 4321"][..], &["events", "-f"]]
    {
        let mut command = machine.command(args);
        let mut child = machine.spawn(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        // Both have begun.
        assert_eq!(child.stdout.as_mut().unwrap().read(&mut [0]).unwrap(), 1);
        running.push(child);
    }
    ok(&daemon.run(&["token", "revoke", writer["id"].as_str().unwrap()]));
    for mut child in running {
        assert!(!ends(&mut child).success());
    }
    let said = fails(&machine.run(&["vm", "list"]));
    assert!(said.contains("is revoked"), "{said}");
    within("the process in the guest ends with its stream", || {
        let count = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '[s]leep 4321' || true";
        daemon.sh("agents-1", count) == "0"
    });
    let listed = daemon.json(&["token", "list"]);
    let revoked = |one: &&Value| one["revoked_ms"].is_u64();
    assert_eq!(listed.as_array().unwrap().iter().filter(revoked).count(), 1, "{listed}");
}

#[test]
fn without_tls_and_tokens_only_loopback_is_served() {
    let site = Site::new();
    let config = site.config("[]");
    let text = fs::read_to_string(&config).unwrap().replace("host_groups:\n    []", "host_groups: []");
    fs::write(&config, text).unwrap();
    let refused = Daemon::start_with(&site, &config, &["--insecure-loopback", "0.0.0.0:7480"], &[]);
    assert!(refused.unwrap_err().to_string().contains("this is no loopback address"));
    let daemon = Daemon::start_with(&site, &config, &["--insecure-loopback", "127.0.0.1:7480"], &[]).unwrap();
    assert!(daemon.log().contains("without TLS and without tokens"));
    let list = |api: &str| {
        let mut command = Command::new(program("enisle"));
        command.args(["--api", api, "vm", "list", "--json"]).stdin(Stdio::null());
        site.world.host.output(&mut command).unwrap()
    };
    assert_eq!(ok(&list("http://127.0.0.1:7480")).trim(), "[]");
    let said = fails(&list("http://127.0.0.2:7480"));
    assert!(said.contains("nothing answers at"), "{said}");
    let from_lan = Target { kind: Kind::Connect, addr: HOST_LAN, port: 7480 };
    assert!(site.world.lan.run(|| ask(from_lan, Duration::from_secs(5))).refused());
    assert!(daemon.stop().success());
}
