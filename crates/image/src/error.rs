//! What can go wrong with images, each with the object and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A look-up found nothing.
    #[error("there is no image `{name}` in {}{}; build it with `enisle image build {name}`", dir.display(), list(exist))]
    NoSuchImage {
        /// The name asked for.
        name: String,
        /// Where images are kept.
        dir: PathBuf,
        /// Names of the images that are there.
        exist: Vec<String>,
    },
    /// No kernel and initramfs have been built.
    #[error("there is no kernel in {}; `enisle image build` makes one", dir.display())]
    NoBootFiles {
        /// Where images are kept.
        dir: PathBuf,
    },
    /// The image builder has no recipe of this name.
    #[error("no recipe for an image `{name}`; there are: {}", crate::RECIPES.join(", "))]
    NoRecipe {
        /// The name asked for.
        name: String,
    },
    /// The static guest agent is missing.
    #[error(
        "the guest agent is not at {}; build it (./quickstart does) or give its path in ENISLE_AGENT",
        path.display()
    )]
    NoAgent {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The agent would not run in a guest.
    #[error("{} is no static x86-64 program; build it with RUSTFLAGS='-C target-feature=+crt-static'", path.display())]
    AgentNotStatic {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else builds in the same directory.
    #[error("another build is at work in {}; wait for it to end", dir.display())]
    Busy {
        /// Where images are kept.
        dir: PathBuf,
    },
    /// Only root can make files with owners.
    #[error("building images needs root: run it with sudo")]
    NotRoot,
    /// A program that a build needs is not installed.
    #[error("`{program}` is not installed; install the package {package}")]
    NoProgram {
        /// The program.
        program: String,
        /// The package that has it on Debian and Ubuntu.
        package: &'static str,
    },
    /// A program that a build needs failed.
    #[error("`{program}` failed ({status}): {stderr}")]
    Program {
        /// The program.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last lines it complained with.
        stderr: String,
    },
    /// The distribution has no kernel package that this crate knows.
    #[error(
        "no kernel package found (looked for {looked_for}); run `apt-get update`, or enable the main section"
    )]
    NoKernelPackage {
        /// The packages.
        looked_for: String,
    },
    /// The kernel lacks a driver that a guest needs.
    #[error("the kernel {version} has no module `{module}`")]
    NoModule {
        /// The kernel's version.
        version: String,
        /// The module.
        module: String,
    },
    /// A manifest is not what this version writes.
    #[error("{} does not parse ({reason}); build the image again with --force", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A size is not possible.
    #[error(
        "a disk of {asked} bytes is smaller than the image `{image}` ({needed} bytes); ask for a larger one"
    )]
    TooSmall {
        /// The size asked for.
        asked: u64,
        /// The image.
        image: String,
        /// Its size.
        needed: u64,
    },
    /// A file or directory.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" (there are: {})", names.join(", ")) }
}

/// Names the object of an IO error.
pub(crate) trait At<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|e| ImageError::Io { what, path: path.to_path_buf(), source: e.into() })
    }
}
