//! The keys of the file. This is the place to add one: the reader, the JSON schema and the test
//! that compares the manual with it follow.
//!
//! Owns: names, types, defaults and words of the keys. Refuses: rules between keys
//! ([`super::check`]).

use enisle_net::Limits;
use enisle_net::policy::MAX_RULES;

use super::read::{List, keys};
use super::values::{
    Address, ApiSocket, Directory, FilePath, Flag, GatewayText, Gigabytes, GroupName, HostAddress,
    Hypervisor, ImageName, LinkName, Megabytes, Mode, RangeText, RuleText, Script, Size, SshKey,
    StateDirectory, Whole, Written,
};

/// Groups of a file. Each takes a range of its own.
pub(super) const MAX_GROUPS: usize = 1024;

/// Most microVMs launched with the daemon: as many as the largest range holds.
const MAX_COUNT: u32 = 1 << 22;
/// Warm slots of a group. More would only be memory: a VM takes longer to boot than they to make.
const MAX_WARM: u32 = 256;
/// microVMs that may start at the same time: far more than any host has processors for.
const MAX_AT_ONCE: u32 = 256;

keys! {
    /// Configuration of an Enisle daemon.
    pub(super) struct FileKeys ("the file") {
        /// Everything there is.
        required config: ConfigKeys,
    }
}

keys! {
    /// The daemon and its host groups.
    pub(super) struct ConfigKeys ("`config`") {
        /// Groups of like microVMs.
        required host_groups: List<GroupKeys, MAX_GROUPS>,
        /// Unix socket on which the daemon serves its API: an absolute path, `unix:` may come before it.
        default("/run/enisle/api.sock") api: ApiSocket,
        /// TCP addresses on which the API is served too, with TLS and to holders of tokens.
        default([]) listen: List<ListenKeys, 16>,
        /// The certificate for them, instead of the daemon's own.
        optional tls: TlsKeys,
        /// What runs the guests. `auto` is QEMU, with KVM if a probe guest boots with it, else by
        /// emulation; `qemu-kvm` fails where KVM does not work; `qemu-tcg` always emulates.
        default("auto") hypervisor: Hypervisor,
        /// Image of the groups that name none.
        default("default") image: ImageName,
        /// Guest kernel, instead of the one built with the images.
        optional kernel: FilePath,
        /// Initramfs for `kernel`, instead of the one built with the images.
        optional initramfs: FilePath,
        /// Where images and the kernel are.
        default("/var/lib/enisle/images") image_dir: Directory,
        /// Where the daemon keeps its state. One daemon at a time.
        default("/var/lib/enisle") state_dir: StateDirectory,
        /// microVMs that start at the same time; the others are queued. Two more than the host has
        /// processors without it.
        optional start_at_once: Whole<1, MAX_AT_ONCE>,
        /// Public keys, as in authorized_keys, that may log in to every microVM.
        default([]) ssh_keys: List<SshKey, 256>,
        /// Serves the microVMs' serial consoles over SSH, to the holders of `ssh_keys`. `ssh: {}` is
        /// enough. Without it nothing listens.
        optional ssh: SshServerKeys,
    }
}

keys! {
    /// Where serial consoles are served over SSH.
    pub(super) struct SshServerKeys ("`ssh`") {
        /// Address of this host to listen on; 0.0.0.0 is all of them, :: those of IPv6 too.
        default("127.0.0.1") bind: HostAddress,
        /// TCP port to listen on.
        default(2222) port: Whole<1, 65535>,
    }
}

keys! {
    /// A TCP address of the API.
    pub(super) struct ListenKeys ("an entry of `listen`") {
        /// An address of this host; `0.0.0.0` or `::` is all of them.
        required address: HostAddress,
        /// The port.
        default(7443) port: Whole<1, 65535>,
    }
}

keys! {
    /// A certificate of the operator's. Its files are read again when they change.
    pub(super) struct TlsKeys ("`tls`") {
        /// The certificate and those between it and its root, in PEM.
        required certificate: FilePath,
        /// Its private key, in PEM.
        required key: FilePath,
    }
}

