//! Root file systems: recipes, and turning a tree into an ext4 that can grow.

use crate::build::{BuildOptions, Staged, fingerprint};
use crate::error::At;
use crate::process::{run, text};
use crate::store::{IMAGE_MANIFEST, ImageManifest, ROOTFS, read_manifest};
use crate::{DEFAULT, ImageError};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;

/// The image without an init: a shell and small tools.
pub(crate) const MINIMAL: &str = "minimal";

/// What the default image has beyond the distribution's smallest system.
const PACKAGES: &str = "bash,ca-certificates,curl,dbus,git,iproute2,iputils-ping,less,nano,openssh-server,procps,\
                        python3,sudo,systemd-sysv";
/// What a guest adds to the image before it has to grow: room for apt lists and a clone.
const FREE_BYTES: u64 = 256 << 20;
/// The largest file system an image can grow to without a copy, in 4 KiB blocks: 1 TiB.
const MAX_BLOCKS: u64 = 1 << 28;

/// How an image is made.
#[derive(Debug)]
pub(crate) struct Recipe {
    name: &'static str,
    description: &'static str,
    /// Everything that decides about the content.
    script: &'static str,
    populate: fn(&Recipe, &Path) -> Result<(), ImageError>,
}

const RECIPES: [Recipe; 2] = [
    Recipe {
        name: DEFAULT,
        description: "Debian with systemd, sshd, python3, git and curl; user ubuntu with sudo",
        script: include_str!("recipes/default.sh"),
        populate: debian,
    },
    Recipe {
        name: MINIMAL,
        description: "busybox without an init, for tests and for small things",
        script: include_str!("recipes/minimal.sh"),
        populate: busybox,
    },
];

/// The recipe of an image.
pub(crate) fn recipe(name: &str) -> Result<&'static Recipe, ImageError> {
    RECIPES
        .iter()
        .find(|recipe| recipe.name == name)
        .ok_or_else(|| ImageError::NoRecipe { name: name.to_owned() })
}

/// Builds an image where it is missing or old. True when it built.
pub(crate) fn build(
    recipe: &Recipe,
    options: &BuildOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<bool, ImageError> {
    let suite = suite();
    let manifest = ImageManifest {
        description: recipe.description.to_owned(),
        fingerprint: fingerprint(&[recipe.script.as_bytes(), PACKAGES.as_bytes(), suite.as_bytes()]),
    };
    let there: Option<ImageManifest> =
        read_manifest(&options.dir.join(recipe.name).join(IMAGE_MANIFEST)).unwrap_or_default();
    if there.as_ref() == Some(&manifest) && !options.force {
        return Ok(false);
    }
    let staged = Staged::new(&options.dir, recipe.name)?;
    let tree = staged.path().join("tree");
    progress(&format!("making the image `{}`: {} (takes a minute or two)", recipe.name, recipe.description));
    (recipe.populate)(recipe, &tree)?;
    progress("writing the file system");
    make_ext4(&tree, &staged.path().join(ROOTFS))?;
    fs::remove_dir_all(&tree).at("remove", &tree)?;
    staged.publish(IMAGE_MANIFEST, &manifest)?;
    Ok(true)
}

/// Debian's release: the host's own on a Debian host, so that its mirror has it.
fn suite() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        text.lines().find_map(|line| line.strip_prefix(key)).map(|v| v.trim_matches('"').to_owned())
    };
    match (value("ID=").as_deref(), value("VERSION_CODENAME=")) {
        (Some("debian"), Some(codename)) => codename,
        _ => "bookworm".to_owned(),
    }
}

/// Debian by mmdebstrap, from the host's own mirrors where those have Debian.
fn debian(recipe: &Recipe, tree: &Path) -> Result<(), ImageError> {
    let suite = suite();
    let mut arguments: Vec<OsString> =
        ["--quiet", "--mode=root", "--variant=minbase", "--format=directory"].map(OsString::from).to_vec();
    arguments.push(format!("--include={PACKAGES}").into());
    for excluded in ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*"] {
        arguments.push(format!("--dpkgopt=path-exclude={excluded}").into());
    }
    arguments.push("--dpkgopt=path-include=/usr/share/doc/*/copyright".into());
    let script = tree.with_file_name("customize.sh");
    fs::write(&script, recipe.script).at("write", &script)?;
    arguments.push({
        let mut hook = OsString::from("--customize-hook=sh ");
        hook.push(&script);
        hook.push(" \"$1\"");
        hook
    });
    arguments.push(suite.clone().into());
    arguments.push(tree.into());
    arguments.extend(debian_sources(&suite).into_iter().map(OsString::from));
    run("mmdebstrap", "mmdebstrap", &arguments)?;
    fs::remove_file(&script).at("remove", &script)
}

/// The host's own lines for this release; none leaves mmdebstrap its default.
fn debian_sources(suite: &str) -> Vec<String> {
    let format = "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
    let targets = text("apt-get", "apt", &["indextargets", "--format", format, "Created-By: Packages"]);
    let mut lines: Vec<String> = targets
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split('|').collect();
            let [origin, codename, uri, release, component] = fields[..] else { return None };
            let ours = origin == "Debian" && codename.starts_with(suite) && component == "main";
            ours.then(|| format!("deb {uri} {release} {component}"))
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines
}

/// A static busybox and the links to it.
fn busybox(recipe: &Recipe, tree: &Path) -> Result<(), ImageError> {
    fs::create_dir(tree).at("make", tree)?;
    run("sh", "dash", &["-c".as_ref(), recipe.script.as_ref(), "sh".as_ref(), tree.as_os_str()]).map(drop)
}

/// Turns a tree into a sparse ext4 with some room, that grows online to [`MAX_BLOCKS`].
fn make_ext4(tree: &Path, file: &Path) -> Result<(), ImageError> {
    let used = text("du", "coreutils", &["-s".as_ref(), "-B1".as_ref(), tree.as_os_str()])?;
    let used: u64 = used.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default();
    let size = (used + used / 8 + FREE_BYTES).next_multiple_of(64 << 20);
    File::create_new(file).and_then(|f| f.set_len(size)).at("make", file)?;
    let extended = format!("lazy_itable_init=1,lazy_journal_init=1,resize={MAX_BLOCKS}");
    let arguments: [&std::ffi::OsStr; 14] = [
        "-q".as_ref(),
        "-t".as_ref(),
        "ext4".as_ref(),
        "-b".as_ref(),
        "4096".as_ref(),
        "-m".as_ref(),
        "0".as_ref(),
        "-J".as_ref(),
        "size=16".as_ref(),
        "-E".as_ref(),
        extended.as_ref(),
        "-d".as_ref(),
        tree.as_os_str(),
        file.as_os_str(),
    ];
    run("mke2fs", "e2fsprogs", &arguments).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_becomes_a_sound_file_system_with_room() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("hello"), "content").unwrap();
        let file = dir.path().join("fs");
        make_ext4(&tree, &file).unwrap();
        run("e2fsck", "e2fsprogs", &["-fn".as_ref(), file.as_os_str()]).unwrap();
        let cat =
            text("debugfs", "e2fsprogs", &["-R".as_ref(), "cat /hello".as_ref(), file.as_os_str()]).unwrap();
        assert_eq!(cat, "content");
        assert!(fs::metadata(&file).unwrap().len() >= FREE_BYTES);
    }

    #[test]
    fn every_recipe_has_a_name_of_its_own() {
        assert_eq!(RECIPES.map(|recipe| recipe.name), crate::RECIPES);
    }
}
