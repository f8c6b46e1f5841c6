//! Archives made to get out of their destination, and streams that are none.
//!
//! Each attack is shown to fail and to leave the outside untouched; the same destination takes an
//! honest archive in the same test, so that a refusal is not just a broken destination.

use enisle_archive::{ArchiveError, MAX_DEPTH, NewFile, Owner, UnpackOptions, pack, unpack};
use proptest::prelude::*;
use rustix::fs::{FileType, Mode};
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use tar::{EntryType, Header};

/// A destination beside something that must not change.
struct World {
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("destination")).unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/secret"), "untouched").unwrap();
        Self { directory }
    }

    fn destination(&self) -> PathBuf {
        self.directory.path().join("destination")
    }

    fn outside(&self) -> PathBuf {
        self.directory.path().join("outside")
    }

    fn unpack(&self, archive: &[u8]) -> Result<(), ArchiveError> {
        unpack(archive, &self.destination(), UnpackOptions::default()).map(drop)
    }

    /// The outside is as it was, and the destination still takes an honest archive.
    fn check(&self) {
        assert_eq!(fs::read_to_string(self.outside().join("secret")).unwrap(), "untouched");
        assert_eq!(fs::read_dir(self.outside()).unwrap().count(), 1, "something was made outside");
        assert_eq!(fs::read_dir(self.directory.path()).unwrap().count(), 2, "something was made beside");
        let mut archive = Archive::default();
        archive.file("honest", b"yes");
        self.unpack(&archive.end()).unwrap();
        assert_eq!(fs::read(self.destination().join("honest")).unwrap(), b"yes");
        assert!(
            parts(&self.destination()).is_empty(),
            "half files were left: {:?}",
            parts(&self.destination())
        );
    }
}

fn parts(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.file_name().as_bytes().starts_with(b".enisle-part") {
            found.push(entry.path());
        }
        if entry.file_type().unwrap().is_dir() {
            found.extend(parts(&entry.path()));
        }
    }
    found
}

/// An archive put together by hand, names and all.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(&mut self, kind: EntryType, name: &str, link: &str, contents: &[u8]) -> &mut Self {
        let mut header = Header::new_ustar();
        let ustar = header.as_ustar_mut().unwrap();
        ustar.name[..name.len()].copy_from_slice(name.as_bytes());
        ustar.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o6755);
        header.set_mtime(1);
        header.set_size(contents.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(contents);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(&mut self, name: &str, contents: &[u8]) -> &mut Self {
        self.entry(EntryType::Regular, name, "", contents)
    }

    fn link(&mut self, name: &str, target: &str) -> &mut Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    fn end(&self) -> Vec<u8> {
        [self.0.as_slice(), &[0; 1024]].concat()
    }
}

#[test]
fn names_that_lead_out() {
    for name in [
        "../outside/new",
        "a/../../outside/new",
        "/etc/enisle-attack",
        "//etc/x",
        "..",
        "a/..",
        "../destination/x",
    ] {
        let world = World::new();
        let mut archive = Archive::default();
        archive.file(name, b"attack");
        let refused = world.unpack(&archive.end()).unwrap_err();
        assert!(
            matches!(&refused, ArchiveError::Escapes { name: found } if found == Path::new(name)),
            "{refused:?}"
        );
        world.check();
    }
    assert!(!Path::new("/etc/enisle-attack").exists());
}

#[test]
fn long_names_are_judged_as_short_ones() {
    for (kind, value) in [
        (EntryType::GNULongName, b"../outside/new\0".to_vec()),
        (EntryType::XHeader, b"23 path=../outside/new\n".to_vec()),
    ] {
        let world = World::new();
        let mut archive = Archive::default();
        archive.entry(kind, "long", "", &value).file("harmless", b"attack");
        let refused = world.unpack(&archive.end()).unwrap_err();
        assert!(matches!(refused, ArchiveError::Escapes { .. }), "{refused:?}");
        world.check();
    }
}

