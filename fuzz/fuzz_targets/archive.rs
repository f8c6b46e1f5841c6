//! `cargo fuzz run archive`: see [`enisle_fuzz::archive`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| enisle_fuzz::archive(data));
