//! [`fuzz::reservation_commands`] for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::reservation_commands(data));
