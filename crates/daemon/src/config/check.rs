//! Rules between keys, and what the machine says; then the finished [`Config`].
//!
//! Owns: everything that one key alone cannot get wrong. Each rule is a function that reports.
//! Refuses: text; it sees typed values with places.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

use enisle_net::Limits;
use enisle_net::plan::Range;
use enisle_net::policy::{self, CompileError, Origin, PolicySpec};
use ipnet::Ipv4Net;

use super::bridge;
use super::file::{ConfigKeys, FileKeys, GroupKeys, LimitKeys, NetworkKeys, SshServerKeys};
use super::listen;
use super::read::{List, Located, nearest};
use super::report::{Problem, Report, Span};
use super::source::{Place, Source};
use super::values::{RuleText, Whole};
use super::{Config, Group, Host, InUse, Network, SshKey};

/// Bytes of all keys of a VM, as JSON: they travel in one frame of 16 KiB with what else a guest
/// is told at its boot.
const MAX_KEYS: usize = 15 * 1024;
/// Memory of a VM whose group says nothing of it.
const DEFAULT_RAM_MIB: u32 = 512;

/// Checks what is there and, if nothing is missing, makes the configuration. It is only good when
/// the report is empty.
pub(super) fn resolve(
    file: &FileKeys,
    source: &Source,
    host: &dyn Host,
    report: &mut Report,
) -> Option<Config> {
    let keys = &file.config.as_ref()?.value;
    let groups: &[Located<GroupKeys>] = keys.host_groups.as_ref().map_or(&[], |l| &l.value.0);
    names_differ(groups, report);
    for group in groups {
        memory_is_given_once(&group.value, report);
        count_fits(&group.value, report);
        policy_compiles(&group.value, report);
    }
    bridge::check(groups, report);
    keys_fit(keys, groups, report);
    consoles_have_keys(keys, groups, report);
    ranges_are_free(keys, groups, host, report);
    images_exist(keys, groups, host, report);
    boot_files_exist(keys, host, report);
    listen::check(keys, host, report);
    config(keys, groups, source)
}

fn names_differ(groups: &[Located<GroupKeys>], report: &mut Report) {
    let mut first: HashMap<&str, Span> = HashMap::new();
    for name in groups.iter().filter_map(|group| group.value.name.as_ref()) {
        if let Some(first) = first.get(name.value.0.as_str()) {
            let problem = Problem::at(name.span, format!("two groups are named `{}`", name.value.0))
                .label("again here")
                .also(*first, "first here")
                .help("VMs are named after their group: give one of the two another name");
            report.add(problem);
        } else {
            first.insert(&name.value.0, name.span);
        }
    }
}

fn memory_is_given_once(group: &GroupKeys, report: &mut Report) {
    if let (Some(gb), Some(mb)) = (&group.ram_gb, &group.ram_mb) {
        let problem = Problem::at(mb.span, "`ram_gb` and `ram_mb` are both given")
            .label("MiB here")
            .also(gb.span, "GiB here")
            .help("keep one of the two");
        report.add(problem);
    }
}

/// A VM gets the daemon's keys and its group's.
fn keys_fit(keys: &ConfigKeys, groups: &[Located<GroupKeys>], report: &mut Report) {
    let too_large = |span: Span, bytes: usize| {
        let message = format!("the SSH keys of a microVM are {bytes} bytes together, but {MAX_KEYS} fit");
        Problem::at(span, message)
            .help("use ed25519 keys, which are short, or one certificate authority in the image")
    };
    let common = keys.ssh_keys.as_ref().map(|list| (list.span, bytes_of(&ssh_keys(Some(list)))));
    if let Some((span, bytes)) = common.filter(|(_, bytes)| *bytes > MAX_KEYS) {
        return report.add(too_large(span, bytes));
    }
    for list in groups.iter().filter_map(|group| group.value.ssh_keys.as_ref()) {
        let bytes = common.map_or(0, |(_, bytes)| bytes) + bytes_of(&ssh_keys(Some(list)));
        if bytes > MAX_KEYS {
            report.add(too_large(list.span, bytes));
        }
    }
}

