//! Fuzz targets, as plain functions: each takes any bytes and panics when a promise is broken.
//!
//! libFuzzer looks for such bytes:
//!
//! ```text
//! cargo +nightly fuzz run --features libfuzzer --sanitizer none request_stream
//! ```
//!
//! What it found, and seeds for what it might find, is kept in `corpus/<target>/`; `cargo test -p fuzz` runs every target
//! over its corpus, with any toolchain. No code here is unsafe, so sanitizers have nothing to look for.
#![forbid(unsafe_code)]

mod streams;
mod words;

pub use streams::{helper_stream, request_stream, response_stream};
pub use words::{parameter_list, returned_data, sense, transport_id};

/// Looks at some bytes.
pub type Target = fn(&[u8]);

/// Every target, by the name of its program and of its corpus.
pub const TARGETS: [(&str, Target); 7] = [
    ("request_stream", request_stream),
    ("response_stream", response_stream),
    ("helper_stream", helper_stream),
    ("parameter_list", parameter_list),
    ("returned_data", returned_data),
    ("transport_id", transport_id),
    ("sense", sense),
];
