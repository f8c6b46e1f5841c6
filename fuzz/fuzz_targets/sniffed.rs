//! `cargo fuzz run sniffed`: see [`enisle_fuzz::sniffed`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| enisle_fuzz::sniffed(data));