#[test]
fn a_file_through_a_symlink_of_the_archive() {
    let world = World::new();
    for target in [world.outside().to_str().unwrap(), "../outside", "."] {
        let mut archive = Archive::default();
        archive.link("way", target).file("way/secret", b"attack");
        let refused = world.unpack(&archive.end()).unwrap_err();
        assert!(
            matches!(&refused, ArchiveError::Symlink { path } if path == Path::new("way")),
            "{refused:?}"
        );
        assert_eq!(
            fs::read_link(world.destination().join("way")).unwrap(),
            Path::new(target),
            "links stay links"
        );
    }
    world.check();
}

#[test]
fn a_directory_entry_onto_a_symlink() {
    let world = World::new();
    symlink(world.outside(), world.destination().join("way")).unwrap();
    let mode = fs::metadata(world.outside()).unwrap().mode();
    let mut archive = Archive::default();
    archive.entry(EntryType::Directory, "way/", "", b"").file("way/new", b"attack");
    let refused = world.unpack(&archive.end()).unwrap_err();
    assert!(matches!(refused, ArchiveError::Symlink { .. }), "{refused:?}");
    assert_eq!(fs::metadata(world.outside()).unwrap().mode(), mode);
    world.check();
}

#[test]
fn a_file_onto_a_symlink_replaces_the_link() {
    let world = World::new();
    let mut archive = Archive::default();
    archive.link("file", "../outside/secret").file("file", b"new");
    world.unpack(&archive.end()).unwrap();
    let file = world.destination().join("file");
    assert!(file.symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read(&file).unwrap(), b"new");
    world.check();
}

#[test]
fn a_file_with_other_names_is_not_written_through() {
    let world = World::new();
    fs::hard_link(world.outside().join("secret"), world.destination().join("file")).unwrap();
    let mut archive = Archive::default();
    archive.file("file", b"attack");
    world.unpack(&archive.end()).unwrap();
    assert_eq!(fs::read(world.destination().join("file")).unwrap(), b"attack");
    world.check();
}

#[test]
fn hard_links_are_refused() {
    for target in ["../outside/secret", "/etc/passwd", "mine"] {
        let world = World::new();
        let mut archive = Archive::default();
        archive.file("mine", b"").entry(EntryType::Link, "linked", target, b"").file("linked", b"attack");
        let refused = world.unpack(&archive.end()).unwrap_err();
        assert!(
            matches!(&refused, ArchiveError::HardLink { name } if name == Path::new("linked")),
            "{refused:?}"
        );
        world.check();
    }
}

/// The archive puts a symlink where a directory was that has been entered before, and writes
/// through it, over and over.
#[test]
fn a_directory_replaced_between_entries() {
    let world = World::new();
    let mut archive = Archive::default();
    archive.file("a/one", b"1").file("b", b"").link("a", "../outside");
    // A directory is never replaced by anything else.
    let refused = world.unpack(&archive.end()).unwrap_err();
    assert!(matches!(refused, ArchiveError::InTheWay { .. }), "{refused:?}");

    let mut archive = Archive::default();
    archive.link("c", "../outside").file("x", b"").file("c/secret", b"attack");
    assert!(matches!(world.unpack(&archive.end()).unwrap_err(), ArchiveError::Symlink { .. }));
    world.check();
}

/// Somebody on this machine swaps a directory of the destination for a symlink while it is filled.
#[test]
fn a_directory_replaced_from_the_outside() {
    struct Swapping<'a> {
        archive: &'a [u8],
        world: &'a World,
        at: usize,
        read: usize,
    }
    impl Read for Swapping<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(self.at.abs_diff(self.read).max(1));
            let got = self.archive.read(&mut buffer[..length])?;
            self.read += got;
            if self.read == self.at {
                let victim = self.world.destination().join("a");
                fs::rename(&victim, self.world.destination().join("moved")).unwrap();
                symlink("../outside", &victim).unwrap();
            }
            Ok(got)
        }
    }
    let world = World::new();
    let mut archive = Archive::default();
    archive.entry(EntryType::Directory, "a/", "", b"").file("a/one", &[7; 512]);
    let at = archive.0.len();
    archive.file("a/secret", b"attack").file("b", b"").file("a/secret", b"attack");
    let bytes = archive.end();
    let input = Swapping { archive: &bytes, world: &world, at, read: 0 };
    let refused = unpack(input, &world.destination(), UnpackOptions::default()).unwrap_err();
    assert!(matches!(refused, ArchiveError::Symlink { .. }), "{refused:?}");
    assert_eq!(
        fs::read(world.destination().join("moved/secret")).unwrap(),
        b"attack",
        "the open directory was filled on"
    );
    world.check();
}

