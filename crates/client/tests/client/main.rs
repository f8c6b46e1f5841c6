//! The client against a daemon double.

#[path = "../fake_daemon/mod.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod fake_daemon;
mod framing;
mod requests;
mod streams;
mod tls;
