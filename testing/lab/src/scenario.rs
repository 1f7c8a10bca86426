//! [`Scenario`]: a named group of checks.

use anyhow::Result;

use crate::lab::Lab;
use crate::report::Report;

/// A scenario.
pub(crate) struct Scenario {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// The boot that it runs in. Scenarios of one boot share a guest and run one after the other.
    pub(crate) boot: &'static str,
    /// The behaviour that it proves.
    pub(crate) purpose: &'static str,
    /// Makes its checks. An error counts as one failed check.
    pub(crate) run: fn(&mut Lab, &mut Report) -> Result<()>,
}
