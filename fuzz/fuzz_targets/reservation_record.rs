//! [`fuzz::reservation_record`] for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::reservation_record(data));
