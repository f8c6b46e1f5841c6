//! Files that are right, and what they mean.

use std::net::Ipv4Addr;
use std::path::Path;

use enisle_net::Limits;

use super::super::{AnyHost, Config, Hypervisor, Mode, Place, load, parse};
use super::{NETWORK, read, root, with_group};

pub(super) const KEY: &str = "ssh-ed25519 \
    AAAAC3NzaC1lZDI1NTE5AAAAIN0wnAvcEeFEItVoF7ukn4yh6a+Hy902qAGkgfp73CrY";

fn valid(text: &str) -> Config {
    read(text).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_smallest_file_is_valid_as_it_stands() {
    let config = load(&root().join("examples/minimal.yaml"), &AnyHost).unwrap();
    assert_eq!(config.api, Path::new("/run/enisle/api.sock"));
    assert_eq!(config.hypervisor, Hypervisor::Auto);
    assert_eq!(config.state_dir, Path::new("/var/lib/enisle"));
    assert_eq!(config.image_dir, Path::new("/var/lib/enisle/images"));
    assert_eq!(config.start_at_once, None);
    assert_eq!((config.kernel, config.initramfs), (None, None));
    let [group] = &config.groups[..] else {
        panic!("one group");
    };
    assert_eq!((group.name.as_str(), group.count, group.vcpu), ("agents", 1, 1));
    assert_eq!((group.ram_mib, group.disk_bytes), (512, 4 << 30));
    assert_eq!((group.image.as_str(), &group.userdata), ("default", &None));
    assert_eq!(group.network.range.to_string(), "169.254.100.0/22");
    assert_eq!(group.network.range.capacity(), 256);
    let first = group.network.range.block(0).unwrap();
    assert_eq!(first.guest(), Ipv4Addr::new(169, 254, 100, 2));
    let drop: Vec<_> = group.network.policy.drop.iter().map(ToString::to_string).collect();
    assert_eq!(drop, ["192.168.1.0/24"]);
    assert!(group.network.policy.allow.is_empty());
    assert_eq!(group.network.drop_at, [Place { line: 7, column: 16 }]);
}

#[test]
fn limits_that_are_not_given_are_the_engines_own() {
    let limits = |keys: &str| {
        let network = format!("network: {{mode: isolated, range: 169.254.100.0/22{keys}}}\n");
        valid(&with_group(&network)).groups[0].network.limits
    };
    assert_eq!(limits(""), Limits::default());
    assert_eq!(limits(", limits: {}"), Limits::default());
    let some = Limits { flows: 100, mbit_down: Some(20), ..Limits::default() };
    assert_eq!(limits(", limits: {flows: 100, mbit_down: 20}"), some);
    let all = Limits { flows: 1, new_flows_per_s: 2, mbit_up: Some(3), mbit_down: Some(4) };
    assert_eq!(limits(", limits: {flows: 1, new_flows_per_s: 2, mbit_up: 3, mbit_down: 4}"), all);
}

#[test]
fn every_example_is_valid() {
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            load(&path, &AnyHost).unwrap_or_else(|errors| panic!("{errors}"));
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen} examples");
}

#[test]
fn the_quickstart_launches_two_vms() {
    let config = load(&root().join("examples/agents.yaml"), &AnyHost).unwrap();
    let group = config.group("agents").unwrap();
    assert_eq!(group.count, 2);
    assert_eq!(group.network.range.to_string(), "169.254.100.0/22");
    assert_eq!(config.group("others"), None);
}

#[test]
fn every_key_arrives() {
    let text = format!(
        "config:
  api: unix:/run/test/api.sock
  hypervisor: qemu-tcg
  image: ubuntu-24.04
  kernel: /boot/vmlinuz
  initramfs: /boot/initrd.img
  image_dir: /srv/images
  start_at_once: 7
  state_dir: /srv/state
  ssh_keys: ['{KEY} a@b']
  ssh: {{bind: 0.0.0.0, port: 22022}}
  host_groups:
    - name: a
      count: 0
      vcpu: 64
      ram_gb: 1.5
      image: default
      disk: 512M
      userdata: |
        #!/bin/sh
        echo hello
      ssh_keys: ['{KEY}']
      network:
        mode: isolated
        range: 10.0.0.0/30
        drop: [0.0.0.0/0]
        allow: ['140.82.112.0/20:443', 192.168.1.10:5432/tcp]
        dns: [9.9.9.9, 1.1.1.1]
    - name: b
      ram_mb: 64
      network: {{mode: isolated, range: 10.0.0.4/30}}
"
    );
    let config = valid(&text);
    assert_eq!(config.api, Path::new("/run/test/api.sock"));
    assert_eq!(config.hypervisor, Hypervisor::QemuTcg);
    assert_eq!(config.kernel.as_deref(), Some(Path::new("/boot/vmlinuz")));
    assert_eq!(config.initramfs.as_deref(), Some(Path::new("/boot/initrd.img")));
    assert_eq!(config.image_dir, Path::new("/srv/images"));
    assert_eq!(config.start_at_once, Some(7));
    assert_eq!(config.state_dir, Path::new("/srv/state"));
    assert_eq!(config.ssh, Some("0.0.0.0:22022".parse().unwrap()));
    let [a, b] = &config.groups[..] else {
        panic!("two groups");
    };
    assert_eq!((a.count, a.vcpu, a.ram_mib, a.disk_bytes), (0, 64, 1536, 512 << 20));
    assert_eq!(a.userdata.as_deref(), Some("#!/bin/sh\necho hello\n"));
    let keys: Vec<_> = a.ssh_keys.iter().map(ToString::to_string).collect();
    assert_eq!(keys, [format!("{KEY} a@b"), KEY.to_owned()]);
    assert_eq!(a.image, "default");
    assert_eq!(a.network.dns, [Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)]);
    assert_eq!(a.network.policy.allow.len(), 2);
    assert_eq!(a.network.allow_at[1], Place { line: 27, column: 40 });
    assert_eq!((b.image.as_str(), b.ram_mib), ("ubuntu-24.04", 64));
    assert_eq!(b.ssh_keys.len(), 1);
}

