//! What the fuzzers drive: one function for every parser that reads bytes which somebody else chose.
//!
//! Owns: what must hold for *any* input, said as assertions. Refuses: making inputs. libFuzzer makes
//! them (`cargo fuzz run NAME`, `./test --long`), and so does `tests/replay.rs`, a little, in every run
//! of the tests.

use enisle_archive::{UnpackOptions, unpack};
use enisle_daemon::config::{self, AnyHost, Look};
use enisle_guest_proto::{BootEvent, Control, Decoder, Hello, MAX_FRAME, Parts, Reply};
use enisle_net::policy::{PolicySpec, Proto, Rule, compile};

/// A name, as `cargo fuzz run` takes it, and what reads the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// What is fuzzed.
pub const TARGETS: [Target; 6] = [
    ("agent_frames", agent_frames),
    ("archive", archive),
    ("config", config),
    ("dns", dns),
    ("policy", policy),
    ("sniffed", sniffed),
];

/// What the agent of a hostile guest sends: frames, cut as the first byte says, read as every message.
///
/// # Panics
/// If a frame is larger than the protocol allows, or the two ways to take frames differ.
pub fn agent_frames(data: &[u8]) {
    let Some((cut, wire)) = data.split_first() else { return };
    let mut decoder = Decoder::default();
    for piece in wire.chunks(usize::from(*cut).max(1)) {
        decoder.feed(piece);
        while let Ok(Some(frame)) = decoder.next_frame() {
            assert!(frame.payload.len() < MAX_FRAME, "{} bytes in a frame", frame.payload.len());
            let _ = frame.control::<Hello>();
            let _ = frame.control::<BootEvent>();
            let _ = frame.control::<Reply>();
            let _ = frame.control::<Control>();
        }
    }
    agree(usize::from(*cut).max(1), wire);
}

/// Frames taken whole and frames taken in parts are the same bytes, up to the same mistake.
fn agree(cut: usize, wire: &[u8]) {
    let (mut decoder, mut parts) = (Decoder::default(), Parts::default());
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    for piece in wire.chunks(cut) {
        decoder.feed(piece);
        let wrong = loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => whole.extend_from_slice(&frame.payload),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        parts.room()[..piece.len()].copy_from_slice(piece);
        parts.filled(piece.len());
        let wrong_in_parts = loop {
            match parts.next_part() {
                Ok(Some(part)) => pieces.extend_from_slice(parts.bytes(&part)),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        // Of a frame that is still to come whole, some may have been taken in parts already.
        assert!(pieces.starts_with(&whole), "{} bytes of {}", pieces.len(), whole.len());
        assert_eq!(wrong, wrong_in_parts);
        if wrong.is_some() {
            assert_eq!(pieces.len(), whole.len());
            return;
        }
    }
}

/// An archive from a hostile guest: nothing but the destination changes.
///
/// # Panics
/// If something outside the destination was changed or made, or the disk is full.
pub fn archive(data: &[u8]) {
    let world = tempfile::tempdir().expect("a directory");
    let (inside, outside) = (world.path().join("inside"), world.path().join("outside"));
    std::fs::create_dir(&inside).expect("a directory");
    std::fs::write(&outside, "untouched").expect("a file");
    // To make links that point out is allowed; to write through them is not.
    let _ = unpack(data, &inside, UnpackOptions::default());
    assert_eq!(std::fs::read_to_string(&outside).expect("it is still there"), "untouched");
    let names = std::fs::read_dir(world.path()).expect("it is still there").count();
    assert_eq!(names, 2, "something was made beside the destination");
}

/// The configuration file: a configuration, or a report that can be shown in both its forms.
///
/// # Panics
/// If a refused file has no report.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(errors) = config::parse("fuzz.yaml", text, &AnyHost) {
        assert!(errors.render(Look::Plain).contains("nothing was started"));
        assert!(errors.to_json().as_array().is_some_and(|all| !all.is_empty()));
    }
}

/// DNS: the first half as what a guest asks, the second as what an upstream answers to it.
pub fn dns(data: &[u8]) {
    enisle_daemon::dns::fuzz(data);
}

/// Policy entries as they come over the API, a line each: what is read is written as it was read, and
/// what compiles judges every address.
///
/// # Panics
/// If an entry is not what it is printed as.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let rules: Vec<Rule> = text.lines().take(64).filter_map(|line| line.parse().ok()).collect();
    for rule in &rules {
        assert_eq!(rule.to_string().parse::<Rule>().as_ref(), Ok(rule), "{rule}");
    }
    let (drop, allow) = rules.split_at(rules.len() / 2);
    let spec = PolicySpec { drop: drop.to_vec(), allow: allow.to_vec() };
    if let Ok(policy) = compile(&spec) {
        for rule in &rules {
            let _ = policy.judge(rule.net().addr(), Proto::Tcp, Some(443));
            let _ = policy.judge(rule.net().broadcast(), Proto::Icmp, None);
        }
    }
}

/// Frames from and to a guest as `net verify` reads them off its tap: ARP and everything else.
pub fn sniffed(data: &[u8]) {
    enisle_daemon::fuzz_sniffed(data);
}
