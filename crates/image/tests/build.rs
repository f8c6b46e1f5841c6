//! A real build of the small image and the boot files, from the distribution's packages.
//! Needs root and the static agent that `./test` builds.

use enisle_image::{BuildOptions, Built, ImageStore, build, create_overlay};
use std::path::{Path, PathBuf};

fn agent() -> PathBuf {
    // target/release/deps/build-0123 → target/
    let own = std::env::current_exe().unwrap();
    let target = own.ancestors().nth(3).unwrap();
    let path = target.join("x86_64-unknown-linux-gnu/release/enisle-agent");
    assert!(path.exists(), "{} is missing: run ./test, or build it first", path.display());
    path
}

#[test]
fn the_small_image_is_built_once_and_again_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut options =
        BuildOptions { dir: dir.path().join("images"), name: "minimal".into(), agent: agent(), force: false };
    let mut steps = Vec::new();
    let built = build(&options, &mut |step| steps.push(step.to_owned())).unwrap();
    assert_eq!(built, Built { boot: true, image: true });
    assert!(steps.len() >= 3, "{steps:?}");
    assert_eq!(build(&options, &mut |_| ()).unwrap(), Built { boot: false, image: false });
    options.force = true;
    assert_eq!(build(&options, &mut |_| ()).unwrap(), Built { boot: true, image: true });

    let store = ImageStore::open(&options.dir);
    let boot = store.boot().unwrap();
    assert!(boot.kernel.exists() && boot.initramfs.exists() && !boot.version.is_empty());
    let image = store.image("minimal").unwrap();
    let disk = dir.path().join("disk.qcow2");
    create_overlay(&image, &disk, 4 << 30).unwrap();
    assert!(disk.exists());
    assert_eq!(store.list().unwrap(), [image]);
    let left: Vec<_> = std::fs::read_dir(&options.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !Path::new(name).to_string_lossy().starts_with(".staging")), "{left:?}");
}
