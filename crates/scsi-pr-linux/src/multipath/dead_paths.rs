//! Dead paths that a command leaves without a registration.
//!
//! multipathd registers a path when it sees the path come back. It only sees that if it had noticed that the path was dead:
//! multipathd (0.9.4) compares each check with the last one, and reinstates a path that device mapper has failed without a
//! registration if its own last check found the path working. So a path that is dead for less than a polling interval may
//! stay without one, and the guest's writes by it are refused.
//!
//! Here the command does not end before multipathd has noticed. Device mapper's own notice of a failed path makes
//! multipathd look at once.

use std::thread;
use std::time::{Duration, Instant};

use super::daemon::Unanswered;
use super::host::Host;
use super::map::{Map, MapPath};

/// How long multipathd may take to notice; it does within milliseconds.
pub(super) const NOTICE_TIMEOUT: Duration = Duration::from_secs(3);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Paths that multipathd may not register when they come back.
#[derive(Debug)]
pub(super) struct Unnoticed {
    /// The kernel's names of their devices.
    pub(super) paths: Vec<String>,
    /// Why multipathd did not tell.
    pub(super) why: Option<Unanswered>,
}

/// Has multipathd notice that the paths `dead` of `map` are dead.
///
/// # Errors
///
/// The paths of which multipathd does not know it after `timeout`.
pub(super) fn have_noticed(host: &dyn Host, map: &Map, dead: &[&MapPath], timeout: Duration) -> Result<(), Unnoticed> {
    let end = Instant::now() + timeout;
    let mut is_failed = false;
    loop {
        let names = |paths: &[&MapPath]| paths.iter().map(|path| path.name.clone()).collect();
        let working = match host.working_paths() {
            Ok(working) => working,
            Err(why) => return Err(Unnoticed { paths: names(dead), why: Some(why) }),
        };
        let unnoticed: Vec<&MapPath> = dead.iter().copied().filter(|path| working.contains(&path.name)).collect();
        if unnoticed.is_empty() {
            return Ok(());
        }
        if !is_failed {
            for path in &unnoticed {
                // It fails when the path is no path of the map any more: multipathd registers what it adds.
                let _ = host.fail_path(map, path);
            }
            is_failed = true;
        } else if Instant::now() >= end {
            return Err(Unnoticed { paths: names(&unnoticed), why: None });
        }
        thread::sleep(POLL_INTERVAL);
    }
}
