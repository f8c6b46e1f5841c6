//! The server on a loopback port, with a client that does what no real one would.

use super::keys::tests::{keys, of_others, private};
use super::*;
use crate::fault::FaultPlan;
use crate::parts::fake::Guest;
use crate::vm::tests::{Bench, bench};
use enisle_api::CreateVm;
use enisle_vmm::{Console, ConsoleSpec};
use russh::client::{self, AuthResult, Handle};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{ChannelMsg, Disconnect};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(30);

struct Rig {
    bench: Bench,
    keys: Arc<Keys>,
    server: Option<Server>,
    at: SocketAddr,
    host_key: PublicKey,
    dir: tempfile::TempDir,
}

async fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(Guest::Honest, FaultPlan::default());
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), dir.path()).await.unwrap();
    let at = listener.address();
    let host_key = host_key::load_or_make(dir.path()).unwrap().public_key().clone();
    let keys = keys();
    let server = Some(serve(listener, Arc::clone(&keys), Arc::clone(&bench.registry)));
    Rig { bench, keys, server, at, host_key, dir }
}

/// Accepts the one host key there is.
struct Pinned(PublicKey);

impl client::Handler for Pinned {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else { return Ok(false) };
        Ok(key.key_data() == self.0.key_data())
    }
}

impl Rig {
    async fn connect(&self) -> Handle<Pinned> {
        self.connect_as(client::Config::default()).await
    }

    async fn connect_as(&self, config: client::Config) -> Handle<Pinned> {
        let pinned = Pinned(self.host_key.clone());
        timeout(SOON, client::connect(Arc::new(config), self.at, pinned)).await.unwrap().unwrap()
    }

    async fn log_in(&self, user: &str, seed: u8) -> Handle<Pinned> {
        let mut client = self.connect().await;
        assert!(offer(&mut client, user, private(seed, "")).await.success());
        client
    }

    /// A VM with a console, whose guest's end this is.
    async fn guest(&self) -> UnixStream {
        let (guest, host) = UnixStream::pair().unwrap();
        let console =
            Console::over(&ConsoleSpec::at(self.dir.path().join("console.log")), host).await.unwrap();
        *self.bench.parts.console.lock().unwrap() = Some(console);
        let wait = CreateVm { wait: true, ..CreateVm::default() };
        self.bench.registry.start_and_wait(&wait).await.unwrap();
        guest
    }
}

async fn offer(client: &mut Handle<Pinned>, user: &str, key: PrivateKey) -> AuthResult {
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    timeout(SOON, client.authenticate_publickey(user, key)).await.unwrap().unwrap()
}

/// Everything that a channel shows until it ends or `enough` is in it; and its exit status.
async fn shown_by(channel: &mut russh::Channel<client::Msg>, enough: &str) -> (String, Option<u32>) {
    let (mut text, mut status) = (Vec::new(), None);
    let read = async {
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => text.extend(data),
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                ChannelMsg::Close => break,
                _ => {}
            }
            if !enough.is_empty() && String::from_utf8_lossy(&text).contains(enough) {
                break;
            }
        }
    };
    timeout(SOON, read).await.unwrap();
    (String::from_utf8_lossy(&text).into_owned(), status)
}

async fn terminal(client: &Handle<Pinned>) -> russh::Channel<client::Msg> {
    let channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    channel.request_shell(true).await.unwrap();
    channel
}

#[tokio::test]
async fn passwords_and_unknown_keys_are_refused_slowly_and_a_known_key_logs_in() {
    let rig = rig().await;
    let mut client = rig.connect().await;
    let begun = Instant::now();
    let password = timeout(SOON, client.authenticate_password("root", "secret")).await.unwrap().unwrap();
    let AuthResult::Failure { remaining_methods, .. } = password else { panic!("a password logged in") };
    assert_eq!(remaining_methods[..], [russh::MethodKind::PublicKey]);
    assert!(!offer(&mut client, "root", private(9, "")).await.success());
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    // The same connection: a control that keys are looked at, at all.
    assert!(offer(&mut client, "menu", private(1, "")).await.success());
}

#[tokio::test]
async fn attempts_are_bounded() {
    let rig = rig().await;
    let mut client = rig.connect().await;
    let tries = async {
        for seed in 20..40 {
            let key = PrivateKeyWithHashAlg::new(Arc::new(private(seed, "")), None);
            match client.authenticate_publickey("root", key).await {
                Ok(AuthResult::Failure { .. }) => {}
                Ok(AuthResult::Success) => panic!("an unknown key logged in"),
                Err(_) => return seed - 20,
            }
        }
        20
    };
    let tries = timeout(SOON, tries).await.unwrap();
    // The client counts the server's good-bye as one more refusal.
    assert!((8..=9).contains(&tries), "{tries}");
}

