//! Other programs that have opinions about the host's network.

use enisle_net::survey::ForwardChain;

use super::super::facts::{Facts, Program};
use super::super::finding::Finding;
use super::super::networkd::{self, Claim};

pub(super) fn chains(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.legacy_iptables {
        let finding = Finding::warning("iptables-legacy", "iptables-legacy has a filter table here")
            .why("Enisle sees only nf_tables: where its FORWARD chain drops by policy, microVMs have no network")
            .fix(
                "update-alternatives --set iptables /usr/sbin/iptables-nft, then restart what uses it; or \
                 iptables-legacy -I FORWARD -i en-+ -j ACCEPT; iptables-legacy -I FORWARD -o en-+ -m conntrack \
                 --ctstate RELATED,ESTABLISHED -j ACCEPT",
            );
        found.push(finding);
    }
    match &facts.chains {
        None => {}
        Some(Err(error)) => {
            let finding = Finding::warning("firewall", format!("firewall chains cannot be read: {error}"))
                .why("a chain that drops forwarded packets would keep microVMs from the Internet")
                .fix("sudo enisle doctor");
            found.push(finding);
        }
        Some(Ok(chains)) => found.extend(refusing(chains)),
    }
    found
}

fn refusing(chains: &[ForwardChain]) -> Vec<Finding> {
    let refusing: Vec<&ForwardChain> = chains.iter().filter(|chain| chain.refuses).collect();
    if refusing.is_empty() {
        return vec![Finding::ok("firewall", "no other program's chain drops what it does not know")];
    }
    let note = |chain: &&ForwardChain| {
        if chain.locked {
            let what = format!("chain {} of {} drops what it does not know", chain.chain, chain.table);
            return Finding::failure("firewall", what)
                .why("its table is locked by its owner, so the daemon cannot let microVMs' packets through")
                .fix(
                    "firewalld: set NftablesTableOwner=no in /etc/firewalld/firewalld.conf and systemctl restart \
                     firewalld; else let through there what comes from and goes to the range",
                );
        }
        Finding::note(
            "firewall",
            format!("chain {} of {} drops what it does not know", chain.chain, chain.table),
        )
        .why(
            "nothing to do: the daemon puts a pair of accepts for its microVMs at its head, puts it back \
                 when it is flushed, and removes it in the end",
        )
    };
    refusing.iter().map(note).collect()
}

pub(super) fn programs(facts: &Facts) -> Vec<Finding> {
    let told = |program: &Program| {
        match program {
        Program::Docker => Some(
            Finding::note("docker", "Docker runs here")
                .why("it sets the policy of the FORWARD chain to drop; the daemon sees to its microVMs. Published ports are closed to them"),
        ),
        Program::Firewalld => Some(
            Finding::note("firewalld", "firewalld runs here")
                .why("where it owns its nf_tables table nobody else may add a rule to it, and microVMs' packets are rejected")
                .fix("set NftablesTableOwner=no in /etc/firewalld/firewalld.conf, then systemctl restart firewalld"),
        ),
        Program::Ufw => Some(
            Finding::note("ufw", "ufw is enabled").why("its policy for forwarded packets is drop; the daemon sees to its microVMs"),
        ),
        Program::NetworkManager if !facts.network_manager.contains("interface-name:en-") => Some(
            Finding::note("network-manager", "NetworkManager runs here and was not told to leave Enisle's interfaces alone")
                .why("most distributions make it ignore veth interfaces; where not, the daemon puts right what it changes, again and again")
                .fix(
                    "printf '[keyfile]\\nunmanaged-devices+=interface-name:en-*\\n' > \
                     /etc/NetworkManager/conf.d/60-enisle.conf; nmcli general reload",
                ),
        ),
        Program::NetworkManager | Program::Networkd => None,
    }
    };
    facts.programs.iter().filter_map(told).collect()
}

pub(super) fn bridges(facts: &Facts) -> Vec<Finding> {
    let on = facts.settings.as_ref().is_ok_and(|s| s.bridge_netfilter == Some(true));
    let note = || {
        Finding::note(
            "br-netfilter",
            "br_netfilter is on: packets between ports of a bridge pass the FORWARD chain too",
        )
        .why("nothing to do: microVMs on a bridge are let through; a bridge of yours may be cut by Docker's policy")
    };
    if on { vec![note()] } else { Vec::new() }
}

pub(super) fn networkd(facts: &Facts) -> Vec<Finding> {
    let Claim::Managed(file) = networkd::claim(&facts.networkd) else {
        return vec![Finding::ok("networkd", "no file of systemd-networkd matches Enisle's interfaces")];
    };
    let runs = facts.programs.contains(&Program::Networkd);
    let what = format!("{file} matches Enisle's interfaces (en-…)");
    let found = if runs { Finding::warning("networkd", what) } else { Finding::note("networkd", what) };
    let found = found
        .why(
            "systemd-networkd takes routes and neighbours away that it did not make, and gives addresses; the \
             daemon puts that right, but connections pause meanwhile",
        )
        .fix(
            "printf '[Match]\\nName=en-*\\n[Link]\\nUnmanaged=yes\\n' > /etc/systemd/network/05-enisle.network; \
             networkctl reload",
        );
    vec![found]
}
