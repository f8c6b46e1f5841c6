//! The system's groups. Owns reading `/etc/group`; refuses name services beyond it, which would
//! need the C library to be linked dynamically.

/// The number of a group, if there is one of this name.
pub(crate) fn gid(name: &str) -> Option<u32> {
    find(&std::fs::read_to_string("/etc/group").ok()?, name)
}

/// group(5): `name:password:gid:members`.
fn find(text: &str, name: &str) -> Option<u32> {
    let mut lines = text.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let text = "root:x:0:\nenisles:x:7:\nenisle:x:998:ann,bob\nbroken\n";
        assert_eq!(super::find(text, "enisle"), Some(998));
        assert_eq!(super::find(text, "enis"), None);
        assert_eq!(super::find(text, "broken"), None);
    }
}
