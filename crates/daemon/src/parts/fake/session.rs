//! Sessions of a fake guest: processes and files that are words. It keeps to the protocol's credit, so that
//! who holds the other end must.

use enisle_guest_proto::{
    Control, Decoder, Failure, FailureCode, FileInfo, FileKind, FileOp, Frame, Kind, Open, ProcessInfo,
    ProcessOp, ProcessState, Reply, Request, WINDOW, encode, encode_control,
};
use serde::Serialize;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::timeout;

/// The connection of one session.
struct Line {
    socket: UnixStream,
    decoder: Decoder,
    /// What may still be sent.
    credit: usize,
}

impl Line {
    /// The next frame; `None` when the daemon has hung up.
    async fn hear(&mut self) -> Option<Frame> {
        let mut buffer = [0; 8192];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            match self.socket.read(&mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.decoder.feed(&buffer[..read]),
            }
        }
    }

    async fn say<T: Serialize>(&mut self, message: &T) {
        let mut bytes = Vec::new();
        encode_control(message, &mut bytes).unwrap();
        // The daemon may have hung up.
        let _ = self.socket.write_all(&bytes).await;
    }

    /// Sends output as credit allows; false when the daemon has hung up.
    async fn put(&mut self, kind: Kind, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.credit == 0 {
                match self.hear().await.map(|frame| frame.control()) {
                    Some(Ok(Control::Window { bytes, .. })) => self.credit += bytes as usize,
                    Some(_) => {}
                    None => return false,
                }
                continue;
            }
            let most = bytes.len().min(self.credit).min(10_000);
            let mut frame = Vec::new();
            encode(kind, &bytes[..most], &mut frame);
            if self.socket.write_all(&frame).await.is_err() {
                return false;
            }
            self.credit -= most;
            bytes = &bytes[most..];
        }
        true
    }

    /// The next input, `Some(None)` at its end, `None` when the daemon has hung up. What may be unread at a time
    /// is held against the window.
    async fn input(&mut self) -> Option<Option<Vec<u8>>> {
        loop {
            let frame = self.hear().await?;
            if frame.kind == Kind::Stdin {
                let bytes = u32::try_from(frame.payload.len()).unwrap();
                assert!(bytes > 0 && bytes <= WINDOW);
                self.say(&Control::Window { stream: 1, bytes }).await;
                return Some(Some(frame.payload));
            }
            match frame.control().unwrap() {
                Control::Eof { stream: 1 } => return Some(None),
                Control::Window { bytes, .. } => self.credit += bytes as usize,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn refuse(&mut self, code: FailureCode) {
        self.say(&Reply::Refused(Failure { code, message: "the fake \x1b refuses".into() })).await;
    }

    async fn exit(&mut self, code: i32) {
        self.say(&Control::Exit { code, signal: None, timed_out: false }).await;
    }
}

/// Serves one session.
pub(super) async fn serve(socket: UnixStream, told: UnboundedSender<String>) {
    let mut line = Line { socket, decoder: Decoder::default(), credit: WINDOW as usize };
    let Some(open) = line.hear().await else { return };
    let open: Open = open.control().unwrap();
    // Nobody may have kept the other end.
    let tell = |words: String| drop(told.send(words));
    match open.request {
        Request::Exec(exec) if exec.argv[0] == "missing" => line.refuse(FailureCode::NotFound).await,
        Request::Exec(exec) => {
            line.say(&Reply::Opened { pid: Some(7) }).await;
            if process(&mut line, &exec).await.is_none() {
                tell(format!("killed {}", exec.argv[0]));
            }
        }
        Request::ArchiveOut { path, .. } if path == "/missing" => line.refuse(FailureCode::NotFound).await,
        Request::ArchiveOut { path, raw } => {
            line.say(&Reply::Opened { pid: None }).await;
            let content = format!("{path} raw={raw} ").repeat(10_000);
            if !line.put(Kind::Stdout, content.as_bytes()).await {
                tell(format!("left {path}"));
            } else if path == "/half" {
                line.say(&Control::Failed(Failure { code: FailureCode::Failed, message: "EIO".into() }))
                    .await;
            } else {
                line.exit(0).await;
            }
        }
        Request::ArchiveIn { path, raw } => {
            line.say(&Reply::Opened { pid: None }).await;
            let mut bytes = 0;
            loop {
                match line.input().await {
                    None => return tell(format!("removed unfinished {path}")),
                    Some(Some(_)) if path == "/full" => {
                        let failure = Failure { code: FailureCode::NoSpace, message: "ENOSPC".into() };
                        return line.say(&Control::Failed(failure)).await;
                    }
                    Some(Some(part)) => bytes += part.len(),
                    Some(None) => break,
                }
            }
            tell(format!("wrote {path} raw={raw} {bytes} bytes"));
            line.exit(0).await;
        }
        Request::Files(op) => files(&mut line, op, tell).await,
        Request::Process(op) => processes(&mut line, op, tell).await,
        Request::Connect(_) | Request::Probe(_) => line.refuse(FailureCode::Invalid).await,
    }
}

/// Process 1 is honest, 2 another than was asked for, 3 runs on, 4 has ended, and others are not there.
async fn processes(line: &mut Line, op: ProcessOp, tell: impl Fn(String)) {
    let info = |id, state| {
        let info = ProcessInfo {
            id,
            pid: 70,
            argv: vec!["sleep".into()],
            cwd: "/".into(),
            user: "root".into(),
            started_ms: 5,
            state,
            written: 20,
            dropped: 4,
        };
        format!("{}\n", serde_json::to_string(&info).unwrap())
    };
    let ended = ProcessState::Ended { code: 143, signal: Some(15), timed_out: false };
    let answer = match &op {
        ProcessOp::Start(exec) if exec.argv[0] == "full" => return line.refuse(FailureCode::Exhausted).await,
        ProcessOp::Signal { id: 4, .. } => return line.refuse(FailureCode::Ended).await,
        ProcessOp::Start(_) => info(1, ProcessState::Running {}),
        ProcessOp::List {} => info(1, ended) + &info(3, ProcessState::Running {}),
        ProcessOp::Show { id: 2 } => info(9, ended),
        ProcessOp::Wait { id: 3, timeout_ms } => {
            tokio::time::sleep(Duration::from_millis(*timeout_ms)).await;
            info(3, ProcessState::Running {})
        }
        // It says at once that it has waited.
        ProcessOp::Wait { id: 4, .. } => info(4, ProcessState::Running {}),
        ProcessOp::Show { id: 1 } | ProcessOp::Wait { id: 1, .. } => info(1, ended),
        ProcessOp::Output { id: 1, .. } => "{\"dropped\":4,\"running\":false}\nwords".to_owned(),
        ProcessOp::Output { id: 2, .. } => {
            "{\"dropped\":0,\"running\":true}\n".to_owned() + &"x".repeat(enisle_guest_proto::RING + 1)
        }
        ProcessOp::Signal { id: 1, .. } | ProcessOp::Remove { id: 1 } => String::new(),
        _ => return line.refuse(FailureCode::NotFound).await,
    };
    line.say(&Reply::Opened { pid: None }).await;
    match &op {
        ProcessOp::Start(exec) => tell(format!("started {}", exec.argv.join(" "))),
        ProcessOp::Signal { id, signal } => tell(format!("signal {signal} to process {id}")),
        ProcessOp::Remove { id } => tell(format!("removed process {id}")),
        _ => {}
    }
    if line.put(Kind::Stdout, answer.as_bytes()).await {
        line.exit(0).await;
    }
}

async fn files(line: &mut Line, op: FileOp, tell: impl Fn(String)) {
    let info = |name: &str| FileInfo {
        name: name.to_owned(),
        lossy: false,
        kind: FileKind::File,
        size: 5,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified_ms: -1,
        target: None,
    };
    let text = |names: &[String]| -> String {
        names.iter().map(|name| format!("{}\n", serde_json::to_string(&info(name)).unwrap())).collect()
    };
    let (FileOp::Stat { path }
    | FileOp::List { path }
    | FileOp::MakeDir { path, .. }
    | FileOp::Remove { path, .. }
    | FileOp::Watch { path, .. }) = &op;
    match path.as_str() {
        "/missing" => return line.refuse(FailureCode::NotFound).await,
        // As an agent that does not know the request.
        "/old" => return,
        _ => line.say(&Reply::Opened { pid: None }).await,
    }
    let answer = match &op {
        FileOp::Stat { path } => text(std::slice::from_ref(path)),
        FileOp::List { path } if path == "/many" => {
            text(&(0..12_000).rev().map(|n| format!("{n:05}")).collect::<Vec<_>>())
        }
        FileOp::List { path } if path == "/lies" => "{}\n".to_owned(),
        FileOp::List { path } if path == "/endless" => "x".repeat(1 << 20),
        FileOp::List { .. } => text(&["b".to_owned(), "a".to_owned()]),
        FileOp::MakeDir { .. } | FileOp::Remove { .. } => String::new(),
        FileOp::Watch { path, .. } if path == "/too-many" => {
            let message = "at most 4096 directories".to_owned();
            return line.say(&Control::Failed(Failure { code: FailureCode::Invalid, message })).await;
        }
        FileOp::Watch { path, .. } if path == "/lies" => "{\"watch\":\"dropped\"}\n".to_owned(),
        FileOp::Watch { .. } => WATCHED.to_owned(),
    };
    tell(format!("{op:?}"));
    let there = line.put(Kind::Stdout, answer.as_bytes()).await;
    if matches!(&op, FileOp::Watch { path, .. } if path == "/stays") {
        while line.hear().await.is_some() {}
        tell("watches no more".to_owned());
    } else if there {
        line.exit(0).await;
    }
}

/// What the fake's files do.
const WATCHED: &str = "{\"watch\":\"watching\"}
{\"watch\":\"moved\",\"from\":\"a\",\"to\":\"b\",\"lossy\":false,\"directory\":true}
";

/// A process by its name; `None` when the daemon has hung up before its end.
async fn process(line: &mut Line, exec: &enisle_guest_proto::Exec) -> Option<()> {
    match exec.argv[0].as_str() {
        "cat" => {
            while let Some(bytes) = line.input().await? {
                line.put(Kind::Stdout, &bytes).await.then_some(())?;
            }
            line.exit(0).await;
        }
        "binary" => {
            line.put(Kind::Stdout, &[0xff, 0]).await.then_some(())?;
            line.put(Kind::Stderr, "ü".as_bytes()).await.then_some(())?;
            line.exit(3).await;
        }
        "flood" => {
            // An odd byte first, so that a cut at an even place goes through a character.
            line.put(Kind::Stdout, b".").await.then_some(())?;
            for _ in 0..300 {
                line.put(Kind::Stdout, "ü".repeat(2500).as_bytes()).await.then_some(())?;
            }
            line.exit(0).await;
        }
        _ => {
            let limit = Duration::from_millis(exec.timeout_ms?);
            let hung_up = timeout(limit, async { while line.hear().await.is_some() {} }).await.is_ok();
            (!hung_up).then_some(())?;
            line.say(&Control::Exit { code: 137, signal: Some(9), timed_out: true }).await;
        }
    }
    Some(())
}
