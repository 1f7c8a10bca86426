//! [`fuzz::returned_data`] for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::returned_data(data));
