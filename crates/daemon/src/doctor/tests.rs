//! Each check against made-up hosts.

use super::facts::{Facts, Kvm, Program};
use super::{Finding, Severity, breaks, checks, render};
use crate::config::{self, AnyHost};
use enisle_net::survey::{Feature, ForwardChain, Settings};
use std::time::{Duration, UNIX_EPOCH};

/// A host on which nothing is wrong.
fn good() -> Facts {
    Facts {
        root: true,
        config: Some(Ok(config("169.254.100.0/22", 2))),
        features: Some(vec![Feature { name: "network namespaces", error: None }]),
        vmm: Ok("7.2.0".into()),
        kvm: Kvm::Works,
        boot_files: Ok(()),
        image_dir: "/var/lib/enisle/images".into(),
        images: Ok(vec!["default".into()]),
        settings: Ok(Settings {
            ip_forward: Some(false),
            rp_filter: Some(2),
            bridge_netfilter: None,
            conntrack_max: Some(262_144),
            conntrack_count: Some(17),
            uplinks: vec!["eth0".into()],
        }),
        chains: Some(Ok(Vec::new())),
        legacy_iptables: false,
        programs: Vec::new(),
        networkd: Vec::new(),
        network_manager: String::new(),
        resolvers: vec!["127.0.0.53:53".parse().unwrap()],
        controllers: ["memory", "cpu", "pids"].map(str::to_owned).into(),
        free: Ok(100 << 30),
        state_dir: "/var/lib/enisle".into(),
        open_files: Some(1_048_576),
        now: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    }
}

fn config(range: &str, count: u32) -> config::Config {
    let text = format!(
        "config:\n  host_groups:\n  - name: agents\n    count: {count}\n    network:\n      mode: isolated\n      range: {range}\n"
    );
    config::parse("agents.yaml", &text, &AnyHost).unwrap()
}

/// The findings of one check.
fn found(facts: &Facts, id: &str) -> Vec<Finding> {
    let all = checks::all(facts);
    let found: Vec<Finding> = all.into_iter().filter(|f| f.id == id).collect();
    for finding in &found {
        assert!(!finding.what.is_empty());
        if matches!(finding.severity, Severity::Warning | Severity::Failure) {
            assert!(!finding.why.is_empty(), "{finding:?} does not say why");
        }
    }
    found
}

/// A host with one thing changed: how bad that is.
fn with(id: &str, change: impl FnOnce(&mut Facts)) -> (Severity, String) {
    let mut facts = good();
    change(&mut facts);
    let found = found(&facts, id);
    let worst = found.iter().max_by_key(|f| f.severity).unwrap_or_else(|| panic!("nothing about {id}"));
    assert_eq!(breaks(&checks::all(&facts)), worst.severity == Severity::Failure, "{worst:?}");
    (worst.severity, format!("{} | {} | {}", worst.what, worst.why, worst.fix))
}

#[test]
fn a_good_host_has_nothing_to_mend() {
    let all = checks::all(&good());
    let bad: Vec<_> = all.iter().filter(|f| f.severity != Severity::Ok).collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert!(!breaks(&all));
    assert!(render(&all).ends_with("\nnothing is in the way of microVMs on this host\n"));
}

#[test]
fn what_keeps_microvms_from_starting_is_a_failure_with_its_command() {
    use Severity::Failure;
    let error = |name, text: &str| Some(vec![Feature { name, error: Some(text.to_owned()) }]);
    let tun = "opening /dev/net/tun (is the kernel module `tun` there?): No such file (os error 2)";
    let (severity, text) = with("kernel", |f| f.features = error("the tun device", tun));
    assert!(severity == Failure && text.contains("modprobe tun"), "{text}");
    let (severity, text) =
        with("kernel", |f| f.features = error("nf_tables", "nf_tables transaction: x (os error 2)"));
    assert!(severity == Failure && text.contains("nft_ct"), "{text}");
    let (severity, text) = with("hypervisor", |f| f.vmm = Err("there is no qemu-system-x86_64".into()));
    assert!(severity == Failure && text.contains("apt-get install"), "{text}");
    let (severity, text) = with("kernel-image", |f| f.boot_files = Err("no kernel".into()));
    assert!(severity == Failure && text.contains("enisle image build"), "{text}");
    assert_eq!(with("images", |f| f.images = Ok(Vec::new())).0, Failure);
    assert_eq!(with("control-groups", |f| f.controllers.retain(|c| c != "memory")).0, Failure);
    assert_eq!(with("configuration", |f| f.config = Some(Err("line 3: no".into()))).0, Failure);
    assert_eq!(with("dns", |f| f.resolvers.clear()).0, Failure);
    assert_eq!(with("disk", |f| f.free = Ok(5 << 20)).0, Failure);
    assert_eq!(with("uplink", |f| f.settings = Err("EPERM".into())).0, Failure);
}

#[test]
fn kvm_is_as_bad_as_the_file_wants_it() {
    let no = |f: &mut Facts| f.kvm = Kvm::No("/dev/kvm: No such file".into());
    assert_eq!(with("kvm", no).0, Severity::Warning);
    let (severity, text) = with("kvm", |f| {
        no(f);
        if let Some(Ok(config)) = &mut f.config {
            config.hypervisor = config::Hypervisor::QemuKvm;
        }
    });
    assert!(severity == Severity::Failure && text.contains("hypervisor: auto"), "{text}");
    assert_eq!(with("kvm", |f| f.kvm = Kvm::Likely).0, Severity::Ok);
}

