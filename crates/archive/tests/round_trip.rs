//! What is packed arrives: contents, modes, times, links; with GNU tar on the other side as well.

use enisle_archive::{ArchiveError, Owner, PackOptions, Summary, UnpackOptions, pack, unpack};
use rustix::fs::{Mode, OFlags, Timespec, Timestamps, utimensat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with everything that has to arrive, some of it awkward.
fn tree(root: &Path) {
    fs::create_dir_all(root.join("sub/empty")).unwrap();
    fs::write(root.join("sub/file"), b"contents").unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("large"), vec![0x5a; 300_001]).unwrap();
    fs::write(root.join("x".repeat(200)), b"long name").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"line\nbreak \xff\xfe")), b"odd name").unwrap();
    fs::create_dir_all(root.join("long/".repeat(40))).unwrap();
    fs::write(root.join("long/".repeat(40)).join("deep"), b"deep").unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    symlink("y".repeat(300), root.join("long link")).unwrap();
    fs::hard_link(root.join("sub/file"), root.join("twin")).unwrap();
    fs::set_permissions(root.join("sub/file"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(root.join("sub/empty"), fs::Permissions::from_mode(0o555)).unwrap();
    for (name, seconds, nanoseconds) in [
        ("sub/file", 1_600_000_000, 123_456_789),
        ("empty", -5, 250_000_000),
        ("absolute", 7, 1),
        ("sub/empty", 99, 5),
        ("sub", 42, 17),
    ] {
        set_mtime(&root.join(name), seconds, nanoseconds);
    }
}

/// Path, mode, time of change in seconds and nanoseconds, contents or target.
type Described = (PathBuf, u32, (i64, i64), Vec<u8>);

/// Everything about a tree that is promised to arrive.
fn describe(root: &Path) -> Vec<Described> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let stat = path.symlink_metadata().unwrap();
        let contents = if stat.is_symlink() {
            fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else if stat.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        found.push((
            path.strip_prefix(root).unwrap().to_owned(),
            stat.mode(),
            (stat.mtime(), stat.mtime_nsec()),
            contents,
        ));
    }
    found.sort();
    found
}

fn packed(source: &Path) -> (Vec<u8>, Summary) {
    let mut archive = Vec::new();
    let summary = pack(source, None, &mut archive, PackOptions::default()).unwrap();
    (archive, summary)
}

#[test]
fn a_tree_arrives_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    tree(&source);
    let (archive, packed) = packed(&source);
    let existing = directory.path().join("existing");
    fs::create_dir(&existing).unwrap();
    let mut told = 0;
    let mut count = |bytes| told += bytes;
    let options = UnpackOptions { progress: Some(&mut count), ..UnpackOptions::default() };
    let unpacked = unpack(archive.as_slice(), &existing, options).unwrap();
    assert_eq!(packed, unpacked);
    assert_eq!((unpacked.files, unpacked.symlinks, unpacked.warning_count), (7, 2, 0));
    assert_eq!(told, unpacked.bytes);
    assert_eq!(describe(&existing.join("source")), describe(&source), "inside an existing directory");

    unpack(archive.as_slice(), &directory.path().join("renamed"), UnpackOptions::default()).unwrap();
    assert_eq!(describe(&directory.path().join("renamed")), describe(&source), "under a new name");

    // Again onto itself: files are replaced, directories kept.
    unpack(archive.as_slice(), &existing, UnpackOptions::default()).unwrap();
    assert_eq!(describe(&existing.join("source")), describe(&source));
}

#[test]
fn gnu_tar_understands_us_and_we_it() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    tree(&source);
    let ours = directory.path().join("ours.tar");
    fs::write(&ours, packed(&source).0).unwrap();
    let to = directory.path().join("by-tar");
    fs::create_dir(&to).unwrap();
    let done = Command::new("tar").arg("-xpf").arg(&ours).arg("-C").arg(&to).status().unwrap();
    assert!(done.success());
    assert_eq!(describe(&to.join("source")), describe(&source));

    for format in ["gnu", "posix"] {
        let theirs = Command::new("tar")
            .args([&format!("--format={format}"), "--hard-dereference", "-C"])
            .arg(directory.path())
            .args(["-cf", "-", "source"])
            .output()
            .unwrap();
        assert!(theirs.status.success());
        let to = directory.path().join(format);
        unpack(theirs.stdout.as_slice(), &to, UnpackOptions::default()).unwrap();
        let without_fraction = |tree: Vec<Described>| -> Vec<_> {
            tree.into_iter()
                .map(|(path, mode, (seconds, _), contents)| (path, mode, seconds.max(0), contents))
                .collect()
        };
        assert_eq!(without_fraction(describe(&to)), without_fraction(describe(&source)), "{format}");
    }
}

