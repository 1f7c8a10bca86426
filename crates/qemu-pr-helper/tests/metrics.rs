//! `--metrics`: what a scrape finds, and the socket.
#![forbid(unsafe_code)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{
    Helper, Launcher, WITH_ONE_CAPABILITY, connect, directory, eventually, helper, require_root, wait_until_removed,
};
use rustix::process::Signal;
use testing_support::command::{action_in, action_out, basic_list, reserve_in, reserve_out};
use testing_support::{Client, DEADLINE, null};

/// A start of a helper with metrics, with the paths of its sockets.
fn with_metrics(directory: &Path, arguments: &[&str]) -> (Launcher, PathBuf, PathBuf) {
    let (socket, metrics) = (directory.join("s"), directory.join("m"));
    let mut launcher = helper(arguments);
    launcher.arg("-k").arg(&socket).arg("--metrics").arg(&metrics);
    (launcher, socket, metrics)
}

/// A connection to the socket for metrics, which has sent all that it will.
fn scraper(metrics: &Path) -> UnixStream {
    let scraper = UnixStream::connect(metrics).unwrap();
    scraper.set_read_timeout(Some(DEADLINE)).unwrap();
    scraper.shutdown(Shutdown::Write).unwrap();
    scraper
}

/// The samples of a scrape: name and labels, and value. Its form is that of OpenMetrics.
fn scrape(metrics: &Path) -> BTreeMap<String, f64> {
    let mut text = String::new();
    scraper(metrics).read_to_string(&mut text).unwrap();
    samples(&text)
}

fn samples(text: &str) -> BTreeMap<String, f64> {
    let text = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("no end in\n{text}"));
    let (mut family, mut samples) = (String::new(), BTreeMap::new());
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name)) => family = name.to_owned(),
            (Some("#"), Some("TYPE" | "UNIT"), Some(name)) => assert_eq!(name, family, "{line}"),
            _ => {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(name.starts_with(&family), "{line} after {family}");
                assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
            }
        }
    }
    samples
}

fn commands(samples: &BTreeMap<String, f64>, command: &str, action: &str, status: &str) -> f64 {
    let labels = format!("{{command=\"{command}\",service_action=\"{action}\",status=\"{status}\",device_class=");
    let of = |(name, value): (&String, &f64)| name.contains(&labels).then_some(*value);
    samples.iter().filter_map(of).sum()
}

#[test]
fn scrape_in_the_sandbox_has_exactly_what_was_sent() {
    require_root!();
    let directory = directory();
    let (mut launcher, socket, metrics) = with_metrics(directory.path(), &["-u", "65533", "--deny=clear"]);
    let running = Helper::start(&mut launcher, &socket);
    assert!(
        running.process().threads().iter().all(|thread| thread["Seccomp"] == "2" && thread["Uid"].contains("65533"))
    );
    let before = scrape(&metrics);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::open(&socket).unwrap()).collect();
    for client in &mut clients {
        for _ in 0..4 {
            client.run(&reserve_in(action_in::READ_KEYS, 8), &[], null()).unwrap();
        }
        for code in [action_out::REGISTER, action_out::REGISTER, action_out::CLEAR, 0x1f] {
            client.run(&reserve_out(code, 0, 24), &basic_list(1, 2), null()).unwrap();
        }
    }
    // It breaks the protocol.
    let mut broken = connect(&socket);
    broken.send(&[0; 20], &[]).unwrap();
    assert!(broken.is_closed());
    let after = eventually("the broken connection is closed", || {
        let now = scrape(&metrics);
        (now["qemu_pr_helper_connections"] == 3.0).then_some(now)
    });
    for (command, action, status, count) in [
        ("in", "read-keys", "check-condition", 12.0),
        ("in", "read-keys", "good", 0.0),
        ("out", "register", "check-condition", 6.0),
        ("out", "clear", "check-condition", 3.0),
        ("out", "reserved", "check-condition", 3.0),
    ] {
        assert_eq!(commands(&after, command, action, status), count, "{action}");
    }
    let all: f64 =
        after.iter().filter(|(name, _)| name.starts_with("qemu_pr_helper_commands_total")).map(|(_, n)| n).sum();
    assert_eq!(all, 24.0);
    let null_device = "qemu_pr_helper_commands_total{command=\"in\",service_action=\"read-keys\",status=\"check-condition\",\
                       device_class=\"not-a-block-device\"}";
    assert_eq!(after[null_device], 12.0);
    for (name, count) in [
        ("qemu_pr_helper_command_duration_seconds_count{command=\"in\"}", 12.0),
        ("qemu_pr_helper_command_duration_seconds_count{command=\"out\"}", 12.0),
        ("qemu_pr_helper_command_duration_seconds_bucket{le=\"+Inf\",command=\"out\"}", 12.0),
        ("qemu_pr_helper_commands_refused_total{reason=\"denied\"}", 3.0),
        ("qemu_pr_helper_commands_refused_total{reason=\"device\"}", 9.0),
        ("qemu_pr_helper_connections_closed_total{reason=\"protocol-violation\"}", 1.0),
        ("qemu_pr_helper_commands_running", 0.0),
        ("qemu_pr_helper_workers_running", 0.0),
    ] {
        assert_eq!(after[name], count, "{name}");
    }
    let accepted = "qemu_pr_helper_connections_accepted_total";
    assert_eq!(after[accepted] - before[accepted], 4.0);
    assert!(after["qemu_pr_helper_command_duration_seconds_sum{command=\"in\"}"] > 0.0);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
}

