//! Watches of a real directory, heard as the pump would.

use super::*;
use crate::session::Running;
use enisle_guest_proto::Control;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use tempfile::TempDir;

const SOON: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// The reading end, waited on.
struct Pipe(OwnedFd);

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let ready = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&SOON))?;
        assert_eq!(ready, 1, "nothing is told for half a minute");
        Ok(rustix::io::read(&self.0, buffer)?)
    }
}

struct Watched {
    dir: TempDir,
    running: Running,
    lines: BufReader<Pipe>,
}

fn started(running: Running) -> (Running, BufReader<Pipe>) {
    let mut running = running;
    let pipe = running.streams.stdout.take().unwrap();
    (running, BufReader::new(Pipe(pipe)))
}

fn watch(dir: TempDir, recursive: bool, most: usize) -> Watched {
    let (running, lines) = started(begin_bounded(dir.path().to_str().unwrap(), recursive, most).unwrap());
    Watched { dir, running, lines }
}

impl Watched {
    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn next(&mut self) -> Option<WatchLine> {
        let mut line = String::new();
        (self.lines.read_line(&mut line).unwrap() > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    #[track_caller]
    fn tells(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(text(&self.next().unwrap()), *expected);
        }
    }

    /// How it ended: after its last line.
    fn end(mut self) -> Control {
        assert_eq!(self.next(), None);
        self.running.job.finish(None)
    }
}

fn text(line: &WatchLine) -> String {
    let slash = |directory: &bool| if *directory { "/" } else { "" };
    match line {
        WatchLine::Watching {} => "watching".to_owned(),
        WatchLine::Created { path, directory, .. } => format!("created {path}{}", slash(directory)),
        WatchLine::Modified { path, directory, .. } => format!("modified {path}{}", slash(directory)),
        WatchLine::Removed { path, directory, .. } => format!("removed {path}{}", slash(directory)),
        WatchLine::Moved { from, to, directory, .. } => format!("moved {from} {to}{}", slash(directory)),
        WatchLine::Unwatched { path, .. } => format!("unwatched {path}"),
        WatchLine::Dropped {} => "dropped".to_owned(),
    }
}

#[test]
fn what_happens_to_files_is_told_and_only_in_the_directory_itself() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("below")).unwrap();
    let mut watched = watch(dir, false, MAX_WATCHED);
    watched.tells(&["watching"]);
    fs::write(watched.at("below/unseen"), "x").unwrap();
    fs::write(watched.at("a"), "x").unwrap();
    watched.tells(&["created a", "modified a"]);
    fs::rename(watched.at("a"), watched.at("b")).unwrap();
    watched.tells(&["moved a b"]);
    fs::rename(watched.at("b"), watched.at("below/b")).unwrap();
    watched.tells(&["removed b"]);
    fs::rename(watched.at("below/b"), watched.at("c")).unwrap();
    fs::remove_file(watched.at("c")).unwrap();
    fs::create_dir(watched.at("d")).unwrap();
    fs::write(watched.at("d/unseen"), "x").unwrap();
    fs::remove_dir_all(watched.at("d")).unwrap();
    watched.tells(&["created c", "removed c", "created d/", "removed d/"]);
    fs::remove_dir_all(watched.dir.path()).unwrap();
    watched.tells(&["removed below/"]);
    assert!(matches!(watched.end(), Control::Exit { code: 0, .. }));
}

#[test]
fn directories_below_are_watched_under_the_names_they_have() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    let mut watched = watch(dir, true, MAX_WATCHED);
    watched.tells(&["watching"]);
    fs::write(watched.at("a/b/file"), "x").unwrap();
    watched.tells(&["created a/b/file", "modified a/b/file"]);
    fs::rename(watched.at("a"), watched.at("z")).unwrap();
    fs::write(watched.at("z/b/file"), "y").unwrap();
    watched.tells(&["moved a z/", "modified z/b/file"]);
    fs::rename(watched.at("z/b/file"), watched.at("file")).unwrap();
    watched.tells(&["moved z/b/file file"]);
    // Out of the tree it is watched no more, and back in it again, with what it has by then.
    let outside = tempfile::tempdir().unwrap();
    let away = outside.path().join("away");
    if fs::rename(watched.at("z"), &away).is_err() {
        panic!("temporary directories are on several file systems");
    }
    watched.tells(&["removed z/"]);
    fs::write(away.join("b/later"), "x").unwrap();
    fs::rename(&away, watched.at("back")).unwrap();
    watched.tells(&["created back/", "created back/b/", "created back/b/later"]);
    fs::remove_file(watched.at("back/b/later")).unwrap();
    watched.tells(&["removed back/b/later"]);
}

