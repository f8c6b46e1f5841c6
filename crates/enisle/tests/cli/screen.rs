//! A terminal as a user has it: the binary's controlling one, its settings and what is on it.

use crate::world::{Running, World, eventually};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};

pub(crate) struct Screen {
    master: File,
    slave: File,
    before: Termios,
    shown: Arc<Mutex<Vec<u8>>>,
    pub(crate) program: Running,
}

impl Screen {
    /// Starts `enisle ARGS` on a terminal of 30 × 90.
    pub(crate) fn start(world: &World, args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = File::options().read(true).write(true).open(name).unwrap();
        let master = File::from(master);
        resize(&master, 30, 90);
        let inner = world.command(args);
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(inner.get_program()).args(inner.get_args()).env_remove("ENISLE_API");
        command.env("TERM", "vt100");
        command.stdin(slave.try_clone().unwrap());
        command.stdout(slave.try_clone().unwrap()).stderr(slave.try_clone().unwrap());
        let program = Running(command.spawn().unwrap());
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, into) = (master.try_clone().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(bytes @ 1..) = reader.read(&mut buffer) {
                into.lock().unwrap().extend_from_slice(&buffer[..bytes]);
            }
        });
        let before = tcgetattr(&slave).unwrap();
        Self { master, slave, before, shown, program }
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        resize(&self.master, rows, cols);
    }

    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until this is on the screen, once more than `expect` has seen it before.
    pub(crate) fn expect(&self, text: &str) {
        eventually(&format!("`{text}` in {:?}", self.shown()), || self.shown().contains(text));
    }

    pub(crate) fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    pub(crate) fn wait_for_raw(&self) {
        eventually("raw mode", || self.is_raw());
    }

    /// The terminal is exactly as it was before the program started.
    pub(crate) fn assert_restored(&self) {
        let now = tcgetattr(&self.slave).unwrap();
        let settings = |t: &Termios| (t.input_modes, t.output_modes, t.control_modes, t.local_modes);
        assert_eq!(settings(&now), settings(&self.before));
    }
}

fn resize(terminal: &File, rows: u16, cols: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}
