//! Fuzz targets, as plain functions: each takes any bytes and panics when a promise is broken.
//!
//! libFuzzer looks for such bytes:
//!
//! ```text
//! mkdir -p target/found
//! CARGO_PROFILE_RELEASE_LTO=off cargo +nightly fuzz run --features libfuzzer TARGET target/found fuzz/corpus/TARGET
//! ```
//!
//! (AddressSanitizer does not link with the LTO of the release profile. No code that is fuzzed is unsafe: with
//! `--sanitizer none` it is several times as fast.)
//!
//! What is new goes to the first directory. The corpora that are kept, in `corpus/<target>/`, are conversations as they
//! happen, each rule broken once, and the few findings (`found-*`) that reach most beyond these; `cargo test -p fuzz`
//! runs every target over its corpus, with any toolchain.
#![forbid(unsafe_code)]

mod reservations;
mod streams;
mod words;

pub use reservations::{reservation_commands, reservation_record};
pub use streams::{helper_stream, request_stream, response_stream};
pub use words::{parameter_list, returned_data, sense, transport_id};

/// Looks at some bytes.
pub type Target = fn(&[u8]);

/// Every target, by the name of its program and of its corpus.
pub const TARGETS: [(&str, Target); 9] = [
    ("request_stream", request_stream),
    ("response_stream", response_stream),
    ("helper_stream", helper_stream),
    ("parameter_list", parameter_list),
    ("returned_data", returned_data),
    ("transport_id", transport_id),
    ("sense", sense),
    ("reservation_commands", reservation_commands),
    ("reservation_record", reservation_record),
];
