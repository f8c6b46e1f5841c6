//! The environment of a process the agent starts, and the search for its program.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where programs are looked for when nobody says otherwise: Debian's root PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What every process gets.
#[must_use]
pub fn base(user: &str, home: &str, shell: &str) -> BTreeMap<String, String> {
    [("PATH", PATH), ("HOME", home), ("USER", user), ("LOGNAME", user), ("SHELL", shell), ("LANG", "C.UTF-8")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// Where a search for a program ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Search {
    Found(PathBuf),
    /// There is a file of that name and it cannot be executed.
    NotExecutable(PathBuf),
    Missing,
}

/// Finds `program` as a shell does: a name with a slash is a path from `cwd`, any other is looked
/// for along `path`.
pub(super) fn find_program(program: &str, path: &str, cwd: &Path) -> Search {
    if program.contains('/') {
        return judge(cwd.join(program));
    }
    let mut blocked = None;
    for directory in path.split(':') {
        // An empty entry is the working directory (POSIX, 8.3).
        match judge(cwd.join(directory).join(program)) {
            Search::Missing => {}
            Search::NotExecutable(file) => blocked = blocked.or(Some(file)),
            found @ Search::Found(_) => return found,
        }
    }
    blocked.map_or(Search::Missing, Search::NotExecutable)
}

fn judge(file: PathBuf) -> Search {
    match fs::metadata(&file) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => Search::Found(file),
        Ok(_) => Search::NotExecutable(file),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Search::NotExecutable(file),
        Err(_) => Search::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("a/tool", 0o644), ("b/tool", 0o755), ("a/data", 0o644)] {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let find = |program, path| find_program(program, path, dir.path());
        assert_eq!(find("tool", "a:b"), Search::Found(dir.path().join("b/tool")));
        assert_eq!(find("data", "b:a"), Search::NotExecutable(dir.path().join("a/data")));
        assert_eq!(find("none", "a:b"), Search::Missing);
        assert_eq!(find("./b/tool", ""), Search::Found(dir.path().join("./b/tool")));
        assert_eq!(find("a", ""), Search::NotExecutable(dir.path().join("a")), "a directory is no program");
        assert_eq!(find("", "a"), Search::NotExecutable(dir.path().join("a/")));
    }
}
