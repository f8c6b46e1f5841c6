//! `cargo fuzz run dns`: see [`enisle_fuzz::dns`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| enisle_fuzz::dns(data));
