//! The number of descriptors that a daemon may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than the other descriptors of a daemon: standard streams, inherited descriptors, files of the log, of a store and of
/// sysfs.
const OTHERS: u64 = 32;

/// Raises the limit on open files to the hard limit. Gives the number of clients for which there is room then: each takes at
/// most `each` descriptors (its connection, the device of its command), and the daemon itself keeps `own` open.
///
/// More clients would make the daemon lose the descriptors that they pass.
pub fn raise(each: u64, own: u64) -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Every process may raise the soft limit to the hard one. Where a sandbox forbids it, the old limit is enough.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    clients_within(if raised.is_ok() { limit.maximum } else { limit.current }, each, own)
}

/// The number of clients, at least one, for which `descriptors` are enough; `None` is no limit.
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
