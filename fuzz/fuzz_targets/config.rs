//! `cargo fuzz run config`: see [`enisle_fuzz::config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| enisle_fuzz::config(data));
