//! Mode `bridge` with real guests: they see each other and are seen from outside, nobody speaks in another's name, and
//! nothing is left.

use enisle_testkit::probe::Kind;
use enisle_testkit::world::{ECHO, HOST_LAN, SERVER};
use enisle_tests_vm::{Daemon, Site, fails, ok};
use serde_json::json;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::process::Stdio;

const GROUP: &str = "- name: lab\n  image: minimal\n  network: { bridge: lab0, gateway: \"10.77.0.1/24\" }";
const PORT: u16 = 7000;

/// Whether a shell command in the VM succeeds.
fn tries(daemon: &Daemon<'_>, vm: &str, what: &str) -> bool {
    let script = format!("{{ {what}; }} >/dev/null 2>&1 && echo reached || echo refused");
    daemon.sh(vm, &script) == "reached"
}

fn says_hi(address: &str, port: u16) -> String {
    format!("echo hi | nc -w 10 {address} {port} | grep -q hi")
}

#[test]
fn vms_on_a_bridge_live_like_others_and_see_each_other() {
    let site = Site::new();
    let before = site.listing("lab0");
    let daemon = site.up(GROUP);
    // The file asks for one; the other is made by the command, which says where it is.
    let made = daemon.json(&["vm", "new", "--wait", "lab"]);
    assert_eq!(
        (&made["name"], &made["mode"], &made["address"]),
        (&json!("lab-2"), &json!("bridge"), &json!("10.77.0.134"))
    );
    assert_eq!(made["gateway"], json!("10.77.0.1"));
    let list = ok(&daemon.run(&["vm", "list"]));
    assert!(list.contains("10.77.0.130") && list.contains("bridge"), "{list}");
    for vm in ["lab-1", "lab-2"] {
        let serve = format!("nc -ll -p {PORT} -e cat >/dev/null 2>&1 </dev/null & echo serves");
        assert_eq!(daemon.sh(vm, &serve), "serves");
    }
    reaches(&site, &daemon);
    works_as_in_any_mode(&site, &daemon);
    refuses_in_words(&daemon);
    forges_in_vain(&site, &daemon);
    let routes = ok(&daemon.run(&["net", "routes", "--via", "192.168.1.1"]));
    assert!(routes.contains("sudo ip route add 10.77.0.0/24 via 192.168.1.1"), "{routes}");
    // A killed daemon leaves them as they are; the next one takes them over.
    daemon.kill();
    assert!(site.world.ask(&site.world.host, Kind::Ping, Ipv4Addr::new(10, 77, 0, 134), 0).reached());
    let daemon = site.up(GROUP);
    assert!(tries(&daemon, "lab-1", &says_hi("10.77.0.134", PORT)), "after the adoption");
    ok(&daemon.run(&["vm", "delete", "lab-2"]));
    assert!(!tries(&daemon, "lab-1", "ping -c 1 -W 2 10.77.0.134"));
    assert!(daemon.stop().success());
    site.world.lan.check("ip", &["route", "del", "10.77.0.0/24"], "").unwrap();
    let left = site.listing("lab0").since(&before);
    let left: Vec<&String> =
        left.iter().filter(|line| line.contains("lab0") || line.contains("en-")).collect();
    assert!(left.is_empty(), "{left:#?}");
}

/// Each other, the Internet, the host; and the host and the LAN reach them.
fn reaches(site: &Site, daemon: &Daemon<'_>) {
    let world = &site.world;
    for (vm, other) in [("lab-1", "10.77.0.134"), ("lab-2", "10.77.0.130")] {
        let again =
            format!("for i in $(seq 50); do {} && exit 0; sleep 0.2; done; false", says_hi(other, PORT));
        assert!(tries(daemon, vm, &format!("({again})")), "{vm} to {other}");
        assert!(tries(daemon, vm, &says_hi(&SERVER.to_string(), ECHO)), "{vm} to the Internet");
        assert!(tries(daemon, vm, "ping -c 1 -W 5 10.77.0.1"), "{vm} to the host");
    }
    world.lan.check("ip", &["route", "add", "10.77.0.0/24", "via", &HOST_LAN.to_string()], "").unwrap();
    for from in [&world.host, &world.lan] {
        for kind in [Kind::Tcp, Kind::Ping] {
            let outcome = world.ask(from, kind, Ipv4Addr::new(10, 77, 0, 130), PORT);
            assert!(outcome.reached(), "{kind:?} from outside: {outcome}");
        }
    }
}

/// exec, cp, shell and port-forward.
fn works_as_in_any_mode(site: &Site, daemon: &Daemon<'_>) {
    let file = site.dir().join("file");
    fs::write(&file, b"there and back").unwrap();
    let (there, back) = (file.to_str().unwrap(), site.dir().join("back"));
    ok(&daemon.run(&["vm", "cp", there, "lab-2:/root/file"]));
    ok(&daemon.run(&["vm", "cp", "lab-2:/root/file", back.to_str().unwrap()]));
    assert_eq!(fs::read(&back).unwrap(), b"there and back");
    let mut shell =
        site.enisle(&["vm", "shell", "lab-2"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"hostname; exit 3\n").unwrap();
    let output = shell.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(3) && said.contains("lab-2"), "{said} {:?}", output.status);
    let mut forward = site
        .enisle(&["--json", "vm", "port-forward", "lab-2", &format!("0:127.0.0.1:{PORT}")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // Kept open: a forward whose reader goes away ends.
    let mut told = BufReader::new(forward.stdout.take().unwrap());
    told.read_line(&mut line).unwrap();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let local = value["listen"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned();
    let mut stream = std::net::TcpStream::connect(&local).unwrap();
    stream.write_all(b"hi\n").unwrap();
    let mut heard = [0; 3];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hi\n");
    forward.kill().unwrap();
    forward.wait().unwrap();
}

/// What only isolated mode has.
fn refuses_in_words(daemon: &Daemon<'_>) {
    for args in [
        &["net", "set", "lab", "--drop", "8.8.8.8"][..],
        &["net", "set", "lab-1", "--drop", "8.8.8.8"],
        &["net", "why", "lab-1", "8.8.8.8"],
        &["net", "verify", "lab-1"],
        &["vm", "new", "--drop", "8.8.8.8"],
    ] {
        let said = fails(&daemon.run(args));
        assert!(said.contains("mode `bridge`"), "{args:?}: {said}");
    }
    let shown = daemon.json(&["net", "show", "lab-1"]);
    assert!(shown["counters"]["out_allowed"].as_u64().is_some_and(|count| count > 0), "{shown}");
}

/// Another address on the guest's own interface: nothing from it arrives.
fn forges_in_vain(site: &Site, daemon: &Daemon<'_>) {
    let before = daemon.json(&["net", "show", "lab-1"])["counters"]["out_spoofed"].as_u64().unwrap();
    assert!(tries(daemon, "lab-1", "ip addr add 10.77.0.200/32 dev eth0"));
    assert!(!tries(daemon, "lab-1", "ping -c 2 -W 1 -I 10.77.0.200 10.77.0.134"));
    assert!(tries(daemon, "lab-1", "ping -c 1 -W 5 10.77.0.134"), "the control");
    let after = daemon.json(&["net", "show", "lab-1"])["counters"]["out_spoofed"].as_u64().unwrap();
    assert!(after > before, "{before} and {after}");
    assert!(tries(daemon, "lab-1", "ip addr del 10.77.0.200/32 dev eth0"));
    let known = site.world.host.check("ip", &["neigh", "show", "dev", "lab0"], "").unwrap();
    assert!(!known.contains("10.77.0.200"), "{known}");
}
