//! `vm cp`. The guest's side is the system's `tar`, which knows nothing of our archive code.

use crate::screen::Screen;
use crate::world::{World, text};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Everything about a tree that a copy must keep: kind and content, mode, time of change.
fn picture(root: &Path) -> BTreeMap<String, (String, u32, i64)> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        if meta.is_symlink() {
            found.insert(name, (format!("link to {}", fs::read_link(&path).unwrap().display()), 0, 0));
            continue;
        }
        let what = if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "directory".to_owned()
        } else {
            format!("{:?}", fs::read(&path).unwrap())
        };
        found.insert(name, (what, meta.mode() & 0o7777, meta.mtime()));
    }
    found
}

/// A tree with what copies get wrong.
fn plant(root: &Path) {
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    for n in 0..200 {
        fs::write(root.join(format!("deep/file-{n}")), vec![n as u8; n * 7]).unwrap();
    }
    let script = root.join("deep/er/run me.sh");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(root.join("deep/er/zürich\n:x"), [0, 255, 10]).unwrap();
    fs::write(root.join("large"), vec![0x5a; 3 << 20]).unwrap();
    fs::write(root.join(format!("{}{}", "long".repeat(40), "name")), "x").unwrap();
    symlink("deep/file-1", root.join("inside")).unwrap();
    symlink("/no/such/place", root.join("outside")).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for path in ["deep/file-7", "large"] {
        fs::File::options().write(true).open(root.join(path)).unwrap().set_modified(old).unwrap();
    }
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::File::open(root.join("empty")).unwrap().set_modified(old).unwrap();
}

fn copy(world: &World, from: &str, to: &str) {
    let output = world.run(&["vm", "cp", from, to]);
    assert_eq!(output.status.code(), Some(0), "{from} {to}: {}", text(&output.stderr));
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "silent when no terminal watches");
}

#[test]
fn a_tree_there_and_back_is_the_same() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tree");
    plant(&source);
    copy(&world, source.to_str().unwrap(), "agents-1:/there");
    assert_eq!(picture(&world.root().join("there")), picture(&source));
    let back = dir.path().join("back");
    copy(&world, "agents-1:/there", back.to_str().unwrap());
    assert_eq!(picture(&back), picture(&source));
    copy(&world, "agents-1:there", "agents-1:third");
    assert_eq!(picture(&world.root().join("third")), picture(&source));
    world.daemon.assert_obeyed();
}

#[test]
fn an_existing_directory_takes_the_copy_inside() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("one");
    fs::write(&file, "1").unwrap();
    fs::create_dir(world.root().join("d")).unwrap();
    copy(&world, file.to_str().unwrap(), "agents-1:/d");
    copy(&world, file.to_str().unwrap(), "agents-1:/d/two");
    assert_eq!(fs::read(world.root().join("d/one")).unwrap(), fs::read(world.root().join("d/two")).unwrap());
    let dot = world.command(&["vm", "cp", ".", "agents-1:/d"]).current_dir(dir.path()).status().unwrap();
    assert!(dot.success());
    assert!(
        world.root().join("d").join(dir.path().file_name().unwrap()).join("one").exists(),
        "`.` has a name"
    );
    fs::remove_dir_all(world.root().join("d").join(dir.path().file_name().unwrap())).unwrap();
    let local = dir.path().join("local");
    fs::create_dir(&local).unwrap();
    copy(&world, "agents-1:d", local.to_str().unwrap());
    assert_eq!(fs::read_to_string(local.join("d/two")).unwrap(), "1");
    copy(&world, "agents-1:d/one", local.join("three").to_str().unwrap());
    assert_eq!(fs::read_to_string(local.join("three")).unwrap(), "1");
}

