//! [`fuzz::helper_stream`] for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::helper_stream(data));
