//! The daemon's configuration: one YAML file, read whole, every mistake reported at once.
//!
//! Owns: the keys, their types and defaults, the rules between them, and how mistakes look. A file
//! goes through four stages: [`source`] (bytes to text), [`tree`] (YAML to nodes with places),
//! [`file`] (nodes to typed keys, by tables), [`check`] (rules between keys, and what the machine
//! says). Refuses: doing anything with a configuration, and asking the machine except through
//! [`Host`].

mod bridge;
mod check;
mod file;
mod listen;
mod read;
mod render;
mod report;
mod source;
#[cfg(test)]
mod tests;
mod tree;
mod values;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use enisle_net::Limits;
use enisle_net::plan::Range;
use enisle_net::policy::PolicySpec;
use ipnet::Ipv4Net;

use file::FileKeys;
use read::Read;
use report::{Problem, Report};
use source::Source;

pub use render::Look;
pub use report::ConfigErrors;
pub use source::Place;
pub use values::{Hypervisor, Mode, SshKey};

/// The smallest configuration that does something: two lines of it are the network.
pub const MINIMAL: &str = include_str!("../../../../examples/minimal.yaml");

/// A configuration without mistakes.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it came from, as it was named.
    pub file: String,
    /// Path of the API's unix socket, at most 107 bytes.
    pub api: PathBuf,
    /// TCP addresses of the API, without doubles.
    pub listen: Vec<SocketAddr>,
    /// Certificate and key for them, where they are not the daemon's own.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// What runs the guests.
    pub hypervisor: Hypervisor,
    /// Image of the groups that name none.
    pub image: String,
    /// Guest kernel, where it is not the one built with the images.
    pub kernel: Option<PathBuf>,
    /// Initramfs, where it is not the one built with the images.
    pub initramfs: Option<PathBuf>,
    /// Where images are; absolute.
    pub image_dir: PathBuf,
    /// Where the daemon's state is; absolute, at most 64 bytes.
    pub state_dir: PathBuf,
    /// VMs that start at the same time, where it is not for the daemon to say.
    pub start_at_once: Option<u32>,
    /// Keys that may log in to every VM. Each group's list holds them already.
    pub ssh_keys: Vec<SshKey>,
    /// Where serial consoles are served over SSH, if they are. Some key is there then.
    pub ssh: Option<SocketAddr>,
    /// In the order of the file. Names differ, ranges do not overlap.
    pub groups: Vec<Group>,
}

impl Config {
    /// The group of that name.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }
}

/// A group of like VMs.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// 1 to 50 of `a-z`, `0-9` and `-`.
    pub name: String,
    /// VMs launched with the daemon; no more than the range holds.
    pub count: u32,
    /// Virtual CPUs of a VM, 1 to 64.
    pub vcpu: u8,
    /// Memory of a VM in MiB, 64 to 1,048,576.
    pub ram_mib: u32,
    /// Name of the image.
    pub image: String,
    /// Size of a VM's disk in bytes, 64 MiB to 64 TiB.
    pub disk_bytes: u64,
    /// Script run once on first boot, at most 256 KiB.
    pub userdata: Option<String>,
    /// Keys that may log in: the daemon's, then the group's own.
    pub ssh_keys: Vec<SshKey>,
    /// Who the VMs may talk to.
    pub network: Network,
}

/// The network of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// How its VMs are connected.
    pub mode: Mode,
    /// The bridge of mode `bridge`; no other has one.
    pub bridge: Option<enisle_net::Bridge>,
    /// Where VMs get their /30 blocks.
    pub range: Range,
    /// The group's policy. It compiles.
    pub policy: PolicySpec,
    /// Where each entry of `policy.drop` stands in the file.
    pub drop_at: Vec<Place>,
    /// Where each entry of `policy.allow` stands in the file.
    pub allow_at: Vec<Place>,
    /// Name servers, at most 3; empty means the host's.
    pub dns: Vec<Ipv4Addr>,
    /// What each VM may use of what all share.
    pub limits: Limits,
    /// Slots that are kept ready for the next VMs.
    pub warm_slots: u32,
}

/// A network that this host uses for something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// The network.
    pub net: Ipv4Net,
    /// What uses it, for people: "interface docker0".
    pub by: String,
}

/// What has to be asked of the machine. The daemon answers; nothing is changed by asking.
pub trait Host {
    /// Networks used outside this daemon: by addresses of interfaces, by routes other than
    /// default routes, by other daemons. A daemon whose state is in `state_dir` is no other one.
    fn networks(&self, state_dir: &Path) -> Vec<InUse>;

    /// Names of the images in `image_dir` that a VM can boot from; `None` where that cannot be
    /// known, which lets every name pass.
    fn images(&self, image_dir: &Path) -> Option<Vec<String>>;

    /// Whether `path` is a file that can be read.
    fn is_file(&self, path: &Path) -> bool;
}

/// A host that has everything and uses nothing: for reading a file meant for another machine.
#[derive(Debug, Clone, Copy)]
pub struct AnyHost;

impl Host for AnyHost {
    fn networks(&self, _: &Path) -> Vec<InUse> {
        Vec::new()
    }

    fn images(&self, _: &Path) -> Option<Vec<String>> {
        None
    }

    fn is_file(&self, _: &Path) -> bool {
        true
    }
}

/// Reads the configuration in `path`, and asks `host` whether it can hold here. Changes nothing.
/// Blocks on the file system.
///
/// # Errors
/// Every mistake of the file.
pub fn load(path: &Path, host: &dyn Host) -> Result<Config, ConfigErrors> {
    parse_source(source::read(path)?, host)
}

/// Reads the configuration in `text`; messages call it `name`.
///
/// # Errors
/// Every mistake of the text.
pub fn parse(name: &str, text: &str, host: &dyn Host) -> Result<Config, ConfigErrors> {
    parse_source(Source::new(name, text), host)
}

fn parse_source(source: Source, host: &dyn Host) -> Result<Config, ConfigErrors> {
    let root = match tree::parse(&source.text) {
        Ok(Some(root)) => root,
        Ok(None) => return Err(ConfigErrors::one(source, empty())),
        Err(problem) => return Err(ConfigErrors::one(source, *problem)),
    };
    let mut report = Report::default();
    let config = FileKeys::read(&root, "the file", &mut report)
        .and_then(|file| check::resolve(&file, &source, host, &mut report));
    report.finish(config, source)
}

fn empty() -> Problem {
    Problem::of_file("the file is empty").help(format!("write at least:\n\n{MINIMAL}"))
}

/// The JSON schema (draft 7, which editors know best) of the file: made from the declarations
/// that the reader reads by.
#[must_use]
pub fn schema() -> serde_json::Value {
    let mut schema = FileKeys::schema();
    read::merge(
        &mut schema,
        serde_json::json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": "enisle.yaml",
        }),
    );
    schema
}
