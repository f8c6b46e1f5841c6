//! Users of the image, read from its own passwd(5) and group(5).
//!
//! Owns: finding a user by name or number with all groups. Refuses: NSS. The agent is static and
//! must not load the image's libraries.

use std::fs;
use std::io;
use std::path::Path;

/// A user as a session needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name; the number when the image does not know it.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell, never empty.
    pub shell: String,
}

/// Shell of users that name none (passwd(5)).
const DEFAULT_SHELL: &str = "/bin/sh";

/// Finds `wanted`, a name or a number, below `root`. `None` when a name is unknown; an unknown
/// number is a user without a name, as with `docker exec`.
///
/// # Errors
/// passwd or group exists and cannot be read.
pub fn find(root: &Path, wanted: &str) -> io::Result<Option<User>> {
    let passwd = read(&root.join("etc/passwd"))?;
    let number = wanted.parse::<u32>().ok();
    let entries = || passwd.lines().filter_map(parse_passwd);
    let known = entries()
        .find(|user| user.name == wanted)
        .or_else(|| entries().find(|user| Some(user.uid) == number));
    let Some(mut user) = known.or_else(|| number.map(nameless)) else { return Ok(None) };
    user.groups = vec![user.gid];
    for gid in supplementary(&read(&root.join("etc/group"))?, &user.name) {
        if !user.groups.contains(&gid) {
            user.groups.push(gid);
        }
    }
    Ok(Some(user))
}

/// Finds the user the image itself has under a number; no name is taken for one.
///
/// # Errors
/// passwd exists and cannot be read.
pub fn find_by_uid(root: &Path, uid: &str) -> io::Result<Option<User>> {
    let passwd = read(&root.join("etc/passwd"))?;
    Ok(passwd.lines().filter_map(parse_passwd).find(|user| user.uid.to_string() == uid))
}

/// A missing file is an image without users, not an error: root still works.
fn read(path: &Path) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(e),
    }
}

fn nameless(uid: u32) -> User {
    let (name, home) = if uid == 0 { ("root".to_owned(), "/root") } else { (uid.to_string(), "/") };
    User { name, uid, gid: uid, groups: Vec::new(), home: home.to_owned(), shell: DEFAULT_SHELL.to_owned() }
}

fn parse_passwd(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).filter(|home| home.starts_with('/')).unwrap_or("/");
    let shell = fields.next().filter(|shell| shell.starts_with('/')).unwrap_or(DEFAULT_SHELL);
    Some(User {
        name: name.to_owned(),
        uid,
        gid,
        groups: Vec::new(),
        home: home.to_owned(),
        shell: shell.trim_end().to_owned(),
    })
}

fn supplementary<'a>(group: &'a str, name: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let gid = fields.nth(2)?.parse().ok()?;
        fields.next()?.trim_end().split(',').any(|member| member == name).then_some(gid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = "# comment\nroot:x:0:0:root:/root:/bin/bash\n\nbroken\n1000:x:7:7::/odd:/bin/sh\n\
                      ubuntu:x:1000:1000:,,,:/home/ubuntu:/bin/bash\nnoshell:x:1001:1001:::\n";
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        let group =
            "root:x:0:\nsudo:x:27:someone,ubuntu\nubuntu:x:1000:\nubuntu2:x:1002:ubuntux\nbad:x:z:ubuntu\n";
        fs::write(root.path().join("etc/group"), group).unwrap();
        root
    }

    #[test]
    fn a_name_a_number_and_a_name_that_is_a_number() {
        let root = image();
        let ubuntu = find(root.path(), "ubuntu").unwrap().unwrap();
        assert_eq!((ubuntu.uid, ubuntu.gid, ubuntu.groups.as_slice()), (1000, 1000, [1000, 27].as_slice()));
        assert_eq!((ubuntu.home.as_str(), ubuntu.shell.as_str()), ("/home/ubuntu", "/bin/bash"));
        assert_eq!(find(root.path(), "1000").unwrap().unwrap().uid, 7, "names come first");
        assert_eq!(find(root.path(), "1001").unwrap().unwrap().name, "noshell");
        assert_eq!(find(root.path(), "0").unwrap().unwrap().name, "root");
    }

    #[test]
    fn what_the_image_does_not_know() {
        let root = image();
        assert_eq!(find(root.path(), "nobody").unwrap(), None);
        let stranger = find(root.path(), "4242").unwrap().unwrap();
        assert_eq!((stranger.uid, stranger.gid, stranger.groups.as_slice()), (4242, 4242, [4242].as_slice()));
        let noshell = find(root.path(), "noshell").unwrap().unwrap();
        assert_eq!((noshell.home.as_str(), noshell.shell.as_str()), ("/", "/bin/sh"));
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(find(empty.path(), "0").unwrap().unwrap().home, "/root");
        assert_eq!(find(empty.path(), "root").unwrap().map(|u| u.uid), None);
    }
}
