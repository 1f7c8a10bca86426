//! The number of descriptors that a daemon may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What every daemon has open besides what is counted, and more: standard streams, what it inherited, files of the log, of
/// a store and of sysfs.
const OTHERS: u64 = 32;

/// Raises the limit on open files to what is allowed, and says how many clients may be connected then, of whom each takes
/// `each` descriptors at the most (its connection, the device of its command …) while the daemon itself keeps `own` open. A
/// descriptor that does not fit is lost, and with it the connection on which it came, while a client that is not accepted
/// just waits.
pub fn raise(each: u64, own: u64) -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Raising the soft limit up to the hard one is allowed to everybody. Where a sandbox forbids it, the old limit is
    // enough to serve.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    clients_within(if raised.is_ok() { limit.maximum } else { limit.current }, each, own)
}

/// How many clients there is room for within this many descriptors, `None` for any number: one at least.
fn clients_within(descriptors: Option<u64>, each: u64, own: u64) -> usize {
    let clients = descriptors.map(|descriptors| descriptors.saturating_sub(OTHERS + own) / each.max(1));
    clients.map_or(usize::MAX, |clients| usize::try_from(clients).unwrap_or(usize::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_room_for_what_it_takes() {
        for (descriptors, each, own, clients) in [
            (0, 2, 0, 1),
            (32, 2, 0, 1),
            (36, 2, 0, 2),
            (1024, 2, 0, 496),
            (1024, 3, 0, 330),
            (1024, 2, 300, 346),
            (1024, 2, 2000, 1),
            (1024, 0, 0, 992),
            (1 << 20, 2, 0, 524_272),
        ] {
            assert_eq!(clients_within(Some(descriptors), each, own), clients, "{descriptors} {each} {own}");
        }
        assert_eq!(clients_within(None, 2, 0), usize::MAX);
    }
}
