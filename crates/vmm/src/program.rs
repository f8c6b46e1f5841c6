//! Owns finding the programs a back end runs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::Cause;

/// One program: its file name and where it may be, beside `PATH`.
#[derive(Debug)]
pub(crate) struct Lookup<'a> {
    pub(crate) name: &'static str,
    /// The operator's own choice: if given, nothing else is looked at.
    pub(crate) given: Option<&'a Path>,
    /// An environment variable with a path, of the same weight.
    pub(crate) variable: Option<&'static str>,
    /// Directories looked at before `PATH`.
    pub(crate) first: Vec<PathBuf>,
    /// Directories looked at after `PATH`.
    pub(crate) last: &'a [&'a str],
}

impl Lookup<'_> {
    pub(crate) fn find(&self) -> Result<PathBuf, Cause> {
        let places = self.places();
        if let Some(found) = places.iter().find(|place| is_program(place)) {
            return Ok(found.clone());
        }
        let looked_at: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        Err(Cause::MissingProgram { program: self.name, looked_at: looked_at.join(", ") })
    }

    fn places(&self) -> Vec<PathBuf> {
        if let Some(path) = self.given {
            return vec![path.to_owned()];
        }
        if let Some(path) = self.variable.and_then(std::env::var_os) {
            return vec![path.into()];
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut dirs = self.first.clone();
        // A relative entry would mean the directory somebody happened to start us in.
        dirs.extend(std::env::split_paths(&path).filter(|dir| dir.is_absolute()));
        dirs.extend(self.last.iter().map(PathBuf::from));
        dirs.iter().map(|dir| dir.join(self.name)).collect()
    }
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The directory of the running binary.
pub(crate) fn beside_us() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup<'a>(given: Option<&'a Path>, first: Vec<PathBuf>) -> Lookup<'a> {
        Lookup { name: "enisle-no-such-program", given, variable: None, first, last: &["/usr/lib/enisle"] }
    }

    #[test]
    fn a_program_must_be_an_executable_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("enisle-no-such-program");
        std::fs::write(&path, "").unwrap();
        let places = vec![dir.path().to_owned()];
        let missing = lookup(None, places.clone()).find().unwrap_err().to_string();
        assert!(missing.contains(&path.display().to_string()), "{missing}");
        assert!(missing.contains("/usr/lib/enisle/"), "{missing}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(lookup(None, places).find().unwrap(), path);
    }

    #[test]
    fn the_operators_choice_is_the_only_place() {
        let given = Path::new("/nonexistent/qemu");
        let missing = lookup(Some(given), vec![]).find().unwrap_err().to_string();
        assert!(missing.ends_with("looked at /nonexistent/qemu"), "{missing}");
    }
}