keys! {
    /// A group of microVMs with the same size, image and policy.
    pub(super) struct GroupKeys ("a group") {
        /// Name of the group. Its microVMs are NAME-1, NAME-2 and so on.
        required name: GroupName,
        /// microVMs launched with the daemon; 0 leaves making them to the API and the CLI.
        default(1) count: Whole<0, MAX_COUNT>,
        /// Virtual CPUs of each.
        default(1) vcpu: Whole<1, 64>,
        /// Memory of each in GiB; fractions are fine. Instead of `ram_mb`; with neither it is 512 MiB.
        optional ram_gb: Gigabytes,
        /// Memory of each in MiB. Instead of `ram_gb`.
        optional ram_mb: Megabytes,
        /// Image, instead of the daemon's `image`.
        optional image: ImageName,
        /// Size of each microVM's disk. It takes no room until it is written.
        default("4G") disk: Size,
        /// Script run once, by root, when a microVM boots for the first time.
        optional userdata: Script,
        /// Public keys of this group, beside the daemon's.
        default([]) ssh_keys: List<SshKey, 256>,
        /// Who the microVMs may talk to.
        required network: NetworkKeys,
    }
}

keys! {
    /// A group's network. In mode `isolated`, without lists, its microVMs reach the public Internet and nothing else.
    pub(super) struct NetworkKeys ("`network`") {
        /// `isolated`: each microVM is on its own. `bridge`: they see each other on a Linux bridge, and the network
        /// reaches them. Without it `bridge`.
        optional mode: Written<Mode>,
        /// In mode `bridge`: the name of the bridge, required there. One that is there already is used and gets nothing but
        /// ports; else it is made, and removed when the daemon stops.
        optional bridge: Written<LinkName>,
        /// In mode `bridge`: the gateway's address with the length of the subnet, required there. A bridge that is made
        /// gets this address.
        optional gateway: Written<GatewayText>,
        /// In mode `bridge`: microVMs reach the host and what is beyond, and not each other.
        optional isolate_ports: Flag,
        /// In mode `bridge`: an interface without addresses that joins the bridge, where the daemon makes it.
        optional uplink: LinkName,
        /// In mode `bridge`: packets pass between this bridge and those of other groups that say so, too.
        optional route_between: Flag,
        /// Required in mode `isolated`. In mode `bridge` a part of the subnet without the gateway, the half of it where the
        /// key is absent. Network from which each microVM takes a /30: a /22 is 256 microVMs. Inside 10.0.0.0/8,
        /// 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16 or 100.64.0.0/10, and used by nothing else.
        optional range: Written<RangeText>,
        /// What is refused: networks, addresses or services. The most specific entry of both lists
        /// wins, `drop` before `allow`.
        default([]) drop: List<RuleText, MAX_RULES>,
        /// What is opened against `drop` and the built-in floor.
        default([]) allow: List<RuleText, MAX_RULES>,
        /// Name servers, instead of the host's.
        default([]) dns: List<Address, 3>,
        /// The most that each microVM may use of what all share.
        default({}) limits: LimitKeys,
        /// Network slots kept ready for the next microVMs. Each takes half a megabyte of the kernel's
        /// memory.
        default(2) warm_slots: Whole<0, MAX_WARM>,
    }
}

keys! {
    /// What one microVM may use of the host's connection tracking and bandwidth.
    pub(super) struct LimitKeys ("`limits`") {
        /// Flows at a time: TCP connections, pairs of UDP ports, pings.
        default(4096) flows: Whole<1, { Limits::MAX_FLOWS }>,
        /// Flows begun in a second; twice as many at once after a quiet time.
        default(500) new_flows_per_s: Whole<1, { Limits::MAX_NEW_FLOWS_PER_S }>,
        /// Megabits a second from each microVM; no limit without it.
        optional mbit_up: Whole<1, { Limits::MAX_MBIT }>,
        /// Megabits a second to each microVM; no limit without it.
        optional mbit_down: Whole<1, { Limits::MAX_MBIT }>,
    }
}