#[test]
fn aliases_share_lists() {
    let config = valid(
        "config:
  host_groups:
    - name: a
      network: {mode: isolated, range: 10.0.0.0/24, drop: &lan [192.168.0.0/16, 10.0.0.0/8]}
    - name: b
      network: {mode: isolated, range: 10.0.1.0/24, drop: *lan}
",
    );
    assert_eq!(config.groups[0].network.policy, config.groups[1].network.policy);
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_do_not_matter() {
    let text = with_group(NETWORK);
    let windows = format!("\u{feff}{}", text.replace('\n', "\r\n"));
    assert_eq!(valid(&windows).groups, valid(&text).groups);
}

#[test]
fn a_file_may_be_json() {
    let config = valid(
        r#"{"config": {"host_groups": [{"name": "a", "ram_gb": 2,
            "network": {"mode": "isolated", "range": "10.0.0.0/24"}}]}}"#,
    );
    assert_eq!(config.groups[0].ram_mib, 2048);
}

#[test]
fn no_groups_at_all_is_a_daemon_that_waits_for_nothing() {
    assert!(valid("config: {host_groups: []}").groups.is_empty());
}

#[test]
fn a_range_may_be_filled_exactly() {
    let text = with_group("count: 1\nnetwork: {mode: isolated, range: 10.9.0.0/30}");
    assert_eq!(valid(&text).groups[0].count, 1);
    let text = with_group("count: 256\nnetwork: {mode: isolated, range: 169.254.100.0/22}");
    assert_eq!(valid(&text).groups[0].count, 256);
}

#[test]
fn thousands_of_policy_entries_are_read() {
    let entries: Vec<_> = (0..10_000).map(|i| format!("11.{}.{}.0/24", i / 256, i % 256)).collect();
    let keys = format!("network: {{mode: isolated, range: 10.0.0.0/24, drop: [{}]}}", entries.join(", "));
    assert_eq!(valid(&with_group(&keys)).groups[0].network.policy.drop.len(), 10_000);
}

#[test]
fn what_the_host_says_is_not_asked_of_any_host() {
    let text = with_group("image: nowhere\nnetwork: {mode: isolated, range: 172.17.0.0/16}");
    assert_eq!(read(&text).unwrap_err().len(), 2);
    assert!(parse("x", &text, &AnyHost).is_ok());
}

#[test]
fn a_network_that_names_a_bridge_or_no_mode_is_a_bridge_and_isolated_means_what_it_did() {
    let network =
        |keys: &str| valid(&with_group(&format!("network: {{{keys}}}\n"))).groups[0].network.clone();
    let isolated = network("mode: isolated, range: 10.0.0.0/24");
    assert_eq!((isolated.mode, isolated.bridge), (Mode::Isolated, None));
    let named = network("bridge: lab0, gateway: 10.77.0.1/24");
    assert_eq!(named.mode, Mode::Bridge);
    assert_eq!(named.range.to_string(), "10.77.0.128/25", "the half without the gateway");
    let bridge = named.bridge.unwrap();
    assert_eq!((bridge.name.as_str(), bridge.range), ("lab0", named.range));
    assert!(!bridge.isolate_ports && !bridge.route_between && bridge.uplink.is_none());
    let other = network("mode: bridge, bridge: lab0, gateway: 10.77.0.254/24");
    assert_eq!(other.range.to_string(), "10.77.0.0/25");
    let all = network(
        "bridge: lab0, gateway: 10.77.0.1/16, range: 10.77.4.0/22, isolate_ports: true, uplink: eth1, \
         route_between: true, limits: {mbit_up: 5}, dns: [9.9.9.9]",
    );
    assert_eq!((all.range.to_string().as_str(), all.limits.mbit_up), ("10.77.4.0/22", Some(5)));
    let bridge = all.bridge.unwrap();
    assert!(bridge.isolate_ports && bridge.route_between);
    assert_eq!(bridge.uplink.as_deref(), Some("eth1"));
}
