//! `cargo xtask dist`: the Debian package, from the same tree and build.
//!
//! ```text
//! build ─▶ target/dist/root (files) ─▶ target/dist/control (DEBIAN) ─▶ dpkg-deb ─▶ enisle_VERSION_ARCH.deb
//! ```
//!
//! Owns: what is in the package and where. Equal inputs give an equal package: `SOURCE_DATE_EPOCH`, or
//! the last commit's time, is the time of everything in it. Refuses: the network, and what the
//! package's scripts do (`packaging/debian`).

use crate::licences;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the static agent is built for.
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";
const ARCH: &str = "amd64";

#[derive(Debug, Args)]
pub(crate) struct DistArgs {
    /// Cargo's profile.
    #[arg(long, default_value = "dist")]
    profile: String,
    /// Package what is built.
    #[arg(long)]
    no_build: bool,
}

/// Builds the package; its path is printed.
pub(crate) fn run(root: &Path, args: &DistArgs) -> Result<Vec<String>> {
    if !args.no_build {
        build(root, &args.profile)?;
    }
    let bin = root.join("target").join(&args.profile);
    let dist = root.join("target/dist");
    let (files, control) = (dist.join("root"), dist.join("root/DEBIAN"));
    match fs::remove_dir_all(&files) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("target/dist/root");
        }
        _ => fs::create_dir_all(&files)?,
    }
    let enisle = bin.join("enisle");
    programs(root, &bin, &files)?;
    documents(root, &files)?;
    made_by(&enisle, &files)?;
    licences::write(root, &files.join("usr/share/doc/enisle"))?;
    fs::create_dir_all(&control)?;
    describe(root, &files, &control)?;
    directories(&files)?;
    let version = env!("CARGO_PKG_VERSION");
    let package = dist.join(format!("enisle_{version}_{ARCH}.deb"));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "-Zxz", "--build"]).arg(&files).arg(&package);
    check(command.env("SOURCE_DATE_EPOCH", epoch(root)?))?;
    println!("{}", package.display());
    Ok(Vec::new())
}

fn build(root: &Path, profile: &str) -> Result<()> {
    let cargo = || {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(root).args(["build", "--locked", "--profile", profile]);
        command
    };
    check(cargo().args(["-p", "enisle"]))?;
    let mut agent = cargo();
    agent.args(["-p", "enisle-agent", "--target", AGENT_TARGET]);
    check(agent.env("RUSTFLAGS", "-C target-feature=+crt-static"))
}

fn programs(root: &Path, bin: &Path, files: &Path) -> Result<()> {
    let agent = bin.strip_prefix(root.join("target"))?;
    let agent = root.join("target").join(AGENT_TARGET).join(agent).join("enisle-agent");
    let device = root.join("target/tools/bin/vhost-device-vsock");
    ensure!(device.exists(), "{} is missing: ./quickstart and ./test build it", device.display());
    for (from, to) in [
        (&bin.join("enisle"), "usr/bin/enisle"),
        (&agent, "usr/lib/enisle/enisle-agent"),
        (&device, "usr/lib/enisle/vhost-device-vsock"),
    ] {
        put(&files.join(to), &fs::read(from).with_context(|| from.display().to_string())?, 0o755)?;
        check(Command::new("strip").args(["--strip-unneeded", "-p"]).arg(files.join(to)))?;
    }
    Ok(())
}

fn documents(root: &Path, files: &Path) -> Result<()> {
    let plain = [
        ("packaging/enisle.service", "usr/lib/systemd/system/enisle.service"),
        ("packaging/enisle.yaml", "etc/enisle/enisle.yaml"),
        ("docs/enisle.schema.json", "usr/share/enisle/enisle.schema.json"),
    ];
    for (from, to) in plain {
        put(&files.join(to), &fs::read(root.join(from)).context(from)?, 0o644)?;
    }
    let doc = files.join("usr/share/doc/enisle");
    for example in sorted(&root.join("examples"))? {
        if example.extension().is_some_and(|ext| ext == "yaml") {
            put(&doc.join("examples").join(name(&example)?), &fs::read(&example)?, 0o644)?;
        }
    }
    compressed(&doc.join("changelog"), &fs::read(root.join("CHANGELOG.md"))?)
}