#[test]
fn a_dash_is_one_file() {
    let world = World::new();
    let sent: Vec<u8> = (0..2_000_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let output = world.run_with(&["vm", "cp", "-", "agents-1:/blob"], &sent);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = world.run(&["vm", "cp", "agents-1:blob", "-"]);
    assert!(output.stdout == sent, "{} bytes came back", output.stdout.len());
    fs::create_dir(world.root().join("d")).unwrap();
    let output = world.run(&["vm", "cp", "agents-1:d", "-"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("hint: - stands for one regular file"), "{}", text(&output.stderr));
}

#[test]
fn a_terminal_sees_progress_and_a_pipe_does_not() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
    let mut screen = Screen::start(&world, &["vm", "cp", file.to_str().unwrap(), "agents-1:/x"]);
    assert_eq!(screen.program.code(), 0);
    screen.expect("to agents-1:/x [");
    screen.expect("/8.00 MiB");
    copy(&world, file.to_str().unwrap(), "agents-1:/y");
}

#[test]
fn what_cannot_be_copied_is_told_and_left_out() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "x").unwrap();
    drop(std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap());
    let output = world.run(&["vm", "cp", tree.to_str().unwrap(), "agents-1:/d"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).starts_with("warning: ") && text(&output.stderr).contains("socket"));
    assert_eq!(fs::read_dir(world.root().join("d")).unwrap().count(), 1);
}

#[test]
fn failures_say_where_and_why() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "x").unwrap();
    let (file, missing) = (file.to_str().unwrap(), dir.path().join("missing"));
    for (from, to, code, said) in [
        (missing.to_str().unwrap(), "agents-1:/x", 4, "missing"),
        ("agents-1:/missing", ".", 4, "No such file"),
        (file, "agents-1:/no/such/dir/", 4, "no directory"),
        (file, "nobody:/x", 4, "no VM `nobody`"),
        (file, "agents-1:/full", 1, "hint: the disk of agents-1 is full"),
        (file, "abrupt:/x", 3, "broke"),
        ("abrupt:/x", missing.to_str().unwrap(), 3, "broke"),
    ] {
        let output = world.run(&["vm", "cp", from, to]);
        assert_eq!(output.status.code(), Some(code), "{from} {to}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(said), "{from} {to}: {}", text(&output.stderr));
    }
    let output = world.run(&["vm", "cp", "--json", file, "agents-1:/x"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["bytes"].as_u64().unwrap() >= 512, "{report}");
}

#[test]
fn a_hostile_guest_writes_nowhere_but_at_the_destination() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let (victim, here) = (dir.path().join("victim"), dir.path().join("here"));
    fs::create_dir(&victim).unwrap();
    fs::create_dir(&here).unwrap();
    // A link out of the destination, then a file through it; and names that climb out.
    let script =
        "mkdir t && ln -s \"$1\" t/x && tar -cf link.hostile t && rm t/x && mkdir t/x && echo owned > t/x/f
        tar -rf link.hostile t/x/f
        echo owned > f && tar -P --transform 's,^f$,../victim/f,' -cf climb.hostile f
        tar -P --transform \"s,^f$,$1/f,\" -cf absolute.hostile f";
    let made = Command::new("sh")
        .args(["-ec", script, "sh"])
        .arg(&victim)
        .current_dir(world.root())
        .status()
        .unwrap();
    assert!(made.success());
    // The control: this way of sending an archive works for one that is honest.
    let made =
        Command::new("tar").args(["-cf", "honest.hostile", "f"]).current_dir(world.root()).status().unwrap();
    assert!(made.success());
    copy(&world, "agents-1:honest.hostile", here.to_str().unwrap());
    assert_eq!(fs::read_to_string(here.join("f")).unwrap(), "owned\n");
    for name in ["link", "climb", "absolute"] {
        let archive = fs::read(world.root().join(format!("{name}.hostile"))).unwrap();
        assert!(archive.len() >= 1024, "the control: {name} is an archive");
        let output = world.run(&["vm", "cp", &format!("agents-1:{name}.hostile"), here.to_str().unwrap()]);
        assert_ne!(output.status.code(), Some(0), "{name}");
        assert!(!output.stderr.is_empty(), "{name}");
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "{name}");
    }
}
