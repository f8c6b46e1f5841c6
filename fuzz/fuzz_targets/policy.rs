//! `cargo fuzz run policy`: see [`enisle_fuzz::policy`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| enisle_fuzz::policy(data));