/// What the program itself can write: pages and completions.
fn made_by(enisle: &Path, files: &Path) -> Result<()> {
    let pages = files.join("usr/share/man/man1");
    fs::create_dir_all(&pages)?;
    check(Command::new(enisle).arg("man").arg(&pages))?;
    for page in sorted(&pages)? {
        fs::set_permissions(&page, fs::Permissions::from_mode(0o644))?;
        check(Command::new("gzip").args(["-9n"]).arg(page))?;
    }
    for (shell, to) in [
        ("bash", "usr/share/bash-completion/completions/enisle"),
        ("zsh", "usr/share/zsh/vendor-completions/_enisle"),
        ("fish", "usr/share/fish/vendor_completions.d/enisle.fish"),
    ] {
        let output = Command::new(enisle).args(["completions", shell]).output()?;
        ensure!(output.status.success(), "no completions for {shell}");
        put(&files.join(to), &output.stdout, 0o644)?;
    }
    Ok(())
}

/// `DEBIAN/`.
fn describe(root: &Path, files: &Path, control: &Path) -> Result<()> {
    let templates = root.join("packaging/debian");
    let all = walk(files)?;
    let all: Vec<&PathBuf> = all.iter().filter(|path| !path.starts_with(control)).collect();
    let bytes: u64 = all.iter().map(|path| fs::metadata(path).map_or(0, |found| found.len())).sum();
    let text = fs::read_to_string(templates.join("control"))?
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
        .replace("@ARCH@", ARCH)
        .replace("@SIZE@", &bytes.div_ceil(1024).to_string())
        .replace("@LIBC@", &format!("libc6 (>= {})", needed_libc(&all)?));
    put(&control.join("control"), text.as_bytes(), 0o644)?;
    put(&control.join("conffiles"), b"/etc/enisle/enisle.yaml\n", 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        put(&control.join(script), &fs::read(templates.join(script))?, 0o755)?;
    }
    let paths: Vec<&Path> = all.iter().map(|path| path.strip_prefix(files)).collect::<Result<_, _>>()?;
    let sums = Command::new("md5sum").current_dir(files).args(paths).output()?;
    ensure!(sums.status.success(), "md5sum: {}", String::from_utf8_lossy(&sums.stderr));
    put(&control.join("md5sums"), &sums.stdout, 0o644)
}

/// The newest version of the C library whose symbols the programs name (`GLIBC_2.N`).
fn needed_libc(files: &[&PathBuf]) -> Result<String> {
    let mut newest = 0;
    for path in files
        .iter()
        .filter(|path| path.to_string_lossy().contains("/bin/") || path.ends_with("vhost-device-vsock"))
    {
        let bytes = fs::read(path)?;
        let mark = b"GLIBC_2.";
        for at in bytes.windows(mark.len()).enumerate().filter(|(_, found)| found == mark).map(|(at, _)| at) {
            let digits = bytes[at + mark.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            newest = newest.max(digits.take(4).fold(0, |n: u32, byte| n * 10 + u32::from(byte - b'0')));
        }
    }
    ensure!(newest > 0, "the programs name no version of the C library");
    Ok(format!("2.{newest}"))
}

fn epoch(root: &Path) -> Result<String> {
    if let Ok(given) = std::env::var("SOURCE_DATE_EPOCH") {
        return Ok(given);
    }
    let output = Command::new("git").current_dir(root).args(["log", "-1", "--format=%ct"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(!text.is_empty(), "no SOURCE_DATE_EPOCH, and git does not know the last commit's time");
    Ok(text)
}

pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

pub(crate) fn compressed(path: &Path, bytes: &[u8]) -> Result<()> {
    put(path, bytes, 0o644)?;
    check(Command::new("gzip").arg("-9n").arg(path))
}

pub(crate) fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let dir = path.parent().context("a file has a directory")?;
    fs::create_dir_all(dir)?;
    fs::write(path, bytes).with_context(|| path.display().to_string())?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Gives a directory and all below it the mode that directories of a package have, whatever the umask.
fn directories(dir: &Path) -> Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for path in sorted(dir)? {
        if path.is_dir() {
            directories(&path)?;
        }
    }
    Ok(())
}

fn name(path: &Path) -> Result<&std::ffi::OsStr> {
    path.file_name().with_context(|| path.display().to_string())
}

pub(crate) fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let listing = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut paths: Vec<PathBuf> = listing.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

/// Every file below a directory.
fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in sorted(dir)? {
        if path.is_dir() {
            files.extend(walk(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}
