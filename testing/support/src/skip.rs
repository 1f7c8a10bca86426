//! Tests that this machine or this user cannot run.

/// Whether the test runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns from the test and prints the reason as `skipped: …`, which `cargo xtask test` reports.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("skipped: {}", format_args!($($reason)*));
        return Default::default();
    }};
}

/// Returns from the test unless it runs as root; the argument says why the test needs root.
#[macro_export]
macro_rules! require_root {
    ($reason:expr) => {
        if !$crate::is_root() {
            $crate::skip!("needs root: {}", $reason);
        }
    };
}
