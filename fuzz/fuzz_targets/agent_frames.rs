//! `cargo fuzz run agent_frames`: see [`enisle_fuzz::agent_frames`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| enisle_fuzz::agent_frames(data));