#[test]
fn the_named_path_is_followed_and_nothing_below_it() {
    let directory = tempfile::tempdir().unwrap();
    let real = directory.path().join("real");
    fs::create_dir(&real).unwrap();
    fs::write(real.join("file"), "1").unwrap();
    symlink("/etc", real.join("etc")).unwrap();
    let named = directory.path().join("named");
    symlink(&real, &named).unwrap();
    let (archive, summary) = packed(&named);
    assert_eq!((summary.files, summary.symlinks, summary.directories), (1, 1, 1));
    let to = directory.path().join("to");
    unpack(archive.as_slice(), &to, UnpackOptions::default()).unwrap();
    assert_eq!(fs::read_link(to.join("etc")).unwrap(), Path::new("/etc"));
    assert!(String::from_utf8_lossy(&archive).contains("named/"), "the root is called as it was named");
}

#[test]
fn what_is_no_file_is_left_out_and_told() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, source.join("fifo"), Mode::RWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let (archive, summary) = packed(&source);
    assert_eq!((summary.warning_count, summary.directories, summary.files), (2, 1, 0));
    let unpacked =
        unpack(archive.as_slice(), &directory.path().join("to"), UnpackOptions::default()).unwrap();
    assert_eq!(unpacked.directories, 1);
    let refused = pack(&source.join("none"), None, Vec::new(), PackOptions::default()).unwrap_err();
    assert_eq!(refused.io_error().unwrap().kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_single_file_to_a_name_or_into_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::write(&source, "text").unwrap();
    let archive = packed(&source).0;
    let to = |name: &str| unpack(archive.as_slice(), &directory.path().join(name), UnpackOptions::default());
    to("name").unwrap();
    assert_eq!(fs::read(directory.path().join("name")).unwrap(), b"text");
    fs::create_dir(directory.path().join("dir")).unwrap();
    to("dir").unwrap();
    assert_eq!(fs::read(directory.path().join("dir/source")).unwrap(), b"text");
    for bad in ["missing/name", "slash/"] {
        assert_eq!(to(bad).unwrap_err().io_error().unwrap().kind(), std::io::ErrorKind::NotFound, "{bad}");
    }
    let mut renamed = Vec::new();
    pack(&source, Some(OsStr::new("other")), &mut renamed, PackOptions::default()).unwrap();
    unpack(renamed.as_slice(), &directory.path().join("dir"), UnpackOptions::default()).unwrap();
    assert_eq!(fs::read(directory.path().join("dir/other")).unwrap(), b"text");
}

#[test]
fn the_destinations_owner_owns_the_result() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "").unwrap();
    symlink("file", source.join("link")).unwrap();
    let home = directory.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(1234), Some(5678)).expect("this test needs root");
    let options = UnpackOptions { owner: Owner::Destination, ..UnpackOptions::default() };
    unpack(packed(&source).0.as_slice(), &home, options).unwrap();
    for name in ["source", "source/file", "source/link"] {
        let stat = home.join(name).symlink_metadata().unwrap();
        assert_eq!((stat.uid(), stat.gid()), (1234, 5678), "{name}");
    }
}

/// A tmpfs that is mounted nowhere: only this descriptor reaches it.
#[test]
fn a_full_disk_is_told_as_such_and_leaves_no_half_file() {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).expect("this test needs root");
    fsconfig_set_string(&context, "size", "256k").unwrap();
    fsconfig_create(&context).unwrap();
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let full = rustix::fs::openat(&mounted, ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let destination = PathBuf::from(format!("/proc/self/fd/{}", full.as_raw_fd()));
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a"), vec![1; 100_000]).unwrap();
    fs::write(source.join("b"), vec![2; 200_000]).unwrap();
    let refused = unpack(packed(&source).0.as_slice(), &destination, UnpackOptions::default()).unwrap_err();
    assert!(
        matches!(&refused, ArchiveError::NoSpace { path, .. } if path == Path::new("source/b")),
        "{refused:?}"
    );
    let left: Vec<_> =
        fs::read_dir(destination.join("source")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["a"], "what had arrived stays, what had not is gone");
}

/// Everything else of the machine would come with `/`. Every Linux has /dev/pts mounted in /dev.
#[test]
fn other_file_systems_are_packed_empty_when_asked_for() {
    let names_of = |one_file_system| {
        let mut archive = Vec::new();
        pack(Path::new("/dev"), None, &mut archive, PackOptions { one_file_system, progress: None }).unwrap()
    };
    let mounted =
        |summary: &Summary| summary.warnings.iter().any(|warning| warning.path == Path::new("dev/pts"));
    assert!(mounted(&names_of(true)));
    assert!(!mounted(&names_of(false)));
}

#[test]
fn a_file_of_proc_arrives_although_it_says_it_is_empty() {
    let source = Path::new("/proc/version");
    assert_eq!(source.metadata().unwrap().len(), 0);
    let mut archive = Vec::new();
    let summary = pack(source, None, &mut archive, PackOptions::default()).unwrap();
    let destination = tempfile::tempdir().unwrap();
    unpack(archive.as_slice(), &destination.path().join("copy"), UnpackOptions::default()).unwrap();
    let copied = fs::read(destination.path().join("copy")).unwrap();
    assert_eq!(copied, fs::read(source).unwrap());
    assert_eq!(summary.bytes, copied.len() as u64);
}
