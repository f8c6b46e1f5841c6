//! The contract, row by row, against the real engine in real namespaces.
//!
//! Each test builds its own world (an Internet, a LAN, a host), makes slots in it, and plays the
//! guest itself on the tap's descriptor, so it can send any frame. No "refused" without a positive
//! control in the same test; where it can be, it is asserted three ways: the answer the guest got,
//! the judge's counters, a sniffer on the far side. Needs root; fails without, never skips.

mod bridge;
mod bus;
mod change;
mod chaos;
mod explain;
mod firewalld;
mod firewalls;
mod floods;
mod forged_frames;
mod forged_packets;
mod gateway;
mod host_table;
mod hosts;
mod inbound;
mod interfaces;
mod interference;
mod internet;
mod lan;
mod limits;
mod live;
mod measure;
mod network_manager;
mod networkd;
mod recycle;
mod reports;
mod reuse;
mod rig;
mod shaping;
mod siblings;
