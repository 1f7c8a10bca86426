//! [`fuzz::iscsi_session`] for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::iscsi_session(data));
