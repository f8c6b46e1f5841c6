//! Lines for people on the guest's console, which the host keeps as the VM's log.
//!
//! The console is opened for each line: systemd hangs it up when it starts a getty, and a
//! descriptor from before would be dead.

use std::fmt::Arguments;
use std::fs::OpenOptions;
use std::io::Write;

/// Writes one line, `enisle: …`. A console that cannot be written to loses the line.
pub fn say(line: Arguments<'_>) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        // One write: lines of other writers stay whole. There is nobody to tell of a failure.
        let _ = console.write_all(format!("enisle: {line}\r\n").as_bytes());
    }
}
