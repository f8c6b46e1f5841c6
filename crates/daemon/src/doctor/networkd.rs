//! Whether systemd-networkd would take a slot's interface for one it manages.
//!
//! Owns: the `[Match]` section of `.network` files (systemd.network(5)) as far as it can be decided
//! for an interface of ours. Refuses: reading files, everything else networkd can do.

/// What networkd would do with an interface of ours, by the first file that matches, in the order
/// of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// No file matches.
    Nobody,
    /// It manages the interface by this file.
    Managed(String),
    /// This file tells it to keep off.
    Unmanaged,
}

/// Judges files as `(path, text)`; a file hides those of the same name in later directories.
pub(super) fn claim(files: &[(String, String)]) -> Claim {
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let mut seen: Vec<String> = Vec::new();
    let mut order: Vec<(String, &str, &str)> = Vec::new();
    for (path, text) in files {
        if !seen.contains(&name(path)) {
            seen.push(name(path));
            order.push((name(path), path, text));
        }
    }
    order.sort();
    for (_, path, text) in order {
        if matches_ours(text) {
            let off = value(text, "Link", "Unmanaged").is_some_and(is_true);
            return if off { Claim::Unmanaged } else { Claim::Managed(path.to_owned()) };
        }
    }
    Claim::Nobody
}

/// Whether a file's `[Match]` takes a veth called `en-a9fe6402`. A key that an interface of ours
/// cannot fulfil, or that is not known here, means no.
fn matches_ours(text: &str) -> bool {
    let mut any = false;
    for (section, key, value) in entries(text) {
        if section != "Match" || value.is_empty() {
            continue;
        }
        let fits = match key {
            "Name" | "OriginalName" => one_of(value, "en-a9fe6402"),
            "Kind" | "Driver" => one_of(value, "veth"),
            "Type" => one_of(value, "ether"),
            // Hosts, virtualisation, kernel options: may hold.
            "Host" | "Virtualization" | "KernelCommandLine" | "KernelVersion" | "Architecture"
            | "Credential" | "Firmware" => true,
            _ => false,
        };
        if !fits {
            return false;
        }
        any = true;
    }
    any
}

/// A list of shell patterns; `!` in front turns the whole list round.
fn one_of(list: &str, word: &str) -> bool {
    let (inverted, list) = match list.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, list),
    };
    list.split_ascii_whitespace().any(|pattern| glob(pattern.as_bytes(), word.as_bytes())) != inverted
}

/// `*`, `?` and `[…]` of glob(7).
fn glob(pattern: &[u8], word: &[u8]) -> bool {
    match (pattern, word) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            glob(rest, word) || word.split_first().is_some_and(|(_, tail)| glob(pattern, tail))
        }
        ([b'?', rest @ ..], [_, tail @ ..]) => glob(rest, tail),
        ([b'[', rest @ ..], [c, tail @ ..]) => match rest.iter().skip(1).position(|b| *b == b']') {
            Some(end) => in_set(&rest[..=end], *c) && glob(&rest[end + 2..], tail),
            None => false,
        },
        ([p, rest @ ..], [c, tail @ ..]) => p == c && glob(rest, tail),
        _ => false,
    }
}

/// A character against the inside of `[…]`.
fn in_set(set: &[u8], c: u8) -> bool {
    let (inverted, set) = match set {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, set),
    };
    let range = set.windows(3).any(|w| w[1] == b'-' && (w[0]..=w[2]).contains(&c));
    (range || set.contains(&c)) != inverted
}

fn value<'a>(text: &'a str, section: &str, key: &str) -> Option<&'a str> {
    entries(text).filter(|(s, k, _)| (*s, *k) == (section, key)).map(|(_, _, v)| v).last()
}

fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "1" | "yes" | "y" | "true" | "t" | "on")
}

/// `(section, key, value)` of an ini file.
fn entries(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let mut section = "";
    text.lines().map(str::trim).filter_map(move |line| {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name;
            return None;
        }
        if line.starts_with(['#', ';']) {
            return None;
        }
        let (key, value) = line.split_once('=')?;
        Some((section, key.trim(), value.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Claim {
        let own = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
        claim(&files.iter().map(own).collect::<Vec<_>>())
    }

    #[test]
    fn files_that_match_everything_take_our_interface() {
        for text in [
            "[Match]\nName=*\n[Network]\nDHCP=yes\n",
            "[Match]\nName=en*\n",
            "[Match]\nName=eth* en-?????[0-9]*\n",
            "[Match]\nKind=veth\n",
            "# all\n[Match]\nType=ether\nName=!lo\n",
        ] {
            let file = "/etc/systemd/network/50-all.network";
            assert_eq!(of(&[(file, text)]), Claim::Managed(file.to_owned()), "{text}");
        }
    }

    #[test]
    fn files_for_other_interfaces_do_not() {
        for text in [
            "[Match]\nName=eth0\n[Network]\nDHCP=yes\n",
            "[Match]\nName=en[!-]*\n",
            "[Match]\nName=!en-*\n",
            "[Match]\nMACAddress=02:00:00:00:00:01\n",
            "[Match]\nType=ether\nKind=!*\n",
            "[Match]\nDriver=virtio_net\n",
            "[Match]\nName=ve-* vb-*\nDriver=veth\n",
            "[Network]\nDHCP=yes\n",
            "",
        ] {
            assert_eq!(of(&[("/etc/systemd/network/50-x.network", text)]), Claim::Nobody, "{text}");
        }
    }

    #[test]
    fn the_first_name_wins_and_a_later_directory_is_hidden() {
        let all = "[Match]\nName=*\n";
        let off = "[Match]\nName=en-*\n[Link]\nUnmanaged=yes\n";
        assert_eq!(
            of(&[("/etc/a/50-all.network", all), ("/etc/a/05-enisle.network", off)]),
            Claim::Unmanaged
        );
        assert_eq!(
            of(&[("/etc/a/50-all.network", all), ("/usr/lib/b/90-enisle.network", off)]),
            Claim::Managed("/etc/a/50-all.network".into())
        );
        assert_eq!(
            of(&[("/etc/a/50-all.network", "[Match]\nName=eth0\n"), ("/usr/lib/b/50-all.network", all)]),
            Claim::Nobody
        );
    }
}
