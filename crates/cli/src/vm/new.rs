//! `enisle vm new`.

use super::Context;
use crate::Failure;
use crate::quantity::{parse_duration, parse_label, parse_ram_mb};
use crate::table::{print, print_json};
use clap::Args;
use enisle_client::api::CreateVm;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The API's limit of a first-boot script, in bytes.
const MAX_USERDATA: u64 = 256 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "\
Without --wait it returns as soon as the VM is being started. Ctrl-C does not take it back: see
`enisle vm delete`.

Examples:
  enisle vm new
  enisle vm new agents --wait
  enisle vm new agents --name build-1 --cpus 4 --ram 2G --userdata setup.sh --wait --timeout 5m
  enisle vm new agents --drop 0.0.0.0/0 --allow 140.82.112.0/20:443/tcp
  enisle vm new --label job=17 --label team=web --ttl 30m --idle-timeout 10m
  NAME=$(enisle vm new --wait) && enisle vm shell \"$NAME\"")]
pub(crate) struct NewArgs {
    /// The host group; may be left out when there is only one.
    group: Option<String>,
    /// Name of the VM: a-z, 0-9 and -, at most 63. Default: GROUP-N with the lowest free N.
    #[arg(long)]
    name: Option<String>,
    /// Virtual CPUs. Default: the group's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    cpus: Option<u8>,
    /// Memory, as 512M or 2G. Default: the group's.
    #[arg(long, value_name = "SIZE", value_parser = parse_ram_mb)]
    ram: Option<u32>,
    /// A script run once on first boot, instead of the group's; - reads standard input.
    #[arg(long, value_name = "FILE")]
    userdata: Option<PathBuf>,
    /// Refuse this destination, beyond what the group refuses: a network, an address, or
    /// address[/length]:port[-port][/tcp or /udp]; may be repeated, or a list with commas.
    #[arg(long, value_name = "ITEM", value_delimiter = ',')]
    drop: Vec<String>,
    /// Except this from --drop; it opens nothing that the group refuses.
    #[arg(long, value_name = "ITEM", value_delimiter = ',')]
    allow: Vec<String>,
    /// A mark to find it by; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Remove it this long after its creation, whatever it does, as 30m or 12h.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// Remove it once no exec, cp, shell or port-forward was open for this long.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    idle_timeout: Option<Duration>,
    /// Asked again under the same key within a day, give the same VM instead of another one.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Return only when `vm exec` works.
    #[arg(long)]
    wait: bool,
    /// With --wait: give up after this long and remove the VM again. Default: 2m.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "wait")]
    timeout: Option<Duration>,
}

pub(super) async fn run(context: &Context, args: &NewArgs) -> Result<u8, Failure> {
    let create = CreateVm {
        group: args.group.clone(),
        name: args.name.clone(),
        vcpu: args.cpus,
        ram_mb: args.ram,
        userdata: args.userdata.as_deref().map(read_userdata).transpose()?,
        drop: args.drop.clone(),
        allow: args.allow.clone(),
        labels: unique(&args.labels)?,
        ttl_ms: args.ttl.and_then(millis),
        idle_timeout_ms: args.idle_timeout.and_then(millis),
        wait: args.wait,
        timeout_ms: args.timeout.and_then(millis),
    };
    let vm = match &args.idempotency_key {
        Some(key) => context.client.create_vm_once(&create, key).await?,
        None => context.client.create_vm(&create).await?,
    };
    if context.json {
        print_json(&vm)?;
    } else {
        print(&format!("{}\n", vm.name))?;
    }
    Ok(0)
}

fn millis(time: Duration) -> Option<u64> {
    u64::try_from(time.as_millis()).ok()
}

fn unique(labels: &[(String, String)]) -> Result<BTreeMap<String, String>, Failure> {
    let mut found = BTreeMap::new();
    for (key, value) in labels {
        if found.insert(key.clone(), value.clone()).is_some() {
            return Err(Failure::usage(format!("--label {key} is given twice")));
        }
    }
    Ok(found)
}

fn read_userdata(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_USERDATA + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_USERDATA + 1).read_to_string(&mut text))
    };
    let bytes = read.map_err(|e| Failure::io(&format!("cannot read the first-boot script {shown}"), &e))?;
    if bytes as u64 > MAX_USERDATA {
        return Err(Failure::usage(format!("the first-boot script {shown} is larger than 256 KiB"))
            .hint("let it fetch its larger parts, or copy them in with `enisle vm cp`"));
    }
    Ok(text)
}