#[test]
fn set_id_bits_only_when_asked_for() {
    let world = World::new();
    let mut archive = Archive::default();
    archive.entry(EntryType::Directory, "d/", "", b"").file("d/tool", b"");
    world.unpack(&archive.end()).unwrap();
    let mode = |name: &str| fs::metadata(world.destination().join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("d"), mode("d/tool")), (0o755, 0o755));
    let options = UnpackOptions { keep_set_id: true, ..UnpackOptions::default() };
    unpack(archive.end().as_slice(), &world.destination(), options).unwrap();
    assert_eq!(mode("d/tool"), 0o6755);
}

#[test]
fn devices_are_left_out_and_reported() {
    let world = World::new();
    let mut archive = Archive::default();
    for (kind, name) in [(EntryType::Char, "char"), (EntryType::Block, "block"), (EntryType::Fifo, "fifo")] {
        archive.entry(kind, name, "", b"");
    }
    let summary = unpack(archive.end().as_slice(), &world.destination(), UnpackOptions::default()).unwrap();
    assert_eq!((summary.warning_count, summary.files), (3, 0));
    assert_eq!(fs::read_dir(world.destination()).unwrap().count(), 0);
    world.check();
}

#[test]
fn names_that_are_too_much() {
    let world = World::new();
    let mut archive = Archive::default();
    let deep = "d/".repeat(MAX_DEPTH) + "file";
    let record = |value: &str| {
        let body = format!(" path={value}\n");
        let length = (1..).find(|length: &usize| length.to_string().len() + body.len() == *length).unwrap();
        format!("{length}{body}")
    };
    archive.entry(EntryType::XHeader, "x", "", record(&deep).as_bytes()).file("x", b"");
    assert!(matches!(world.unpack(&archive.end()).unwrap_err(), ArchiveError::TooDeep { .. }));

    let mut archive = Archive::default();
    archive.entry(EntryType::XHeader, "x", "", record(&"n".repeat(300)).as_bytes()).file("x", b"");
    let refused = world.unpack(&archive.end()).unwrap_err();
    assert_eq!(refused.io_error().and_then(io::Error::raw_os_error), Some(36), "ENAMETOOLONG: {refused:?}");

    let mut archive = Archive::default();
    archive.entry(EntryType::XHeader, "x", "", record("a\0b").as_bytes()).file("x", b"");
    assert!(matches!(world.unpack(&archive.end()).unwrap_err(), ArchiveError::Escapes { .. }));
    world.check();
}

#[test]
fn an_extension_that_would_fill_the_memory() {
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink, EntryType::XGlobalHeader]
    {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(1 << 40);
        header.set_cksum();
        let endless = header.as_bytes().chain(io::repeat(b'x'));
        let world = World::new();
        let refused = unpack(endless, &world.destination(), UnpackOptions::default()).unwrap_err();
        assert!(matches!(refused, ArchiveError::Malformed(_)), "{refused:?}");
        world.check();
    }
}

#[test]
fn a_stream_cut_anywhere_is_an_error_and_leaves_no_half_file() {
    let world = World::new();
    fs::write(world.destination().join("file"), "old").unwrap();
    let mut archive = Archive::default();
    archive.file("file", &[7; 1500]);
    let whole = archive.end();
    for length in [0, 1, 511, 512, 513, 1024, 2012, 2047, 2048, 2049, 2560, whole.len() - 1] {
        let refused = world.unpack(&whole[..length]).unwrap_err();
        assert!(matches!(refused, ArchiveError::Truncated), "{length}: {refused:?}");
        let now = fs::read(world.destination().join("file")).unwrap();
        assert!(now == b"old" || now == [7; 1500], "{length}: half a file, {} bytes", now.len());
        assert!(now == b"old" || length >= 2012, "{length}: too early");
    }
    world.unpack(&whole).unwrap();
    world.check();
}