#[test]
fn a_new_directory_is_watched_with_what_is_in_it_already() {
    let staging = tempfile::tempdir().unwrap();
    fs::create_dir_all(staging.path().join("new/deep")).unwrap();
    fs::write(staging.path().join("new/deep/file"), "x").unwrap();
    let mut watched = watch(tempfile::tempdir().unwrap(), true, MAX_WATCHED);
    watched.tells(&["watching"]);
    fs::rename(staging.path().join("new"), watched.at("new")).unwrap();
    watched.tells(&["created new/", "created new/deep/", "created new/deep/file"]);
    fs::write(watched.at("new/deep/file"), "y").unwrap();
    watched.tells(&["modified new/deep/file"]);
    // Made while it is watched: each at least once, whoever was first.
    fs::create_dir_all(watched.at("p/q/r")).unwrap();
    fs::write(watched.at("p/q/r/last"), "x").unwrap();
    let mut seen = Vec::new();
    while !seen.contains(&"modified p/q/r/last".to_owned())
        && !seen.contains(&"created p/q/r/last".to_owned())
    {
        seen.push(text(&watched.next().unwrap()));
    }
    for expected in ["created p/", "created p/q/", "created p/q/r/"] {
        assert!(seen.contains(&expected.to_owned()), "{expected}: {seen:?}");
    }
}

/// A directory is made in one that is watched, and that one moves, before either is heard of: every name it is told
/// under is gone by the time its turn comes.
#[test]
fn what_was_made_just_before_its_directory_moved_is_watched() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("x")).unwrap();
    let mut tree = Tree::new(dir.path().canonicalize().unwrap(), true, MAX_WATCHED).unwrap();
    let mut said = Vec::new();
    let mut note = |found: Found<'_>| {
        if let Found::Entry { path, .. } = found {
            said.push(path.to_owned());
        }
        Ok(())
    };
    assert!(tree.grow_root(&mut note).unwrap());
    fs::create_dir_all(dir.path().join("x/n/below")).unwrap();
    fs::rename(dir.path().join("x"), dir.path().join("y")).unwrap();
    // As the events are heard: the new directory's first, under a name that leads nowhere.
    tree.grow("x/n".into(), &mut note).unwrap();
    tree.rename(Path::new("x"), Path::new("y"));
    tree.grow("y".into(), &mut note).unwrap();
    assert_eq!(said, [PathBuf::from("x"), "y/n/below".into()], "what is new and was not told of yet");
    fs::write(dir.path().join("y/n/below/file"), "x").unwrap();
    let mut seen = VecDeque::new();
    tree.read(&mut seen).unwrap();
    let of_file = |seen: &Seen| seen.name.as_deref() == Some("file".as_ref());
    assert!(seen.iter().any(|seen| of_file(seen) && tree.path(seen.wd) == Some(Path::new("y/n/below"))));
}

#[test]
fn a_watch_ends_with_the_directory_above_it() {
    let above = tempfile::tempdir().unwrap();
    fs::create_dir_all(above.path().join("a/b")).unwrap();
    let path = above.path().join("a/b");
    let (running, lines) = started(begin_bounded(path.to_str().unwrap(), true, MAX_WATCHED).unwrap());
    let mut watched = Watched { dir: above, running, lines };
    watched.tells(&["watching"]);
    fs::rename(watched.at("a"), watched.at("c")).unwrap();
    fs::create_dir(watched.at("c/b/new")).unwrap();
    watched.tells(&["created new/"]);
    assert_eq!(
        watched.next(),
        None,
        "what is new could not be watched, and something else may be there by now"
    );
}