#[test]
fn a_small_connection_table_is_told_before_and_when_it_is_full() {
    let table = |max, count| {
        with("conntrack", |f| {
            let settings = f.settings.as_mut().unwrap();
            (settings.conntrack_max, settings.conntrack_count) = (Some(max), Some(count));
        })
    };
    assert_eq!(table(262_144, 1000).0, Severity::Ok);
    let (severity, text) = table(8192, 1000);
    assert!(severity == Severity::Warning && text.contains("nf_conntrack_max=262144"), "{text}");
    assert_eq!(table(8192, 8000).0, Severity::Failure);
    assert_eq!(table(0, 8000).0, Severity::Ok);
}

#[test]
fn firewalls_are_explained_and_no_failure_unless_locked() {
    let docker = ForwardChain {
        table: "table ip filter".into(),
        chain: "FORWARD".into(),
        refuses: true,
        locked: false,
    };
    let open = ForwardChain { refuses: false, ..docker.clone() };
    let (severity, text) = with("firewall", |f| f.chains = Some(Ok(vec![open.clone(), docker])));
    assert!(severity == Severity::Note && text.contains("FORWARD of table ip filter"), "{text}");
    let locked = ForwardChain { refuses: true, locked: true, ..open.clone() };
    let (severity, text) = with("firewall", |f| f.chains = Some(Ok(vec![locked])));
    assert!(severity == Severity::Failure && text.contains("NftablesTableOwner"), "{text}");
    assert_eq!(with("firewall", |f| f.chains = Some(Ok(vec![open]))).0, Severity::Ok);
    assert_eq!(with("iptables-legacy", |f| f.legacy_iptables = true).0, Severity::Warning);
    for (id, program) in [
        ("docker", Program::Docker),
        ("firewalld", Program::Firewalld),
        ("ufw", Program::Ufw),
        ("network-manager", Program::NetworkManager),
    ] {
        assert_eq!(with(id, |f| f.programs = vec![program]).0, Severity::Note);
    }
    let mut facts = good();
    facts.programs = vec![Program::NetworkManager];
    facts.network_manager = "[keyfile]\nunmanaged-devices=interface-name:en-*\n".into();
    assert!(found(&facts, "network-manager").is_empty());
    assert_eq!(
        with("br-netfilter", |f| f.settings.as_mut().unwrap().bridge_netfilter = Some(true)).0,
        Severity::Note
    );
}

#[test]
fn networkd_matters_when_it_runs_and_matches() {
    let all = || vec![("/etc/systemd/network/50-all.network".to_owned(), "[Match]\nName=*\n".to_owned())];
    assert_eq!(with("networkd", |f| f.networkd = all()).0, Severity::Note);
    let (severity, text) = with("networkd", |f| {
        f.networkd = all();
        f.programs = vec![Program::Networkd];
    });
    assert!(
        severity == Severity::Warning && text.contains("50-all.network") && text.contains("Unmanaged=yes"),
        "{text}"
    );
}

#[test]
fn the_rest_is_only_looked_at() {
    let settings = |change: fn(&mut Settings)| move |f: &mut Facts| change(f.settings.as_mut().unwrap());
    assert_eq!(with("uplink", settings(|s| s.uplinks.clear())).0, Severity::Warning);
    assert_eq!(with("forwarding", settings(|s| s.ip_forward = Some(true))).0, Severity::Note);
    let strict = settings(|s| {
        s.rp_filter = Some(1);
        s.uplinks.push("wan1".into());
    });
    assert_eq!(with("rp-filter", strict).0, Severity::Warning);
    let (severity, text) = with("ranges", |f| f.config = Some(Ok(config("169.254.20.0/22", 1))));
    assert!(severity == Severity::Warning && text.contains("169.254.20.10"), "{text}");
    assert_eq!(with("open-files", |f| f.open_files = Some(1024)).0, Severity::Warning);
    assert_eq!(with("clock", |f| f.now = UNIX_EPOCH).0, Severity::Warning);
    assert_eq!(with("disk", |f| f.free = Ok(1 << 30)).0, Severity::Warning);
}

#[test]
fn without_root_it_says_what_it_could_not_do() {
    let (severity, text) = with("privileges", |f| {
        f.root = false;
        f.features = None;
        f.chains = None;
    });
    assert!(severity == Severity::Warning && text.contains("sudo enisle doctor"), "{text}");
}

#[test]
fn a_finding_is_a_table_for_people_and_an_object_for_programs() {
    let mut facts = good();
    facts.resolvers.clear();
    let all = checks::all(&facts);
    let text = render(&all);
    let line = text.lines().find(|l| l.contains("dns")).unwrap();
    assert!(line.starts_with("FAILURE  dns "), "{line}");
    assert!(text.contains("fix: echo nameserver"), "{text}");
    assert!(text.ends_with("1 to mend before microVMs work on this host, 0 to look at\n"), "{text}");
    let json = serde_json::to_value(found(&facts, "dns")).unwrap();
    assert_eq!(json[0]["severity"], "failure");
    assert_eq!(json[0]["id"], "dns");
}

#[test]
fn this_machine_can_be_examined_without_changing_it() {
    let findings = super::examine(&super::DoctorOptions { file: None, quick: true });
    for id in ["kernel", "hypervisor", "images", "uplink", "conntrack", "firewall", "dns", "disk"] {
        let told = findings.iter().any(|f| f.id == id);
        assert!(
            told || (id == "kernel" && findings.iter().any(|f| f.id == "privileges")),
            "{id}: {findings:#?}"
        );
    }
}