#[test]
fn several_roots_do_not_take_one_name() {
    let world = World::new();
    let mut archive = Archive::default();
    archive.file("one", b"1").file("two", b"2");
    let named = world.destination().join("name");
    let refused = unpack(archive.end().as_slice(), &named, UnpackOptions::default()).unwrap_err();
    assert!(matches!(refused, ArchiveError::SeveralRoots { .. }), "{refused:?}");
    assert_eq!(fs::read(named).unwrap(), b"1");
    world.check();
}

#[test]
fn a_file_and_a_directory_of_one_name() {
    let world = World::new();
    fs::create_dir(world.destination().join("d")).unwrap();
    fs::write(world.destination().join("f"), "").unwrap();
    let mut archive = Archive::default();
    archive.file("d", b"");
    assert!(matches!(world.unpack(&archive.end()).unwrap_err(), ArchiveError::InTheWay { .. }));
    let mut archive = Archive::default();
    archive.file("f/x", b"");
    assert!(matches!(world.unpack(&archive.end()).unwrap_err(), ArchiveError::InTheWay { .. }));
    world.check();
}

#[test]
fn a_raw_file_never_lands_on_a_device_or_half() {
    let world = World::new();
    let file = world.destination().join("file");
    fs::write(&file, "old").unwrap();
    let begin = |content: &[u8]| {
        let new = NewFile::begin(&file, Owner::Caller).unwrap();
        assert_eq!(rustix::io::write(&new, content).unwrap(), content.len());
        new
    };
    drop(begin(b"half"));
    assert_eq!(fs::read(&file).unwrap(), b"old");
    assert_eq!(fs::read_dir(world.destination()).unwrap().count(), 1, "the half is gone");
    begin(b"new").finish().unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"new");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o644);
    // What is in its place by then stays, and nothing is left beside it.
    let late = begin(b"late");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(matches!(late.finish(), Err(ArchiveError::InTheWay { .. })));
    assert_eq!(fs::read_dir(world.destination()).unwrap().count(), 1);
    // Special files of its own: a test must not aim at the machine's devices.
    let (device, fifo) = (world.destination().join("device"), world.destination().join("fifo"));
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, &device, FileType::CharacterDevice, Mode::RWXU, null)
        .expect("needs root");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RWXU).unwrap();
    for bad in [&device, &fifo, &world.destination()] {
        let refused = NewFile::begin(bad, Owner::Caller).err();
        assert!(matches!(refused, Some(ArchiveError::InTheWay { .. })), "{bad:?}: {refused:?}");
    }
    assert_eq!(fs::metadata(&device).unwrap().rdev(), null, "the device is still one");
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever single change is made to an honest archive: no panic, nothing outside.
    #[test]
    fn a_damaged_archive_does_no_harm(at in 0_usize..4096, value: u8, mend: bool) {
        let world = World::new();
        let source = world.directory.path().join("outside");
        let mut bytes = Vec::new();
        pack(&source, None, &mut bytes, enisle_archive::PackOptions::default()).unwrap();
        let at = at % bytes.len();
        bytes[at] = value;
        if mend {
            // With a right checksum the damage gets past the first check.
            let start = at / 512 * 512;
            let mut block: [u8; 512] = bytes[start..start + 512].try_into().unwrap();
            let header: &mut [u8; 512] = &mut block;
            let mut mended = Header::new_old();
            mended.as_mut_bytes().copy_from_slice(header);
            mended.set_cksum();
            bytes[start..start + 512].copy_from_slice(mended.as_bytes());
        }
        let _ = world.unpack(&bytes);
        prop_assert_eq!(fs::read_to_string(source.join("secret")).unwrap(), "untouched");
        prop_assert_eq!(fs::read_dir(world.directory.path()).unwrap().count(), 2);
        prop_assert!(parts(&world.destination()).is_empty());
    }
}