#[tokio::test]
async fn strangers_beyond_the_bound_are_sent_away_and_others_still_come_in() {
    let rig = rig().await;
    let mut silent = Vec::new();
    for _ in 0..6 {
        let mut stream = tokio::net::TcpStream::connect(rig.at).await.unwrap();
        let mut banner = [0; 8];
        timeout(SOON, stream.read_exact(&mut banner)).await.unwrap().unwrap();
        assert_eq!(&banner, b"SSH-2.0-");
        silent.push(stream);
    }
    let mut one_more = tokio::net::TcpStream::connect(rig.at).await.unwrap();
    let mut nothing = Vec::new();
    let read = timeout(SOON, one_more.read_to_end(&mut nothing)).await.unwrap();
    assert!(read.is_err() || nothing.is_empty(), "{nothing:?}");
    drop(silent);
    let config = Arc::new(client::Config::default());
    let come_in = async {
        // The places are free once the server has seen the ends.
        while client::connect(Arc::clone(&config), rig.at, Pinned(rig.host_key.clone())).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, come_in).await.unwrap();
}

#[tokio::test]
async fn commands_subsystems_and_forwarding_are_refused() {
    let rig = rig().await;
    let client = rig.log_in("menu", 1).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "id").await.unwrap();
    let (said, status) = shown_by(&mut channel, "").await;
    assert!(said.contains("commands and subsystems are not run here"), "{said}");
    assert_eq!(status, Some(1));
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "sftp").await.unwrap();
    assert!(shown_by(&mut channel, "").await.0.contains("not run here"));
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_shell(true).await.unwrap();
    assert!(shown_by(&mut channel, "").await.0.contains("needs a terminal"));
    assert!(client.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1).await.is_err());
    assert!(client.channel_open_direct_streamlocal("/run/enisle/api.sock").await.is_err());
    assert!(client.tcpip_forward("127.0.0.1", 0).await.is_err());
    let mut channel = client.channel_open_session().await.unwrap();
    channel.agent_forward(true).await.unwrap();
    channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await.unwrap();
    channel.set_env(true, "LD_PRELOAD", "x").await.unwrap();
    channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    let mut answers = Vec::new();
    while answers.len() < 4 {
        match timeout(SOON, channel.wait()).await.unwrap().unwrap() {
            ChannelMsg::Success => answers.push(true),
            ChannelMsg::Failure => answers.push(false),
            _ => {}
        }
    }
    assert_eq!(answers, [false, false, false, true], "agent, X11, environment; a terminal is the control");
    // The control: a session may be opened on the same connection.
    let mut menu = terminal(&client).await;
    assert!(shown_by(&mut menu, "there is no microVM").await.0.contains("q quit"));
}

#[tokio::test]
async fn the_menu_shows_what_the_key_opens_and_follows_what_happens() {
    let rig = rig().await;
    let everything = rig.log_in("ann", 1).await;
    let others = rig.log_in("carl", 3).await;
    let (mut menu, mut blind) = (terminal(&everything).await, terminal(&others).await);
    shown_by(&mut menu, "there is no microVM").await;
    shown_by(&mut blind, "there is no microVM").await;
    let wait = CreateVm { wait: true, ..CreateVm::default() };
    rig.bench.registry.start_and_wait(&wait).await.unwrap();
    shown_by(&mut menu, "agents-1  running").await;
    // Asked for by a key that does not open its group, it is as if it were not there.
    let hidden = rig.log_in("agents-1", 3).await;
    let (said, status) = shown_by(&mut terminal(&hidden).await, "").await;
    assert!(said.contains("no microVM \"agents-1\" for this key") && status == Some(1), "{said}");
    let absent = rig.log_in("agents-7", 1).await;
    assert!(shown_by(&mut terminal(&absent).await, "").await.0.contains("no microVM \"agents-7\""));
    blind.data(&b"j"[..]).await.unwrap();
    assert!(!shown_by(&mut blind, "q quit").await.0.contains("agents-1"));
    menu.data(&b"s"[..]).await.unwrap();
    shown_by(&mut menu, "stop agents-1?").await;
    menu.data(&b"y"[..]).await.unwrap();
    shown_by(&mut menu, "there is no microVM").await;
    assert!(rig.bench.registry.get("agents-1").is_err());
    menu.data(&b"q"[..]).await.unwrap();
    assert_eq!(shown_by(&mut menu, "").await.1, Some(0));
}

/// Keys follow the file for those who are in as well: at a console, in the menu, and for a connection's next session.
#[tokio::test]
async fn a_key_that_left_the_file_ends_what_was_begun_with_it() {
    let rig = rig().await;
    let _guest = rig.guest().await;
    let (bob, ann) = (rig.log_in("agents-1", 2).await, rig.log_in("menu", 1).await);
    let (mut console, mut menu) = (terminal(&bob).await, terminal(&ann).await);
    shown_by(&mut console, "you write").await;
    shown_by(&mut menu, "agents-1").await;
    // Bob's key stays, for another group alone; Ann's goes.
    rig.keys.renew(&of_others(2));
    let (said, _) = shown_by(&mut console, "").await;
    assert!(said.contains("this key does not open agents-1 any more"), "{said:?}");
    let (said, _) = shown_by(&mut menu, "").await;
    assert!(said.contains("this key is not in the file any more"), "{said:?}");
    let (said, _) = shown_by(&mut terminal(&bob).await, "").await;
    assert!(said.contains("there is no microVM"), "{said:?}");
    assert!(ann.channel_open_session().await.is_err(), "nothing more over a connection that is still there");
    assert!(!offer(&mut rig.connect().await, "menu", private(1, "")).await.success());
}

