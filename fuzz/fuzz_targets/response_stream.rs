//! [`fuzz::response_stream`] for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::response_stream(data));
