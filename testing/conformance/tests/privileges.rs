//! The privileges that the helper keeps once it serves.

use conformance::sg_io::Reply;
use conformance::{Answer, Helper, Subject, against_each_helper, in_cdb, null};

against_each_helper!(
    root_keeps_one_capability,
    user_keeps_one_capability,
    user_and_group_are_independent,
    no_thread_keeps_privileges,
    command_as_user_reaches_the_device,
    start_without_root_reports_the_reason,
    children_gain_no_privileges,
    system_calls_of_every_thread_are_filtered,
    root_becomes_the_default_user,
    descriptor_limit_is_the_hard_limit,
);

/// CAP_SYS_RAWIO, bit 17: what SG_IO needs to pass PERSISTENT RESERVE on.
const SYS_RAWIO: &str = "0000000000020000";
const NONE: &str = "0000000000000000";

#[track_caller]
fn has_one_capability(helper: &Helper) {
    let status = helper.process().status();
    for (field, expected) in
        [("CapPrm", SYS_RAWIO), ("CapEff", SYS_RAWIO), ("CapInh", NONE), ("CapAmb", NONE), ("CapBnd", NONE)]
    {
        assert_eq!(status[field], expected, "{field}");
    }
    assert_eq!(status["Groups"], "");
}

/// The four user and the four group ids.
fn ids(helper: &Helper) -> (String, String) {
    let status = helper.process().status();
    (status["Uid"].replace('\t', " "), status["Gid"].replace('\t', " "))
}

fn four(uid: &str, gid: &str) -> (String, String) {
    ([uid; 4].join(" "), [gid; 4].join(" "))
}

fn root_keeps_one_capability(subject: &Subject) {
    let helper = subject.serve();
    has_one_capability(&helper);
    assert_eq!(ids(&helper), four("0", "0"));
}

fn user_keeps_one_capability(subject: &Subject) {
    let helper = subject.command().args(["-u", "nobody", "-g", "nogroup"]).serve();
    has_one_capability(&helper);
    assert_eq!(ids(&helper), four("65534", "65534"));
}

fn user_and_group_are_independent(subject: &Subject) {
    let helper = subject.command().args(["-u", "nobody"]).serve();
    assert_eq!(ids(&helper), four("65534", "0"));
    let helper = subject.command().args(["-g", "nogroup"]).serve();
    assert_eq!(ids(&helper), four("0", "65534"));
    has_one_capability(&helper);
}

fn no_thread_keeps_privileges(subject: &Subject) {
    for user in [&[][..], &["-u", "nobody"]] {
        let helper = subject.command().args(user).supervised().serve();
        // While commands run, so that the threads that run them are seen too.
        helper.supervisor().hold();
        let clients: Vec<_> = (0..8).map(|_| helper.connect()).collect();
        clients.iter().for_each(|client| client.request(&in_cdb(0, 8), &[], null()));
        helper.supervisor().wait_for_held(8);
        let threads = helper.process().threads();
        assert!(threads.len() > 8, "{} threads", threads.len());
        let has_more = |field: &str, than: &str| {
            let bits = |hex: &str| u64::from_str_radix(hex, 16).unwrap();
            threads.iter().any(|thread| bits(&thread[field]) & !bits(than) != 0)
        };
        let found = (has_more("CapEff", SYS_RAWIO), has_more("CapBnd", NONE));
        // An ordinary user has no capabilities left on that thread, but programs that it started could.
        assert_eq!(found, subject.differs("privileged-thread", (user.is_empty(), true), (false, false)), "{user:?}");
    }
}

fn command_as_user_reaches_the_device(subject: &Subject) {
    let helper = subject.command().args(["-u", "nobody"]).supervised().serve();
    helper.supervisor().reply_with(Reply::data(&[1, 2, 3]));
    assert_eq!(helper.connect().run(&in_cdb(0, 8), &[], null()), Answer::good(&[1, 2, 3]));
}

fn children_gain_no_privileges(subject: &Subject) {
    let helper = subject.serve();
    for thread in helper.process().threads() {
        assert_eq!(thread["NoNewPrivs"], subject.differs("no-new-privileges", "0", "1"));
    }
}

fn system_calls_of_every_thread_are_filtered(subject: &Subject) {
    let helper = subject.serve();
    let _clients: Vec<_> = (0..8).map(|_| helper.connect()).collect();
    for thread in helper.process().threads() {
        // SECCOMP_MODE_DISABLED and SECCOMP_MODE_FILTER.
        assert_eq!(thread["Seccomp"], subject.differs("sandbox", "0", "2"));
    }
}

fn root_becomes_the_default_user(subject: &Subject) {
    let start = subject.command();
    let users = start.path("passwd");
    std::fs::write(&users, "root:x:0:0::/:/bin/sh\nqemu-pr-helper:x:64123:64124::/:/bin/false\n").unwrap();
    let own_users =
        format!(r#"set -- unshare --mount sh -c 'mount --bind {} /etc/passwd && exec "$@"' sh "$@""#, users.display());
    let helper = start.shell(&own_users).serve();
    assert_eq!(ids(&helper), subject.differs("default-user", four("0", "0"), four("64123", "64124")));
    has_one_capability(&helper);
}

fn descriptor_limit_is_the_hard_limit(subject: &Subject) {
    let helper = subject.command().shell("ulimit -Sn 256 && ulimit -Hn 4096").serve();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", helper.process().pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let limits: Vec<&str> = line.split_whitespace().take(2).collect();
    assert_eq!(limits, subject.differs("descriptor-limit", ["256", "4096"], ["4096", "4096"]));
}

fn start_without_root_reports_the_reason(subject: &Subject) {
    let start = subject.command();
    std::os::unix::fs::chown(start.directory(), Some(65534), Some(65534)).unwrap();
    let ordinary = r#"set -- setpriv --reuid=65534 --regid=65534 --clear-groups "$@""#;
    let end = start.shell(ordinary).socket().finish();
    assert_eq!((end.code(), &*end.stderr), (1, "qemu-pr-helper: Failed to drop privileges: Operation not permitted\n"));
}
