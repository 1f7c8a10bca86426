//! A log that tests can read.

pub(crate) use testing_support::Recorder as Log;
