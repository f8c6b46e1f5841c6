//! The system's users. Owns reading `/etc/passwd`; refuses name services beyond it, as `group_file` does.

/// The name of a user, where the file has one.
pub(crate) fn name(uid: u32) -> Option<String> {
    find(&std::fs::read_to_string("/etc/passwd").ok()?, uid)
}

/// passwd(5): `name:password:uid:…`.
fn find(text: &str, uid: u32) -> Option<String> {
    let mut lines = text.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_user_is_found_by_number() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(super::find(text, 1000).as_deref(), Some("ann"));
        assert_eq!(super::find(text, 0).as_deref(), Some("root"));
        assert_eq!(super::find(text, 100), None);
    }
}
