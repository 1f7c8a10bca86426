//! Fuzz targets as plain functions. Each takes any bytes and panics when an invariant is violated.
//!
//! libFuzzer searches for such bytes:
//!
//! ```text
//! mkdir -p target/found
//! CARGO_PROFILE_RELEASE_LTO=off cargo +nightly fuzz run --features libfuzzer TARGET target/found fuzz/corpus/TARGET
//! ```
//!
//! AddressSanitizer does not link with the LTO of the release profile. The fuzzed code has no `unsafe`, and
//! `--sanitizer none` makes it several times as fast.
//!
//! libFuzzer writes new inputs to the first directory. The committed corpora, in `corpus/<target>/`, have valid
//! conversations, one violation of each rule, and the few inputs (`found-*`) with the most additional coverage.
//! `cargo test -p fuzz` runs every target over its corpus, with any toolchain.
#![forbid(unsafe_code)]

mod formats;
mod iscsi;
mod reservations;
mod streams;

pub use formats::{parameter_list, returned_data, sense, transport_id};
pub use iscsi::{disk_commands, iscsi_login, iscsi_session};
pub use reservations::{reservation_commands, reservation_record};
pub use streams::{helper_stream, request_stream, response_stream};

/// Checks some bytes. Panics when an invariant is violated.
pub type Target = fn(&[u8]);

/// Every target, with the name of its program and its corpus.
pub const TARGETS: [(&str, Target); 12] = [
    ("request_stream", request_stream),
    ("response_stream", response_stream),
    ("helper_stream", helper_stream),
    ("parameter_list", parameter_list),
    ("returned_data", returned_data),
    ("transport_id", transport_id),
    ("sense", sense),
    ("reservation_commands", reservation_commands),
    ("reservation_record", reservation_record),
    ("iscsi_login", iscsi_login),
    ("iscsi_session", iscsi_session),
    ("disk_commands", disk_commands),
];