#[test]
fn links_are_not_followed_below_the_root() {
    let elsewhere = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), dir.path().join("link")).unwrap();
    let mut watched = watch(dir, true, MAX_WATCHED);
    watched.tells(&["watching"]);
    symlink(elsewhere.path(), watched.at("another")).unwrap();
    fs::write(watched.at("link/unseen"), "x").unwrap();
    fs::write(watched.at("another/unseen too"), "x").unwrap();
    fs::write(watched.at("seen"), "x").unwrap();
    watched.tells(&["created another", "created seen", "modified seen"]);
    // The root itself is followed.
    let named = elsewhere.path().join("named");
    symlink(watched.dir.path(), &named).unwrap();
    let (_running, lines) = started(begin_bounded(named.to_str().unwrap(), true, MAX_WATCHED).unwrap());
    assert_eq!(lines.lines().next().unwrap().unwrap(), r#"{"watch":"watching"}"#);
}

#[test]
fn too_many_directories_are_refused_and_later_ones_are_told_as_unwatched() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let (mut running, lines) = started(begin_bounded(dir.path().to_str().unwrap(), true, 2).unwrap());
    assert_eq!(lines.lines().count(), 0);
    let Control::Failed(why) = running.job.finish(None) else { panic!("it watches three") };
    assert_eq!(why.code, FailureCode::Invalid);
    assert!(why.message.contains("at most 2 directories"), "{}", why.message);
    let mut watched = watch(dir, true, 3);
    watched.tells(&["watching"]);
    fs::create_dir(watched.at("c")).unwrap();
    watched.tells(&["created c/", "unwatched c"]);
    fs::write(watched.at("c/unseen"), "x").unwrap();
    fs::remove_dir(watched.at("a")).unwrap();
    watched.tells(&["removed a/"]);
    fs::create_dir(watched.at("d")).unwrap();
    fs::write(watched.at("d/seen"), "x").unwrap();
    watched.tells(&["created d/", "created d/seen"]);
}

#[test]
fn a_file_is_watched_until_its_name_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "x").unwrap();
    let (running, lines) = started(begin(path.to_str().unwrap(), false).unwrap());
    let mut watched = Watched { dir, running, lines };
    watched.tells(&["watching"]);
    fs::write(&path, "y").unwrap();
    watched.tells(&["modified "]);
    let _held = fs::File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(matches!(watched.end(), Control::Exit { code: 0, .. }));
}

#[test]
fn what_is_not_there_is_refused_and_odd_names_are_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let Err(refusal) = begin(missing.to_str().unwrap(), true) else { panic!("it is watched") };
    assert_eq!(refusal.code, FailureCode::NotFound);
    let mut watched = watch(dir, false, MAX_WATCHED);
    watched.tells(&["watching"]);
    let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff\n\"");
    fs::create_dir(watched.dir.path().join(odd)).unwrap();
    let told = WatchLine::Created { path: "\u{fffd}\n\"".to_owned(), lossy: true, directory: true };
    assert_eq!(watched.next(), Some(told));
}

/// More than the kernel keeps, while nobody reads: the loss is told, and what comes after it is complete again.
#[test]
fn lost_events_are_told_and_new_directories_among_them_are_watched() {
    let kept: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let mut watched = watch(tempfile::tempdir().unwrap(), true, MAX_WATCHED);
    watched.tells(&["watching"]);
    // Two events each; what the pipe and the buffers hold is far less.
    let path = watched.at("file");
    for _ in 0..kept + 4096 {
        fs::write(&path, "x").unwrap();
        fs::remove_file(&path).unwrap();
    }
    fs::create_dir(watched.at("unheard")).unwrap();
    while text(&watched.next().unwrap()) != "dropped" {}
    fs::write(watched.at("unheard/of"), "x").unwrap();
    while text(&watched.next().unwrap()) != "modified unheard/of" {}
}

#[test]
fn a_daemon_that_hangs_up_ends_it() {
    let mut watched = watch(tempfile::tempdir().unwrap(), true, MAX_WATCHED);
    watched.tells(&["watching"]);
    let Watched { running, lines, .. } = watched;
    drop(lines);
    let ended = running.job.ended().unwrap();
    assert_eq!(poll(&mut [PollFd::from_borrowed_fd(ended, PollFlags::IN)], Some(&SOON)).unwrap(), 1);
}
