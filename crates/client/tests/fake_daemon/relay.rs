//! Between a WebSocket and an operation: the daemon's side of the flow control.

use super::guest::{self, Input, Operation, Source};
use super::{Shared, data, text};
use axum::extract::ws::{Message, WebSocket};
use enisle_api::stream::{FromDaemon, MAX_DATA, STDERR, STDIN, STDOUT, ToDaemon, WINDOW};
use futures_util::{SinkExt, StreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

struct Flow {
    messages: UnboundedSender<Message>,
    /// Credit for stdout and stderr.
    credit: [Arc<Semaphore>; 2],
    /// Input received and not given back.
    owed: Arc<AtomicU32>,
}

pub(crate) async fn run(socket: WebSocket, operation: Operation, shared: &Shared) {
    let Operation { pid, input, outputs, end, terminal } = operation;
    let (mut sink, mut source) = socket.split();
    let (messages, mut queue) = unbounded_channel();
    let credit = [(); 2].map(|()| Arc::new(Semaphore::new(WINDOW as usize)));
    let flow = Flow { messages: messages.clone(), credit, owed: Arc::default() };
    let sender = tokio::spawn(async move {
        while let Some(message) = queue.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    });
    let _ = messages.send(text(&FromDaemon::Opened { pid }));
    let (input_in, input_queue) = unbounded_channel();
    let writer = tokio::spawn(write(input, input_queue, flow.owed.clone(), messages.clone()));
    let mut copies = JoinSet::new();
    for (stream, output) in outputs {
        let credit = flow.credit[usize::from(stream - STDOUT)].clone();
        copies.spawn(copy(stream, output, credit, messages.clone()));
    }
    let on_terminal = terminal.is_some();
    let mut finished = Box::pin(async move {
        let exit = end.await;
        if on_terminal {
            // A terminal has no end of its own: what is in it is read in the blink after the exit.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        } else {
            while copies.join_next().await.is_some() {}
        }
        if pid.is_none() {
            // A connection ends when both directions have.
            let _ = writer.await;
        }
        exit
    });
    let mut input_in = Some(input_in);
    loop {
        tokio::select! {
            exit = &mut finished => {
                let _ = messages.send(text(&exit));
                break;
            }
            message = source.next() => match message {
                Some(Ok(Message::Binary(bytes))) => flow.receive(&bytes, &mut input_in, shared),
                Some(Ok(Message::Text(control))) => {
                    let control = serde_json::from_str(&control).unwrap();
                    flow.control(control, &mut input_in, (pid, terminal.as_ref()), shared);
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    shared.seen.lock().unwrap().abandoned += 1;
                    if let Some(pid) = pid {
                        guest::signal(pid, 9);
                    }
                    break;
                }
            },
        }
    }
    drop((messages, flow, input_in, finished));
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), sender).await;
}

type Chunks = Option<UnboundedSender<Vec<u8>>>;

impl Flow {
    fn receive(&self, bytes: &[u8], input: &mut Chunks, shared: &Shared) {
        let length = u32::try_from(bytes.len() - 1).unwrap();
        let owed = self.owed.fetch_add(length, Ordering::SeqCst) + length;
        let mut seen = shared.seen.lock().unwrap();
        if bytes[0] != STDIN || length as usize > MAX_DATA || owed > WINDOW || input.is_none() {
            seen.violations.push(format!(
                "{length} bytes on stream {}, {owed} owed, open: {}",
                bytes[0],
                input.is_some()
            ));
        }
        if let Some(input) = input {
            // The operation may have closed its input.
            let _ = input.send(bytes[1..].to_vec());
        }
    }

    fn control(
        &self,
        control: ToDaemon,
        input: &mut Chunks,
        (pid, terminal): (Option<u32>, Option<&std::os::fd::OwnedFd>),
        shared: &Shared,
    ) {
        let mut seen = shared.seen.lock().unwrap();
        match control {
            ToDaemon::Window { stream: stream @ (STDOUT | STDERR), bytes } => {
                let credit = &self.credit[usize::from(stream - STDOUT)];
                credit.add_permits(bytes as usize);
                if credit.available_permits() > WINDOW as usize {
                    seen.violations.push(format!("credit of {} on {stream}", credit.available_permits()));
                }
            }
            ToDaemon::Window { stream, .. } => seen.violations.push(format!("credit for stream {stream}")),
            ToDaemon::Eof {} => *input = None,
            ToDaemon::Resize { rows, cols } => {
                seen.sizes.push((rows, cols));
                if let Some(terminal) = terminal {
                    guest::resize(terminal, rows, cols);
                }
            }
            ToDaemon::Signal { signal } => {
                seen.signals.push(signal);
                if let Some(pid) = pid {
                    guest::signal(pid, signal);
                }
            }
        }
    }
}

async fn write(
    mut input: Input,
    mut chunks: UnboundedReceiver<Vec<u8>>,
    owed: Arc<AtomicU32>,
    messages: UnboundedSender<Message>,
) {
    while let Some(chunk) = chunks.recv().await {
        if input.write_all(&chunk).await.is_ok() {
            let _ = input.flush().await;
        }
        let bytes = u32::try_from(chunk.len()).unwrap();
        owed.fetch_sub(bytes, Ordering::SeqCst);
        let _ = messages.send(text(&FromDaemon::Window { stream: STDIN, bytes }));
    }
    let _ = input.shutdown().await;
}

async fn copy(stream: u8, mut output: Source, credit: Arc<Semaphore>, messages: UnboundedSender<Message>) {
    let mut buffer = vec![0; MAX_DATA];
    loop {
        let first = credit.acquire().await.unwrap();
        let most = buffer.len().min(credit.available_permits() + 1);
        let bytes = guest::read(&mut output, &mut buffer[..most]).await;
        if bytes == 0 {
            let _ = messages.send(text(&FromDaemon::Eof { stream }));
            return;
        }
        first.forget();
        credit.try_acquire_many(u32::try_from(bytes - 1).unwrap()).unwrap().forget();
        let _ = messages.send(data(stream, &buffer[..bytes]));
    }
}
