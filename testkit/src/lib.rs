//! Worlds for tests: an Internet, a LAN and a host, made of network namespaces that vanish with
//! the process, and the instruments to look at them.
//!
//! Owns: namespaces without names, listeners, probes, sniffers, a guest made of a tap descriptor,
//! leak listings. Refuses: anything of the product (no crate of ours is a dependency, so the tests
//! cannot agree with the code by sharing its mistakes), and the machine's own network: every
//! function that changes one works inside a namespace made here.
//!
//! Needs root, and `ip` for building a world; fails, never skips, where they are missing.

pub mod flow;
pub mod frame;
pub mod listing;
pub mod netns;
pub mod probe;
pub mod queue;
pub mod server;
pub mod sniff;
pub mod tap;
pub mod world;

pub use netns::Netns;
pub use world::World;
