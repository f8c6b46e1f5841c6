//! Building: one at a time in a directory, into a staging directory, published by one rename.

use crate::error::At;
use crate::{ImageError, boot, rootfs};
use rustix::fs::{CWD, FlockOperation, RenameFlags};
use serde::Serialize;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The image directory; made when it is missing.
    pub dir: PathBuf,
    /// One of [`crate::RECIPES`].
    pub name: String,
    /// The static guest agent.
    pub agent: PathBuf,
    /// Build again even if nothing changed.
    pub force: bool,
}

/// What a build did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// Kernel and initramfs are new.
    pub boot: bool,
    /// The root file system is new.
    pub image: bool,
}

/// Builds kernel, initramfs and an image where they are missing or old. Blocks for up to minutes
/// and tells `progress` each long step as it begins.
///
/// # Errors
/// See [`ImageError`]. What was there before stays usable; running VMs keep what they have open.
pub fn build(options: &BuildOptions, progress: &mut dyn FnMut(&str)) -> Result<Built, ImageError> {
    let recipe = rootfs::recipe(&options.name)?;
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NotRoot);
    }
    fs::create_dir_all(&options.dir).at("make", &options.dir)?;
    let _lock = lock(&options.dir)?;
    remove_stale(&options.dir)?;
    let boot = boot::build(options, progress)?;
    let image = rootfs::build(recipe, options, progress)?;
    Ok(Built { boot, image })
}

/// Held while a build is at work; the kernel lets go of it when the process dies.
fn lock(dir: &Path) -> Result<File, ImageError> {
    let path = dir.join(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ImageError::Busy { dir: dir.to_path_buf() }),
        Err(e) => Err(e).at("lock", &path),
    }
}

const STAGING: &str = ".staging-";

/// Removes what a killed build left. Under the lock nobody else is at work here.
fn remove_stale(dir: &Path) -> Result<(), ImageError> {
    for entry in fs::read_dir(dir).at("read the directory", dir)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(STAGING) {
            fs::remove_dir_all(entry.path()).at("remove", &entry.path())?;
        }
    }
    Ok(())
}

/// A directory being filled; gone again unless it is published.
pub(crate) struct Staged {
    path: PathBuf,
    target: PathBuf,
}

impl Staged {
    pub(crate) fn new(dir: &Path, name: &str) -> Result<Self, ImageError> {
        let path = dir.join(format!("{STAGING}{name}"));
        fs::create_dir(&path).at("make", &path)?;
        Ok(Self { path, target: dir.join(name) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds the manifest and puts the directory in its place, in one step for every reader.
    pub(crate) fn publish<T: Serialize>(self, manifest_name: &str, manifest: &T) -> Result<(), ImageError> {
        let path = self.path.join(manifest_name);
        let json = serde_json::to_vec_pretty(manifest).map_err(std::io::Error::from).at("write", &path)?;
        fs::write(&path, json).at("write", &path)?;
        let swap = self.target.exists();
        let flags = if swap { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        // After an exchange the old one lies at the staging path, and goes with this value.
        rustix::fs::renameat_with(CWD, &self.path, CWD, &self.target, flags).at("publish", &self.target)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already when it was published for the first time; a leftover goes at the next build.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A word that changes when one of the parts does. Not for secrets: whoever can write an image
/// needs no collision.
pub(crate) fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hasher = DefaultHasher::new();
    for part in parts {
        hasher.write_usize(part.len());
        hasher.write(part);
    }
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_replaces_whole_and_leaves_no_staging() {
        let dir = tempfile::tempdir().unwrap();
        for round in ["one", "two"] {
            let staged = Staged::new(dir.path(), "image").unwrap();
            fs::write(staged.path().join(round), round).unwrap();
            staged.publish("m.json", &round).unwrap();
        }
        assert!(!dir.path().join("image/one").exists() && dir.path().join("image/two").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the image");
        drop(Staged::new(dir.path(), "image").unwrap());
        assert!(dir.path().join("image/two").exists(), "an abandoned build changes nothing");
    }

    #[test]
    fn two_builds_exclude_each_other_and_a_killed_ones_rest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(ImageError::Busy { .. })));
        drop(held);
        fs::create_dir(dir.path().join(".staging-x")).unwrap();
        let _held = lock(dir.path()).unwrap();
        remove_stale(dir.path()).unwrap();
        assert!(!dir.path().join(".staging-x").exists());
    }

    #[test]
    fn an_unknown_recipe_is_refused_before_anything_is_touched() {
        let options = BuildOptions {
            dir: "/no/such/dir".into(),
            name: "arch".into(),
            agent: PathBuf::new(),
            force: false,
        };
        let said = build(&options, &mut |_| ()).unwrap_err().to_string();
        assert!(said.contains("arch") && said.contains("default") && said.contains("minimal"), "{said}");
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
    }
}
