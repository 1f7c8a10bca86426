//! [`fuzz::parameter_list`] for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::parameter_list(data));
