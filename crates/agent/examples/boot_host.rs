//! Boots a guest by hand: the daemon's side of the boot connection and one command.
//!
//! `boot_host VSOCK_SOCKET [--leave | --session] [--net MAC ADDRESS/LEN GATEWAY] [--key FILE] [--userdata FILE] [COMMAND…]`
//!
//! Listens on `VSOCK_SOCKET_1024` (start it before the VMM), waits for the guest to be ready, runs
//! COMMAND in it with this process's stdin, and shuts the guest down, unless told to leave it running.
//! `--session` runs the command in a guest that is ready already and touches nothing else. Prints times to stderr.

#[path = "../tests/host/mod.rs"]
mod host;

use anyhow::{Context, bail};
use enisle_agent::boot::link::Link;
use enisle_guest_proto::{
    AGENT_PORT, BootCommand, BootConfig, BootEvent, Control, GuestNet, Hello, Request, VERSION,
};
use host::{Session, exec};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Instant, SystemTime};

#[derive(Default)]
struct Options {
    socket: String,
    net: Option<GuestNet>,
    keys: Vec<String>,
    userdata: Option<String>,
    command: Vec<String>,
    leave: bool,
    session_only: bool,
}

fn main() -> anyhow::Result<()> {
    let options = parse()?;
    if options.session_only {
        std::process::exit(run(&options.socket, &options.command)?);
    }
    let start = Instant::now();
    let path = format!("{}_1024", options.socket);
    // A socket file of an earlier run would be in the way.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| path.clone())?;
    let (stream, _) = listener.accept()?;
    let mut link = Link::from_fd(stream.into());
    let hello: Hello = link.receive()?.control()?;
    eprintln!("{:6.2} s  {hello:?}", start.elapsed().as_secs_f32());
    link.send(&BootConfig {
        version: VERSION,
        hostname: "hand-made-1".to_owned(),
        net: options.net,
        unix_time_ns: u64::try_from(SystemTime::UNIX_EPOCH.elapsed()?.as_nanos())?,
        ssh_keys: options.keys,
    })?;
    wait_for(&mut link, &start, |event| matches!(event, BootEvent::Ready {}))?;
    if let Some(script) = options.userdata {
        link.send(&BootCommand::Userdata { part: script, last: true })?;
        wait_for(&mut link, &start, |event| matches!(event, BootEvent::UserdataDone { .. }))?;
    }
    let code = if options.command.is_empty() { 0 } else { run(&options.socket, &options.command)? };
    eprintln!("{:6.2} s  exit {code}", start.elapsed().as_secs_f32());
    if options.leave {
        std::process::exit(code);
    }
    link.send(&BootCommand::Shutdown {})?;
    while let Ok(frame) = link.receive() {
        eprintln!("{:6.2} s  {:?}", start.elapsed().as_secs_f32(), frame.control::<BootEvent>());
    }
    eprintln!("{:6.2} s  the boot connection ended", start.elapsed().as_secs_f32());
    std::process::exit(code);
}

fn parse() -> anyhow::Result<Options> {
    let mut words = std::env::args().skip(1);
    let mut options = Options { socket: words.next().context("which vsock socket?")?, ..Options::default() };
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "--net" => options.net = Some(network(&value()?, &value()?, &value()?)?),
            "--key" => options.keys.push(std::fs::read_to_string(value()?)?),
            "--leave" => options.leave = true,
            "--session" => options.session_only = true,
            "--userdata" => options.userdata = Some(std::fs::read_to_string(value()?)?),
            _ => {
                options.command.push(word);
                options.command.extend(words);
                break;
            }
        }
    }
    Ok(options)
}

fn network(mac: &str, address: &str, gateway: &str) -> anyhow::Result<GuestNet> {
    let mut bytes = [0; 6];
    for (byte, text) in bytes.iter_mut().zip(mac.split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    let (address, length) = address.split_once('/').context("ADDRESS/LEN")?;
    let gateway = gateway.parse()?;
    Ok(GuestNet {
        mac: bytes,
        address: address.parse()?,
        prefix_len: length.parse()?,
        gateway,
        dns: vec![gateway],
        mtu: 1500,
    })
}

fn wait_for(link: &mut Link, start: &Instant, wanted: impl Fn(&BootEvent) -> bool) -> anyhow::Result<()> {
    loop {
        let event: BootEvent = link.receive()?.control()?;
        eprintln!("{:6.2} s  {event:?}", start.elapsed().as_secs_f32());
        if wanted(&event) {
            return Ok(());
        }
        if let BootEvent::Failed { step, error } = event {
            bail!("{step}: {error}");
        }
    }
}

fn run(socket: &str, command: &[String]) -> anyhow::Result<i32> {
    let mut stream = UnixStream::connect(socket)?;
    // In one write: the proxy does not wait for the rest of a line.
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes())?;
    let mut answer = String::new();
    // The proxy's line is all there is before the first frame of ours.
    BufReader::with_capacity(1, stream.try_clone()?).read_line(&mut answer)?;
    anyhow::ensure!(answer.starts_with("OK "), "the vsock proxy answered {answer:?}");
    let mut session = Session::new(stream);
    let argv: Vec<&str> = command.iter().map(String::as_str).collect();
    let request = Request::Exec(enisle_guest_proto::Exec { cwd: None, ..exec(&argv) });
    let pid = session.open(request).map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    eprintln!("          pid {pid:?}");
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    session.write_all(&input);
    session.end_input();
    let last = session.finish();
    std::io::stdout().write_all(&session.stdout)?;
    std::io::stderr().write_all(&session.stderr)?;
    match last {
        Control::Exit { code, .. } => Ok(code),
        other => bail!("{other:?}"),
    }
}
