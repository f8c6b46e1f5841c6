//! Files of the guest, in a directory of this machine.

mod host;

use enisle_agent::session;
use enisle_guest_proto::{Control, FailureCode, FileInfo, FileKind, FileOp, Request};
use host::Session;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

const DONE: Control = Control::Exit { code: 0, signal: None, timed_out: false };

/// Does it; what was described, or why it was refused or failed.
fn ask(op: FileOp) -> Result<Vec<FileInfo>, FailureCode> {
    let (host, guest) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || session::serve(guest.into()));
    let mut session = Session::new(host);
    session.open(Request::Files(op)).map_err(|failure| failure.code)?;
    let last = session.finish();
    let stdout = std::mem::take(&mut session.stdout);
    // The agent waits for the daemon to hang up.
    drop(session);
    server.join().unwrap();
    match last {
        Control::Failed(failure) => Err(failure.code),
        last => {
            assert_eq!(last, DONE);
            let lines = stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            Ok(lines.map(|line| serde_json::from_slice(line).unwrap()).collect())
        }
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn stat(path: &Path) -> Result<FileInfo, FailureCode> {
    ask(FileOp::Stat { path: text(path) }).map(|mut found| found.pop().unwrap())
}

#[test]
fn files_are_described_as_they_are_and_links_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a b");
    fs::write(&file, "12345").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o4750)).unwrap();
    let found = stat(&file).unwrap();
    assert_eq!((found.name.as_str(), found.kind, found.size, found.mode), ("a b", FileKind::File, 5, 0o4750));
    assert!(found.modified_ms > 1_500_000_000_000, "milliseconds");
    let link = dir.path().join("link");
    symlink("/no/such/file", &link).unwrap();
    let found = stat(&link).unwrap();
    assert_eq!((found.kind, found.target.as_deref()), (FileKind::Symlink, Some("/no/such/file")));
    assert_eq!(stat(Path::new("/dev/null")).unwrap().kind, FileKind::Other);
    assert_eq!(stat(Path::new("/")).unwrap().name, "/");
    assert_eq!(stat(&dir.path().join("none")), Err(FailureCode::NotFound));
    assert_eq!(stat(Path::new("")), Err(FailureCode::Invalid));
}

#[test]
fn a_directory_of_any_size_is_listed_with_odd_names() {
    let dir = tempfile::tempdir().unwrap();
    // Some windows of answers.
    for n in 0..3000 {
        fs::write(dir.path().join(format!("file-{n:04}")), "").unwrap();
    }
    fs::write(dir.path().join(OsStr::from_bytes(b"no\xffutf8\n")), "").unwrap();
    let mut found = ask(FileOp::List { path: text(dir.path()) }).unwrap();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(found.len(), 3001);
    assert_eq!((found[2999].name.as_str(), found[2999].lossy), ("file-2999", false));
    assert_eq!((found[3000].name.as_str(), found[3000].lossy), ("no\u{fffd}utf8\n", true));
    assert_eq!(ask(FileOp::List { path: text(&dir.path().join("file-0000")) }), Err(FailureCode::NotFound));
}

#[test]
fn directories_are_made_and_trees_removed_only_when_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let (top, deep) = (dir.path().join("top"), dir.path().join("top/deep"));
    let make = |path: &Path, parents| ask(FileOp::MakeDir { path: text(path), parents });
    let remove = |path: &Path, recursive| ask(FileOp::Remove { path: text(path), recursive });
    assert_eq!(make(&deep, false), Err(FailureCode::NotFound));
    make(&deep, true).unwrap();
    make(&deep, true).unwrap();
    assert_eq!(make(&deep, false), Err(FailureCode::Invalid), "it is there");
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "").unwrap();
    symlink(&outside, deep.join("link")).unwrap();
    assert_eq!(remove(&top, false), Err(FailureCode::Invalid), "it is not empty");
    assert!(deep.join("link").exists());
    remove(&top, true).unwrap();
    assert!(!top.exists() && outside.join("file").exists(), "a link is removed, not what it points at");
    assert_eq!(remove(&top, true), Err(FailureCode::NotFound));
    remove(&outside.join("file"), false).unwrap();
    remove(&outside, false).unwrap();
    assert_eq!(remove(Path::new("/"), true), Err(FailureCode::Invalid));
    assert_eq!(remove(Path::new("/usr/.."), true), Err(FailureCode::Invalid));
}
