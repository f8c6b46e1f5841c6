//! The real ufw, and a firewall whose table nobody else may change.
//!
//! ufw runs in the host's namespace with mounts of its own, so that its configuration is nobody
//! else's.

use std::path::PathBuf;

use crate::interference::Followed;

/// `$0` is a directory that holds ufw's state between two commands.
const UFW: &str = "\
set -e
[ -d \"$0/ufw\" ] || cp -a /etc/ufw \"$0/ufw\"
[ -f \"$0/default\" ] || cp -a /etc/default/ufw \"$0/default\"
mount --bind \"$0/ufw\" /etc/ufw
mount --bind \"$0/default\" /etc/default/ufw
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
exec ufw \"$@\"
";

/// ufw with a configuration of its own.
struct Ufw(PathBuf);

impl Ufw {
    fn new() -> Ufw {
        let dir = std::env::temp_dir().join(format!("enisle-ufw-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        Ufw(dir)
    }

    fn run(&self, f: &Followed, line: &str) {
        let dir = self.0.to_str().unwrap();
        let args = ["--mount", "sh", "-c", UFW, dir].into_iter().chain(line.split(' '));
        f.host().check("unshare", &args.collect::<Vec<_>>(), "").unwrap();
    }
}

impl Drop for Ufw {
    fn drop(&mut self) {
        // A directory in /tmp is no reason to fail.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn ufw_is_enabled_reloaded_and_disabled_around_us() {
    let mut f = Followed::new();
    let ufw = Ufw::new();
    // What comes to the host itself is not looked at here.
    ufw.run(&f, "default allow incoming");
    ufw.run(&f, "--force enable");
    let listed = f.run("iptables-nft", "-S FORWARD");
    assert!(listed.contains("-P FORWARD DROP") && listed.contains("ufw-"), "{listed}");
    f.lost_and_comes_back("ufw enabled");
    let listed = f.run("iptables-nft", "-S FORWARD");
    assert_eq!(listed.matches("enisle 0badcafe").count(), 2, "{listed}");
    ufw.run(&f, "reload");
    f.comes_back("ufw reloaded");
    ufw.run(&f, "--force disable");
    f.comes_back("ufw disabled");
    assert!(!f.run("iptables-nft", "-S FORWARD").contains("enisle"));
    f.rig.engine.close().unwrap();
}

#[test]
fn a_table_that_its_owner_locks_is_told_and_no_obstacle_to_the_rest() {
    let mut f = Followed::new();
    // As firewalld 2 does: the table is its owner's as long as the owner lives.
    let mut owner = f.host().run(|| {
        let mut nft = std::process::Command::new("nft");
        nft.arg("-i").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap()
    });
    let mut stdin = owner.stdin.take().unwrap();
    let lines = "table inet locked { flags owner; chain fwd1 { type filter hook forward priority 5; policy drop; }; }\n";
    std::io::Write::write_all(&mut stdin, lines.as_bytes()).unwrap();
    f.until("the table is there", |f| f.run("nft", "list tables").contains("locked"));
    f.follow();
    assert!(!f.online(), "its owner drops everything");
    let seen = f.host().run(enisle_net::survey::forward_chains).unwrap();
    assert!(seen.iter().any(|c| c.table == "table inet locked" && c.refuses && c.locked), "{seen:?}");
    f.closed("a locked table");
    // Everything else is still looked after.
    f.run("nft", "flush table inet enisle_0badcafe");
    f.follow();
    assert!(f.run("nft", "list table inet enisle_0badcafe").contains("masquerade"));
    drop(stdin);
    owner.wait().unwrap();
    f.comes_back("the owner is gone");
}