/// Who serves consoles over SSH says whose they are, in keys that can be compared.
fn consoles_have_keys(keys: &ConfigKeys, groups: &[Located<GroupKeys>], report: &mut Report) {
    let Some(ssh) = &keys.ssh else {
        return;
    };
    let of_groups = groups.iter().filter_map(|group| group.value.ssh_keys.as_ref());
    let all: Vec<_> = keys.ssh_keys.iter().chain(of_groups).flat_map(|list| &list.value.0).collect();
    if all.is_empty() {
        let problem = Problem::at(ssh.span, "`ssh` is given, but no `ssh_keys`: nobody could log in")
            .help("add ssh_keys: [\"ssh-ed25519 AAAA... you@host\"] beside it, or remove `ssh`");
        report.add(problem);
    }
    for key in all {
        if let Err(error) = russh::keys::PublicKey::from_openssh(key.value.as_str()) {
            let problem = Problem::at(key.span, format!("this key is of no use for `ssh`: {error}"))
                .help("copy the whole line from the .pub file; a part is missing or changed");
            report.add(problem);
        }
    }
}

/// With the quotes and the comma of each; a comment's quotes and backslashes are escaped.
fn bytes_of(keys: &[SshKey]) -> usize {
    let escaped = |key: &SshKey| key.as_str().bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count();
    keys.iter().map(|key| key.as_str().len() + escaped(key) + 3).sum()
}

fn count_fits(group: &GroupKeys, report: &mut Report) {
    let (Some(count), Some(range)) = (&group.count, range_of(group)) else {
        return;
    };
    let (Whole(wanted), capacity) = (count.value, range.value.capacity());
    if wanted > capacity {
        let message = format!("`count` is {wanted}, but {} holds {capacity}", range.value);
        let problem = Problem::at(count.span, message)
            .label(format!("{wanted} microVMs"))
            .also(range.span, format!("{capacity} blocks of /30"))
            .help(match prefix_for(wanted) {
                Some(prefix) => format!("use at most {capacity}, or a range of /{prefix}"),
                None => format!("use at most {capacity}"),
            });
        report.add(problem);
    }
}

/// Length of the prefix that holds `count` blocks of /30; `None` where no legal range does.
fn prefix_for(count: u32) -> Option<u32> {
    let bits = count.checked_next_power_of_two()?.trailing_zeros();
    30u32.checked_sub(bits).filter(|prefix| *prefix >= 8)
}

fn policy_compiles(group: &GroupKeys, report: &mut Report) {
    let Some(network) = group.network.as_ref().map(|network| &network.value) else {
        return;
    };
    let Err(error) = policy::compile(&policy_of(network)) else {
        return;
    };
    let (CompileError::CannotAllow { at, .. }
    | CompileError::TooManyRules { at }
    | CompileError::TooManyPorts { at, .. }) = &error;
    let entry = match at {
        Origin::Drop(index) => entries(&network.drop).get(*index),
        Origin::Allow(index) => entries(&network.allow).get(*index),
        _ => None,
    };
    let fallback = network.range.as_ref().map(|range| range.span);
    let Some(span) = entry.map(|entry| entry.span).or(fallback) else {
        return;
    };
    let text = error.to_string();
    let text = text.strip_prefix(&format!("{at}: ")).unwrap_or(&text);
    let problem = match text.split_once("; ") {
        Some((message, help)) => Problem::at(span, message).help(help),
        None => Problem::at(span, text),
    };
    report.add(problem.label("cannot be enforced"));
}

