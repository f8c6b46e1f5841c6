//! The DNS forwarder on real sockets of the loopback interface: guests by hickory, upstreams that
//! answer, hang and lie. Nothing leaves the machine.

mod fake;
mod forwarding;
mod hostile;
mod limits;
mod policy;
mod rig;
mod stream;