#[test]
fn refused_connections_are_counted_by_reason() {
    require_root!();
    let directory = directory();
    let (mut launcher, socket, metrics) = with_metrics(directory.path(), &["--max-connections=8"]);
    let _running = Helper::start(&mut launcher, &socket);
    // A process has a quarter of eight.
    let _clients: Vec<Client> = (0..5).map(|_| Client::connect(&socket).unwrap()).collect();
    eventually("the others are refused", || {
        (scrape(&metrics)["qemu_pr_helper_connections_closed_total{reason=\"process-share\"}"] >= 3.0).then_some(())
    });
}

#[test]
fn scrapers_that_hang_delay_no_command_and_no_later_scrape() {
    require_root!();
    let directory = directory();
    let (mut launcher, socket, metrics) = with_metrics(directory.path(), &[]);
    let running = Helper::start(&mut launcher, &socket);
    let threads = running.process().threads().len();
    // They come all the time, send no request or half of one, and neither read nor close.
    let mut hanging = Vec::new();
    let mut client = Client::open(&socket).unwrap();
    let mut slowest = Duration::ZERO;
    for count in 1..=10 {
        for _ in 0..10 {
            hanging.push(UnixStream::connect(&metrics).unwrap());
            let mut half = UnixStream::connect(&metrics).unwrap();
            half.write_all(b"GET /").unwrap();
            hanging.push(half);
        }
        client.run(&reserve_in(action_in::READ_KEYS, 8), &[], null()).unwrap();
        let begun = Instant::now();
        assert_eq!(commands(&scrape(&metrics), "in", "read-keys", "check-condition"), f64::from(count));
        slowest = slowest.max(begun.elapsed());
    }
    // A server of one client after the other would take a second for each of 20 before the first scrape.
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    // One thread for all of them, and one for the client.
    assert!(running.process().threads().len() <= threads + 1);
}

#[test]
fn http_client_has_an_http_answer() {
    require_root!();
    let directory = directory();
    let (mut launcher, socket, metrics) = with_metrics(directory.path(), &[]);
    let _running = Helper::start(&mut launcher, &socket);
    let mut scraper = UnixStream::connect(&metrics).unwrap();
    scraper.set_read_timeout(Some(DEADLINE)).unwrap();
    scraper.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    scraper.read_to_string(&mut answer).unwrap();
    let (header, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        header.starts_with("HTTP/1.0 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0;"),
        "{header}"
    );
    assert!(samples(body).contains_key("qemu_pr_helper_connections"));
}

#[test]
fn socket_is_for_its_user_and_group_and_is_removed_at_the_end() {
    require_root!();
    for signal in [Signal::TERM, Signal::KILL] {
        let directory = directory();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o2755)).unwrap();
        std::os::unix::fs::chown(directory.path(), None, Some(4321)).unwrap();
        let (mut launcher, socket, metrics) = with_metrics(directory.path(), &["-u", "65533"]);
        let running = Helper::start(launcher.shell("umask 0"), &socket);
        let file = fs::metadata(&metrics).unwrap();
        assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o660, 0, 4321));
        running.end_by(signal);
        wait_until_removed(&socket);
        wait_until_removed(&metrics);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

#[test]
fn helper_without_a_monitor_removes_both_sockets() {
    require_root!();
    let (directory, other) = (directory(), directory());
    for directory in [&directory, &other] {
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    }
    let (socket, metrics) = (directory.path().join("s"), other.path().join("m"));
    let mut launcher = helper(["-k".as_ref(), socket.as_os_str(), "--metrics".as_ref(), metrics.as_os_str()]);
    let running = Helper::start(launcher.wrapped_by(WITH_ONE_CAPABILITY), &socket);
    assert!(scrape(&metrics).contains_key("qemu_pr_helper_connections"));
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    assert!(!socket.exists() && !metrics.exists());
}

#[test]
fn socket_in_use_ends_the_start_and_leaves_nothing_behind() {
    require_root!();
    let directory = directory();
    let (mut launcher, socket, metrics) = with_metrics(directory.path(), &[]);
    let _other = UnixListener::bind(&metrics).unwrap();
    let (code, out, err) = launcher.outcome();
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(
        err.contains(&format!("Failed to bind socket to {}: another program listens there", metrics.display())),
        "{err}"
    );
    assert!(!socket.exists() && metrics.exists());
}