/// Ranges overlap neither each other nor what the machine uses.
fn ranges_are_free(keys: &ConfigKeys, groups: &[Located<GroupKeys>], host: &dyn Host, report: &mut Report) {
    let with_name = |group: &Located<GroupKeys>| {
        let name = bridge::name(&group.value.network.as_ref()?.value);
        Some((range_of(&group.value)?, name))
    };
    let (ranges, bridges): (Vec<Located<Range>>, Vec<Option<String>>) =
        groups.iter().filter_map(with_name).unzip();
    if ranges.is_empty() {
        return;
    }
    let state_dir = keys.state_dir.as_ref().map(|dir| dir.value.0.as_path());
    let in_use = host.networks(state_dir.unwrap_or(Path::new("")));
    let mut taken: Vec<Ipv4Net> = in_use.iter().map(|used| used.net).collect();
    taken.extend(ranges.iter().map(|range| range.value.net()));
    for (index, range) in ranges.iter().enumerate() {
        // The bridge itself has an address there, where it is there already.
        let own = bridges[index].as_ref().map(|name| format!("interface {name}"));
        let others = in_use.iter().filter(|used| own.as_ref() != Some(&used.by));
        let problem = overlap(range, &ranges[..index]).or_else(|| occupied(range, others));
        if let Some(problem) = problem {
            report.add(problem.help(match range.value.next_free(&taken) {
                Some(free) => format!("the next free range of this size is {free}"),
                None => "no range of this size is free: take a smaller one".to_owned(),
            }));
        }
    }
}

fn overlap(range: &Located<Range>, before: &[Located<Range>]) -> Option<Problem> {
    let other = before.iter().find(|other| other.value.overlaps(&range.value))?;
    let problem = Problem::at(range.span, "the ranges of two groups overlap");
    if range.span == other.span {
        return Some(problem.label("two groups use it, by an alias"));
    }
    let problem = problem.label(range.value.to_string());
    Some(problem.also(other.span, other.value.to_string()))
}

fn occupied<'a>(range: &Located<Range>, mut in_use: impl Iterator<Item = &'a InUse>) -> Option<Problem> {
    let net = range.value.net();
    let used = in_use.find(|used| used.net.contains(&net) || net.contains(&used.net))?;
    let message = format!("`range` {net} is in use on this host");
    Some(Problem::at(range.span, message).label(format!("{} has {}", used.by, used.net)))
}

