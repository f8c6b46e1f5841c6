//! The binary as users run it, against a daemon double.

mod context;
mod cp;
mod doctor;
mod exec;
#[path = "../../../client/tests/fake_daemon/mod.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod fake_daemon;
mod forward;
mod screen;
mod shell;
mod usage;
mod world;
