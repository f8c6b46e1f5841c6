//! The image directory as the daemon sees it: what is there and usable.

use crate::ImageError;
use crate::error::At;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The directory of the boot files; no image can have this name.
pub(crate) const BOOT: &str = "boot";
pub(crate) const KERNEL: &str = "kernel";
pub(crate) const INITRAMFS: &str = "initramfs.cpio";
pub(crate) const BOOT_MANIFEST: &str = "boot.json";
pub(crate) const ROOTFS: &str = "rootfs.ext4";
pub(crate) const IMAGE_MANIFEST: &str = "image.json";

/// What is written beside the boot files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootManifest {
    /// The kernel's version, as `uname -r` says it in the guest.
    pub(crate) version: String,
    /// Changes when anything that goes into the files changes.
    pub(crate) fingerprint: String,
}

/// What is written beside a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageManifest {
    /// What it is, for people.
    pub(crate) description: String,
    /// Changes when the recipe changes.
    pub(crate) fingerprint: String,
}

/// Kernel and initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// A bzImage.
    pub kernel: PathBuf,
    /// The agent and the drivers it loads, as a cpio archive.
    pub initramfs: PathBuf,
    /// The kernel's version.
    pub version: String,
    /// Changes when kernel, drivers or agent change.
    pub fingerprint: String,
}

/// A root file system: a raw ext4 that is never written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootImage {
    /// Its name, or its path when it was given by path.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes as a guest sees it; on disk it is sparse.
    pub virtual_size: u64,
    /// What it is, for people; empty when it was given by path.
    pub description: String,
}

/// The image directory. Holds nothing open: what is there may change at any time.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: PathBuf,
}

impl ImageStore {
    /// The store in this directory, which need not exist yet.
    pub fn open(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kernel and initramfs.
    ///
    /// # Errors
    /// When none has been built, or the manifest does not parse.
    pub fn boot(&self) -> Result<BootFiles, ImageError> {
        let dir = self.dir.join(BOOT);
        let manifest: BootManifest = read_manifest(&dir.join(BOOT_MANIFEST))?
            .ok_or_else(|| ImageError::NoBootFiles { dir: self.dir.clone() })?;
        let files = BootFiles {
            kernel: dir.join(KERNEL),
            initramfs: dir.join(INITRAMFS),
            version: manifest.version,
            fingerprint: manifest.fingerprint,
        };
        for path in [&files.kernel, &files.initramfs] {
            fs::metadata(path).at("look at", path)?;
        }
        Ok(files)
    }

    /// An image by name, or by path when it has a slash in it.
    ///
    /// # Errors
    /// When there is none; with the names of those that exist.
    pub fn image(&self, name_or_path: &str) -> Result<RootImage, ImageError> {
        if name_or_path.contains('/') {
            let path = PathBuf::from(name_or_path);
            let size = fs::metadata(&path).at("look at the image", &path)?.len();
            return Ok(RootImage {
                name: name_or_path.to_owned(),
                path,
                virtual_size: size,
                description: String::new(),
            });
        }
        let missing = || ImageError::NoSuchImage {
            name: name_or_path.to_owned(),
            dir: self.dir.clone(),
            exist: self.list().unwrap_or_default().into_iter().map(|image| image.name).collect(),
        };
        // A name is one directory: nothing that leaves this one, and not the boot files.
        if name_or_path.is_empty() || name_or_path.starts_with('.') || name_or_path == BOOT {
            return Err(missing());
        }
        let dir = self.dir.join(name_or_path);
        let manifest: ImageManifest = read_manifest(&dir.join(IMAGE_MANIFEST))?.ok_or_else(missing)?;
        let path = dir.join(ROOTFS);
        let size = fs::metadata(&path).at("look at the image", &path)?.len();
        Ok(RootImage {
            name: name_or_path.to_owned(),
            path,
            virtual_size: size,
            description: manifest.description,
        })
    }

    /// All images by name. A directory that is no image is none; one that is broken is an error.
    ///
    /// # Errors
    /// When the directory cannot be read or a manifest does not parse.
    pub fn list(&self) -> Result<Vec<RootImage>, ImageError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at("read the directory", &self.dir)?,
        };
        let mut images = Vec::new();
        for entry in entries {
            let entry = entry.at("read the directory", &self.dir)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            match self.image_at(&name) {
                Some(Ok(image)) => images.push(image),
                Some(Err(e)) => return Err(e),
                None => {}
            }
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    fn image_at(&self, name: &str) -> Option<Result<RootImage, ImageError>> {
        let usable =
            !name.starts_with('.') && name != BOOT && self.dir.join(name).join(IMAGE_MANIFEST).exists();
        usable.then(|| self.image(name))
    }
}

/// A manifest, or `None` where there is none.
pub(crate) fn read_manifest<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, ImageError> {
    let text = match fs::read_to_string(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other.at("read", path)?,
    };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|e| ImageError::Manifest { path: path.to_path_buf(), reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, ImageStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path());
        (dir, store)
    }

    #[test]
    fn a_missing_image_says_which_exist_and_how_to_build_it() {
        let (dir, store) = store();
        let image = dir.path().join("one");
        fs::create_dir(&image).unwrap();
        fs::write(image.join(ROOTFS), [0; 4096]).unwrap();
        fs::write(image.join(IMAGE_MANIFEST), r#"{"description":"d","fingerprint":"f"}"#).unwrap();
        assert_eq!(store.image("one").unwrap().virtual_size, 4096);
        assert_eq!(store.list().unwrap().len(), 1);
        let said = store.image("two").unwrap_err().to_string();
        assert!(said.contains("there are: one") && said.contains("enisle image build two"), "{said}");
        assert!(matches!(store.boot(), Err(ImageError::NoBootFiles { .. })));
    }

    #[test]
    fn names_do_not_leave_the_directory_and_broken_manifests_are_told() {
        let (dir, store) = store();
        for name in ["", "..", ".", "boot", ".hidden"] {
            assert!(matches!(store.image(name), Err(ImageError::NoSuchImage { .. })), "{name}");
        }
        fs::create_dir(dir.path().join("bad")).unwrap();
        fs::write(dir.path().join("bad").join(IMAGE_MANIFEST), "{").unwrap();
        assert!(matches!(store.image("bad"), Err(ImageError::Manifest { .. })));
        assert!(matches!(store.list(), Err(ImageError::Manifest { .. })));
        assert!(store.image("/no/such/file").unwrap_err().to_string().contains("/no/such/file"));
    }
}