fn images_exist(keys: &ConfigKeys, groups: &[Located<GroupKeys>], host: &dyn Host, report: &mut Report) {
    let Some(directory) = &keys.image_dir else {
        return;
    };
    // The daemon's own matters only to groups that name none.
    let inherits = groups.iter().any(|group| group.value.image.is_none());
    let own = groups.iter().filter_map(|group| group.value.image.as_ref());
    let used: Vec<_> = keys.image.iter().filter(|_| inherits).chain(own).collect();
    if used.is_empty() {
        return;
    }
    let Some(known) = host.images(&directory.value.0) else {
        return;
    };
    for image in used.into_iter().filter(|image| !known.contains(&image.value.0)) {
        let name = &image.value.0;
        let at = directory.value.0.display();
        let build = format!("build it: enisle image build {name}");
        let help = match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`? If not, {build}"),
            None if known.is_empty() => build,
            None => format!("there are {}; or {build}", known.join(", ")),
        };
        let message = format!("there is no image `{name}` in {at}");
        report.add(Problem::at(image.span, message).help(help));
    }
}

fn boot_files_exist(keys: &ConfigKeys, host: &dyn Host, report: &mut Report) {
    for path in keys.kernel.iter().chain(&keys.initramfs) {
        if !host.is_file(&path.value.0) {
            let message = format!("there is no file {}", path.value.0.display());
            let help = "correct the path, or remove the key to use what was built with the images";
            report.add(Problem::at(path.span, message).help(help));
        }
    }
    if let (Some(initramfs), None) = (&keys.initramfs, &keys.kernel) {
        let message = "`initramfs` is given without `kernel`";
        let help = "give both: the initramfs holds modules of one kernel";
        report.add(Problem::at(initramfs.span, message).help(help));
    }
}

fn config(keys: &ConfigKeys, groups: &[Located<GroupKeys>], source: &Source) -> Option<Config> {
    let ssh_keys = ssh_keys(keys.ssh_keys.as_ref());
    let image = keys.image.as_ref()?.value.0.clone();
    let group = |group: &Located<GroupKeys>| resolve_group(&group.value, &image, &ssh_keys, source);
    Some(Config {
        file: source.name.clone(),
        api: keys.api.as_ref()?.value.0.clone(),
        listen: listen::addresses(keys),
        tls: listen::files(keys)?,
        hypervisor: keys.hypervisor.as_ref()?.value,
        kernel: keys.kernel.as_ref().map(|path| path.value.0.clone()),
        initramfs: keys.initramfs.as_ref().map(|path| path.value.0.clone()),
        image_dir: keys.image_dir.as_ref()?.value.0.clone(),
        state_dir: keys.state_dir.as_ref()?.value.0.clone(),
        start_at_once: keys.start_at_once.as_ref().map(|number| number.value.0),
        ssh: keys.ssh.as_ref().and_then(|ssh| ssh_address(&ssh.value)),
        groups: groups.iter().map(group).collect::<Option<_>>()?,
        image,
        ssh_keys,
    })
}

fn resolve_group(group: &GroupKeys, image: &str, daemon_keys: &[SshKey], source: &Source) -> Option<Group> {
    let own_image = group.image.as_ref().map(|image| image.value.0.clone());
    let mut keys = daemon_keys.to_vec();
    keys.extend(ssh_keys(group.ssh_keys.as_ref()));
    let network = &group.network.as_ref()?.value;
    Some(Group {
        name: group.name.as_ref()?.value.0.clone(),
        count: group.count.as_ref()?.value.0,
        vcpu: u8::try_from(group.vcpu.as_ref()?.value.0).ok()?,
        ram_mib: ram_mib(group),
        image: own_image.unwrap_or_else(|| image.to_owned()),
        disk_bytes: group.disk.as_ref()?.value.bytes,
        userdata: group.userdata.as_ref().map(|script| script.value.0.clone()),
        ssh_keys: keys,
        network: Network {
            mode: bridge::mode(network)?,
            bridge: bridge::bridge(network),
            range: bridge::range(network)?.value,
            policy: policy_of(network),
            drop_at: places(&network.drop, source),
            allow_at: places(&network.allow, source),
            dns: network.dns.as_ref()?.value.0.iter().map(|dns| dns.value.0).collect(),
            limits: limits_of(&network.limits.as_ref()?.value)?,
            warm_slots: network.warm_slots.as_ref()?.value.0,
        },
    })
}

fn ssh_address(keys: &SshServerKeys) -> Option<SocketAddr> {
    let port = u16::try_from(keys.port.as_ref()?.value.0).ok()?;
    Some(SocketAddr::new(keys.bind.as_ref()?.value.0, port))
}

fn limits_of(keys: &LimitKeys) -> Option<Limits> {
    Some(Limits {
        flows: keys.flows.as_ref()?.value.0,
        new_flows_per_s: keys.new_flows_per_s.as_ref()?.value.0,
        mbit_up: keys.mbit_up.as_ref().map(|rate| rate.value.0),
        mbit_down: keys.mbit_down.as_ref().map(|rate| rate.value.0),
    })
}

fn ram_mib(group: &GroupKeys) -> u32 {
    let gb = group.ram_gb.as_ref().map(|ram| ram.value.mib);
    let mb = group.ram_mb.as_ref().map(|ram| ram.value.0);
    mb.or(gb).unwrap_or(DEFAULT_RAM_MIB)
}

fn ssh_keys<const MAX: usize>(list: Option<&Located<List<SshKey, MAX>>>) -> Vec<SshKey> {
    let keys = list.into_iter().flat_map(|list| &list.value.0);
    keys.map(|key| key.value.clone()).collect()
}

fn range_of(group: &GroupKeys) -> Option<Located<Range>> {
    bridge::range(&group.network.as_ref()?.value)
}

type Rules<const MAX: usize> = Option<Located<List<RuleText, MAX>>>;

fn entries<const MAX: usize>(rules: &Rules<MAX>) -> &[Located<RuleText>] {
    rules.as_ref().map_or(&[], |list| &list.value.0)
}

fn policy_of(network: &NetworkKeys) -> PolicySpec {
    PolicySpec {
        drop: entries(&network.drop).iter().map(|entry| entry.value.0).collect(),
        allow: entries(&network.allow).iter().map(|entry| entry.value.0).collect(),
    }
}

fn places<const MAX: usize>(rules: &Rules<MAX>, source: &Source) -> Vec<Place> {
    entries(rules).iter().map(|entry| source.place(entry.span.start)).collect()
}