#[tokio::test]
async fn a_root_shell_comes_through_the_agent_and_goes_back_to_the_menu() {
    let rig = rig().await;
    let wait = CreateVm { wait: true, ..CreateVm::default() };
    rig.bench.registry.start_and_wait(&wait).await.unwrap();
    let client = rig.log_in("menu", 1).await;
    let mut menu = terminal(&client).await;
    shown_by(&mut menu, "agents-1  running").await;
    menu.data(&b"r"[..]).await.unwrap();
    shown_by(&mut menu, "root's shell in agents-1").await;
    menu.data(&b"\x1dd"[..]).await.unwrap();
    shown_by(&mut menu, "NAME").await;
}

#[tokio::test]
async fn the_servers_end_is_said_and_is_over_in_time_also_with_a_client_that_does_not_read() {
    let mut rig = rig().await;
    let client = rig.log_in("menu", 1).await;
    let mut menu = terminal(&client).await;
    shown_by(&mut menu, "there is no microVM").await;
    let deaf = rig.log_in("menu", 1).await;
    let _unread = terminal(&deaf).await;
    let closing = tokio::spawn(rig.server.take().unwrap().close());
    let (said, _) = shown_by(&mut menu, "").await;
    assert!(said.contains("the daemon stops; good-bye"), "{said}");
    timeout(SOON, closing).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(rig.at).await.is_err());
    let _ = client.disconnect(Disconnect::ByApplication, "", "").await;
}

#[tokio::test]
async fn who_does_not_read_holds_nobody_up_and_is_told_what_it_missed() {
    let rig = rig().await;
    let mut guest = rig.guest().await;
    let client = rig.log_in("agents-1", 1).await;
    let mut quick = terminal(&client).await;
    shown_by(&mut quick, "you write").await;
    // A terminal that takes 2 KiB and then nothing more.
    let small = client::Config { window_size: 2048, channel_buffer_size: 1, ..client::Config::default() };
    let mut client = rig.connect_as(small).await;
    assert!(offer(&mut client, "agents-1", private(2, "")).await.success());
    let mut slow = terminal(&client).await;
    shown_by(&mut slow, "ann@office writes; you watch").await;
    for line in 0..300 {
        let text = format!("{line:04} {}\r\n", "x".repeat(500));
        guest.write_all(text.as_bytes()).await.unwrap();
        shown_by(&mut quick, &format!("{line:04} ")).await;
    }
    quick.data(&b"ls\r"[..]).await.unwrap();
    let mut typed = [0; 3];
    timeout(SOON, guest.read_exact(&mut typed)).await.unwrap().unwrap();
    assert_eq!(&typed, b"ls\r", "the console is the writer's all the time");
    let (missed, _) = shown_by(&mut slow, "0299 ").await;
    assert!(missed.contains("pieces of output were skipped"), "{missed}");
    drop(guest);
    let (last, status) = shown_by(&mut quick, "").await;
    assert!(last.contains("agents-1 has ended") && status == Some(0), "{last}");
}

#[tokio::test]
async fn a_guest_that_does_not_read_is_left_all_the_same() {
    let rig = rig().await;
    let _guest = rig.guest().await;
    let client = rig.log_in("agents-1", 1).await;
    let mut channel = terminal(&client).await;
    shown_by(&mut channel, "you write").await;
    let paste = vec![b'x'; 16 << 10];
    let typing = async {
        loop {
            channel.data(&paste[..]).await.unwrap();
            tokio::task::yield_now().await;
            while let Ok(Some(message)) = timeout(Duration::from_millis(1), channel.wait()).await {
                if let ChannelMsg::Data { data } = message
                    && String::from_utf8_lossy(&data).contains("does not read its console")
                {
                    return;
                }
            }
        }
    };
    timeout(SOON, typing).await.unwrap();
    channel.data(&b"\x1dd"[..]).await.unwrap();
    assert_eq!(shown_by(&mut channel, "").await.1, Some(0));
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_cut_off_in_time() {
    let rig = rig().await;
    let begun = tokio::time::Instant::now();
    let mut silent = tokio::net::TcpStream::connect(rig.at).await.unwrap();
    let mut said = Vec::new();
    // No time-out of ours: the clock stands still until nothing but a deadline is left to wait for.
    silent.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"SSH-2.0-Enisle\r\n");
    assert!(begun.elapsed() >= Duration::from_secs(30), "{:?}", begun.elapsed());
}
