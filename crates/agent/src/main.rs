//! `enisle-agent`: `/init` of the initramfs as PID 1, the server of the guest when it was started
//! by that one. As any other process it does nothing.

use enisle_agent::{boot, server};
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return boot::run();
    }
    let arguments: Vec<String> = std::env::args().collect();
    match server::Arguments::parse(&arguments) {
        Some(arguments) => server::run(arguments),
        None => {
            eprintln!("enisle-agent {} runs inside a microVM, as /init", env!("CARGO_PKG_VERSION"));
            ExitCode::from(2)
        }
    }
}
