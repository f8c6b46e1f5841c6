//! The guest's side of Enisle.
//!
//! Owns: the set-up of a guest from `/init` of the initramfs to the hand-over to the image's own
//! init ([`boot`]), and the server that stays alive beside it ([`server`], [`session`]). Refuses:
//! anything the host decides (addresses, names, keys come with the boot connection).
//!
//! ```text
//! kernel ── /init (PID 1) ── modules ── vsock: Hello, BootConfig ── eth0 ── /dev/vda on / ──┐
//!            ┌───────────────────────────── fork ──────────────────────────────────────────┘
//!            ├─ PID 1: the image's /sbin/init, or the reaper of an image that has none
//!            └─ "@enisle-agent": vsock port 1024, one thread a session
//! ```

pub mod boot;
pub mod console;
pub mod server;
pub mod session;
pub mod sys;
pub mod users;
