//! The distribution's cloud kernel: which package it is, downloaded and unpacked.
//!
//! Owns: the names of kernel packages. Refuses: installing them (the host's own kernel is not
//! touched) and knowing where packages come from.

use crate::ImageError;
use crate::error::At;
use crate::process::{run, text};
use std::fs;
use std::path::{Path, PathBuf};

/// Meta packages that depend on the kernel for virtual machines, Debian's and Ubuntu's.
const META: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-virtual"];
const IMAGE_PREFIXES: [&str; 2] = ["linux-image-", "linux-image-unsigned-"];

/// A kernel package as the package lists know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelPackage {
    /// The kernel's version, as `uname -r` says it.
    pub(crate) version: String,
    /// Packages to unpack over each other: the image, and modules where they are apart.
    packages: Vec<String>,
    /// Names and versions of the packages; changes when an update is out.
    pub(crate) revision: String,
}

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Its version.
    pub(crate) version: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// The directory with its modules.
    pub(crate) modules: PathBuf,
    /// Where `depmod -b` looks: the parent of `lib/modules`.
    pub(crate) root: PathBuf,
}

impl KernelPackage {
    /// Asks the package lists.
    ///
    /// # Errors
    /// When no known package is in them.
    pub(crate) fn find() -> Result<Self, ImageError> {
        for meta in META {
            let Ok(depends) = text("apt-cache", "apt", &["depends", "--important", meta]) else { continue };
            if let Some(version) = parse_depends(&depends) {
                return Self::of_version(version);
            }
        }
        Err(ImageError::NoKernelPackage { looked_for: META.join(", ") })
    }

    fn of_version(version: String) -> Result<Self, ImageError> {
        let mut packages = Vec::new();
        let mut revision = String::new();
        // Ubuntu keeps modules in packages of their own; Debian has all in one.
        for name in ["linux-image-", "linux-modules-", "linux-modules-extra-"] {
            let package = format!("{name}{version}");
            let policy = text("apt-cache", "apt", &["policy", &package])?;
            if let Some(candidate) = parse_candidate(&policy) {
                revision.push_str(&format!("{package}={candidate} "));
                packages.push(package);
            }
        }
        if packages.is_empty() {
            return Err(ImageError::NoKernelPackage { looked_for: format!("linux-image-{version}") });
        }
        Ok(Self { version, packages, revision })
    }

    /// Downloads the packages and unpacks them below `dir`, which must exist.
    ///
    /// # Errors
    /// When a package cannot be had or does not hold a kernel.
    pub(crate) fn unpack(&self, dir: &Path) -> Result<Kernel, ImageError> {
        let root = dir.join("kernel");
        fs::create_dir(&root).at("make", &root)?;
        for package in &self.packages {
            self.unpack_one(package, dir, &root)?;
        }
        let image = root.join("boot").join(format!("vmlinuz-{}", self.version));
        fs::metadata(&image).at("find the kernel", &image)?;
        // Newer packages follow the merged /usr; depmod wants one place.
        let merged = root.join("usr/lib/modules");
        if merged.exists() && !root.join("lib/modules").exists() {
            let lib = root.join("lib");
            fs::create_dir_all(&lib).at("make", &lib)?;
            fs::rename(&merged, lib.join("modules")).at("move", &merged)?;
        }
        let modules = root.join("lib/modules").join(&self.version);
        fs::metadata(&modules).at("find the kernel's modules", &modules)?;
        Ok(Kernel { version: self.version.clone(), image, modules, root })
    }

    fn unpack_one(&self, package: &str, dir: &Path, root: &Path) -> Result<(), ImageError> {
        let download = dir.join(package);
        fs::create_dir(&download).at("make", &download)?;
        // apt-get download writes into the working directory, so it gets one of its own.
        let script = r#"cd "$1" && exec apt-get -q download "$2""#;
        run(
            "sh",
            "dash",
            &["-c".as_ref(), script.as_ref(), "sh".as_ref(), download.as_os_str(), package.as_ref()],
        )?;
        let entries = fs::read_dir(&download).at("read the directory", &download)?;
        for deb in entries.flatten().map(|entry| entry.path()) {
            run("dpkg-deb", "dpkg", &["-x".as_ref(), deb.as_os_str(), root.as_os_str()])?;
        }
        Ok(())
    }
}

/// The version in `  Depends: linux-image-6.1.0-56-cloud-amd64`.
fn parse_depends(depends: &str) -> Option<String> {
    depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).find_map(|package| {
        let version = IMAGE_PREFIXES.iter().rev().find_map(|prefix| package.strip_prefix(prefix))?;
        version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
    })
}

/// The version that would be installed, from `apt-cache policy`.
fn parse_candidate(policy: &str) -> Option<&str> {
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (candidate != "(none)").then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_both_distributions_words() {
        let debian = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(parse_depends(debian).as_deref(), Some("6.1.0-56-cloud-amd64"));
        let ubuntu = "linux-image-virtual\n  Depends: linux-image-6.8.0-90-generic\n";
        assert_eq!(parse_depends(ubuntu).as_deref(), Some("6.8.0-90-generic"));
        assert_eq!(parse_depends("x\n  Depends: linux-base\n"), None);
    }

    #[test]
    fn a_package_without_candidate_is_none() {
        assert_eq!(parse_candidate("p:\n  Installed: (none)\n  Candidate: 6.1-2\n"), Some("6.1-2"));
        assert_eq!(parse_candidate("p:\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }
}
