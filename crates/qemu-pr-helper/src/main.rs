//! The drop-in daemon.
#![forbid(unsafe_code)]
fn main() {}
