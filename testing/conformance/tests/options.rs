//! The command line: options, their texts, and the messages about wrong ones.

use std::fs;
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;

use conformance::{Answer, Finished, Start, Subject, against_each_helper, eventually, in_cdb, null, out_cdb};

against_each_helper!(
    help_is_printed_and_ends_the_program,
    version_is_printed_and_ends_the_program,
    first_of_help_and_version_wins,
    wrong_options_are_reported_as_getopt_does,
    messages_name_the_program_as_started,
    wrong_values_are_reported_in_one_line,
    every_socket_path_is_checked,
    last_socket_path_counts,
    abbreviated_and_bundled_options_are_taken_anywhere,
    positional_arguments_are_ignored,
    users_and_groups_are_names_or_numbers,
    longest_socket_path_is_accepted,
    quiet_hides_violations_of_clients,
    verbose_logs_reservations,
    refused_change_is_logged_with_its_client,
    metrics_are_on_a_socket_of_their_own,
    defaults_are_in_the_runtime_directory,
    trace_lists_its_events,
    trace_warns_of_unknown_events,
    trace_writes_to_a_file,
    trace_reads_patterns_from_a_file,
);

fn run(subject: &Subject, arguments: &[&str]) -> Finished {
    subject.command().args(arguments).finish()
}

/// The text on standard error for a wrong option.
fn usage(subject: &Subject, reason: &str) -> String {
    let program = subject.program().display();
    format!("{program}: {reason}\nqemu-pr-helper: Try `{program} --help' for more information.\n")
}

fn help_is_printed_and_ends_the_program(subject: &Subject) {
    let documented = [
        "-h, --help",
        "-V, --version",
        "-d, --daemon",
        "-f, --pidfile=",
        "-k, --socket=",
        "-T, --trace",
        "-u, --user=",
        "-g, --group=",
    ];
    for arguments in
        [&["-h"][..], &["--help"], &["--he"], &["-hV"], &["-v", "-h", "--bogus"], &["pos", "-h", "-k", "rel"]]
    {
        let end = run(subject, arguments);
        assert_eq!((end.code(), &*end.stderr), (0, ""), "{arguments:?}");
        assert!(end.stdout.starts_with(&format!("Usage: {} [OPTIONS]", subject.program().display())), "{}", end.stdout);
        for option in documented {
            assert!(end.stdout.contains(option), "{option} in {}", end.stdout);
        }
        assert!(end.stdout.contains("'/var/run/qemu-pr-helper.sock'"), "{}", end.stdout);
        assert!(end.stdout.contains("'/var/run/qemu-pr-helper.pid'"), "{}", end.stdout);
        for option in ["-v, --verbose", "-q, --quiet"] {
            assert_eq!(end.stdout.contains(option), subject.differs("help-text", false, true), "{option}");
        }
    }
}

fn version_is_printed_and_ends_the_program(subject: &Subject) {
    for arguments in [&["-V"][..], &["--version"], &["--vers"], &["-Vk", "rel"], &["-q", "-V", "-x"]] {
        let end = run(subject, arguments);
        assert_eq!((end.code(), &*end.stderr), (0, ""), "{arguments:?}");
        let first = end.stdout.lines().next().unwrap();
        let program = subject.program().display().to_string();
        let rest = first.strip_prefix(&program).unwrap_or_else(|| panic!("{first}"));
        let version = rest.trim_start().chars().next().unwrap();
        assert!(rest.starts_with(' ') && version.is_ascii_digit(), "{first}");
        let qemu = end.stdout.contains("Fabrice Bellard and the QEMU Project developers");
        assert_eq!(qemu, subject.differs("version-text", true, false), "{}", end.stdout);
    }
}

fn first_of_help_and_version_wins(subject: &Subject) {
    assert!(run(subject, &["-hV"]).stdout.starts_with("Usage"));
    assert!(!run(subject, &["-Vh"]).stdout.starts_with("Usage"));
    // An error before them counts.
    assert_eq!(run(subject, &["-k", "rel", "-V"]).code(), 1);
}

fn wrong_options_are_reported_as_getopt_does(subject: &Subject) {
    for (arguments, reason) in [
        (&["--bogus"][..], "unrecognized option '--bogus'"),
        (&["--bogus=1"], "unrecognized option '--bogus=1'"),
        (&["-x"], "invalid option -- 'x'"),
        (&["-vx"], "invalid option -- 'x'"),
        (&["-k"], "option requires an argument -- 'k'"),
        (&["-u"], "option requires an argument -- 'u'"),
        (&["-dk"], "option requires an argument -- 'k'"),
        (&["--socket"], "option '--socket' requires an argument"),
        (&["--pid"], "option '--pidfile' requires an argument"),
        (&["--verbose=3"], "option '--verbose' doesn't allow an argument"),
        (&["--ver"], "option '--ver' is ambiguous; possibilities: '--version' '--verbose'"),
        (&["--v"], "option '--v' is ambiguous; possibilities: '--version' '--verbose'"),
    ] {
        let end = run(subject, arguments);
        assert_eq!((end.code(), end.stderr), (1, usage(subject, reason)), "{arguments:?}");
        assert_eq!(end.stdout, "");
    }
}

fn messages_name_the_program_as_started(subject: &Subject) {
    let start = subject.command();
    let alias = start.path("another-name");
    symlink(subject.program(), &alias).unwrap();
    let end = start.program(&alias).arg("--bogus").finish();
    let alias = alias.display();
    assert_eq!(
        end.stderr,
        format!("{alias}: unrecognized option '--bogus'\nanother-name: Try `{alias} --help' for more information.\n")
    );
}

fn wrong_values_are_reported_in_one_line(subject: &Subject) {
    let check = |start: Start, expected: &str| {
        let end = start.finish();
        assert_eq!((end.code(), &*end.stderr), (1, &*format!("qemu-pr-helper: {expected}\n")));
    };
    let with = |arguments: &[&str]| subject.command().args(arguments);
    for path in ["rel", "", "./rel"] {
        check(with(&["-k", path]), "socket path must be absolute");
    }
    for name in ["nosuch", "0x10", "12abc", "", "-1", "4294967296", "99999999999999999999"] {
        check(with(&["-u", name]), &format!("invalid user '{name}'"));
        check(with(&["-g", name]), &format!("invalid group '{name}'"));
    }
    let start = subject.command();
    let path = start.path("missing/socket").display().to_string();
    check(start.args(["-k", &path]), &format!("Failed to bind socket to {path}: No such file or directory"));
    let start = subject.command();
    let path = start.directory().display().to_string();
    check(start.args(["-k", &path]), &format!("Failed to unlink socket {path}: Is a directory"));
    let start = subject.command();
    let path = start.path("missing/pid").display().to_string();
    check(start.socket().args(["-f", &path]), &format!("Could not create '{path}': No such file or directory"));
    check(with(&["-T", "bogus=1"]), "Invalid parameter 'bogus'");
    let start = subject.command().socket();
    let path = start.path("missing").display().to_string();
    let end = start.args(["-T", &format!("events={path}")]).finish();
    let expected = format!("qemu-pr-helper:{path}: No such file or directory\n");
    assert_eq!((end.code(), end.stderr), (1, expected));

    let start = subject.command();
    let path = start.path(&"x".repeat(108)).display().to_string();
    let end = start.args(["-k", &path]).finish();
    let expected = format!("qemu-pr-helper: UNIX socket path '{path}' is too long\nPath must be less than 108 bytes\n");
    assert_eq!((end.code(), end.stderr), (1, expected));
}

fn every_socket_path_is_checked(subject: &Subject) {
    let end = subject.command().args(["-k", "rel"]).socket().finish();
    assert_eq!((end.code(), &*end.stderr), (1, "qemu-pr-helper: socket path must be absolute\n"));
}

fn last_socket_path_counts(subject: &Subject) {
    let start = subject.command();
    let first = start.path("first");
    let helper = start.arg("-k").arg(&first).serve();
    assert!(!first.exists());
    assert_eq!(helper.connect().run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
}

fn abbreviated_and_bundled_options_are_taken_anywhere(subject: &Subject) {
    let start = subject.command();
    let (pid_file, socket) = (start.path("pid"), start.path("socket"));
    let helper = start
        .arg("positional")
        .args(["-qvq", "--pidf"])
        .arg(&pid_file)
        .arg(format!("--sock={}", socket.display()))
        .arg(format!("-f{}", pid_file.display()))
        .args(["more", "--", "-x"])
        .start();
    eventually("it serves", || conformance::Client::try_connect(&socket).ok());
    assert!(helper.stderr().is_empty(), "{}", helper.stderr());
    eventually("the pid file is written", || fs::read_to_string(&pid_file).ok().filter(|text| text.ends_with('\n')));
}

fn positional_arguments_are_ignored(subject: &Subject) {
    let helper = subject.command().args(["one", "two", "-"]).serve();
    assert!(helper.stderr().is_empty());
}

fn users_and_groups_are_names_or_numbers(subject: &Subject) {
    let ids = |user: &str, group: &str| {
        let helper = subject.command().args(["-u", user, "-g", group]).serve();
        let status = helper.process().status();
        let first = |field: &str| status[field].split_whitespace().next().unwrap().to_owned();
        (first("Uid"), first("Gid"))
    };
    let id = |uid: &str, gid: &str| (uid.to_owned(), gid.to_owned());
    assert_eq!(ids("nobody", "nogroup"), id("65534", "65534"));
    assert_eq!(ids("12", "34"), id("12", "34"));
    assert_eq!(ids(" 12", "+34"), id("12", "34"));
    assert_eq!(ids("4294967295", "4294967295"), id("0", "0"), "which means none");
}

fn longest_socket_path_is_accepted(subject: &Subject) {
    let start = subject.command();
    let directory = start.directory().as_os_str().len();
    let socket = start.path(&"x".repeat(108 - directory - 1));
    assert_eq!(socket.as_os_str().len(), 108);
    let mut helper = start.arg("-k").arg(&socket).start();
    eventually("the socket is there", || {
        assert!(helper.ended().is_none(), "{}", helper.stderr());
        socket.exists().then_some(())
    });
}

fn quiet_hides_violations_of_clients(subject: &Subject) {
    for arguments in [&["-q"][..], &["--quiet"], &["-qv"], &["-vvq"]] {
        let helper = subject.command().args(arguments).serve();
        let client = helper.connect();
        client.send(&in_cdb(0, 8));
        client.assert_closed();
        let end = helper.terminate();
        assert_eq!((end.code(), &*end.stderr), (0, ""), "{arguments:?}");
    }
    for arguments in [&[][..], &["-v"], &["--verbose", "-v"]] {
        let helper = subject.command().args(arguments).serve();
        let client = helper.connect();
        client.send(&in_cdb(0, 8));
        client.assert_closed();
        helper.says("qemu-pr-helper: No file descriptor in request.");
    }
}

fn verbose_logs_reservations(subject: &Subject) {
    let helper = subject.command().arg("-v").serve();
    assert_eq!(helper.connect().run(&out_cdb(1, 24), &[0; 24], null()), Answer::io_process_terminated());
    let end = helper.terminate();
    let lines = end.stderr.lines().filter(|line| !line.contains("refused on"));
    let count = lines.filter(|line| line.contains("PERSISTENT RESERVE OUT")).count();
    // One of the change, and one that counts the commands at the end.
    assert_eq!(count, subject.differs("verbose-log", 0, 2), "{}", end.stderr);
}

fn refused_change_is_logged_with_its_client(subject: &Subject) {
    let helper = subject.serve();
    assert_eq!(helper.connect().run(&out_cdb(1, 24), &[0; 24], null()), Answer::io_process_terminated());
    let end = helper.terminate();
    let client = format!(", for process {} of user ", std::process::id());
    let is_logged = end.stderr.contains(", refused on 1:3 ") && end.stderr.contains(&client);
    assert_eq!(is_logged, subject.differs("refusal-logged", false, true), "{}", end.stderr);
}

fn metrics_are_on_a_socket_of_their_own(subject: &Subject) {
    let start = subject.command();
    let path = start.path("metrics");
    // QEMU's helper has no such option.
    let helper = start.args(subject.differs("metrics-option", None, Some("--metrics"))).args(Some(&path)).serve();
    helper.connect().run(&in_cdb(0, 8), &[], null());
    let mut text = String::new();
    let scraped = UnixStream::connect(&path).and_then(|socket| {
        socket.shutdown(Shutdown::Write)?;
        (&socket).read_to_string(&mut text)
    });
    assert_eq!(scraped.is_ok(), subject.differs("metrics-option", false, true));
    let count = "\nqemu_pr_helper_command_duration_seconds_count{command=\"in\"} 1\n";
    assert_eq!(text.contains(count), subject.differs("metrics-option", false, true), "{text}");
}

fn defaults_are_in_the_runtime_directory(subject: &Subject) {
    // A /run of its own, so that what runs on this machine is left alone.
    let own_run = r#"set -- unshare --mount sh -c 'mount -t tmpfs none /run && exec "$@"' sh "$@""#;
    let helper = subject.command().shell(own_run).arg("-d").start();
    let process = eventually("the daemon has written its pid", || {
        let daemon = *helper.processes().first()?;
        let run = format!("/proc/{}/root/run", daemon.pid());
        let text = fs::read_to_string(format!("{run}/qemu-pr-helper.pid")).ok()?;
        (text == format!("{}\n", daemon.pid())).then_some(daemon)
    });
    let socket = format!("/proc/{}/root/run/qemu-pr-helper.sock", process.pid());
    let client = conformance::Client::try_connect(socket.as_ref()).unwrap();
    client.handshake();
    assert_eq!(client.run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
}

fn trace_lists_its_events(subject: &Subject) {
    let end = run(subject, &["-T", "help"]);
    assert_eq!((end.code(), &*end.stderr), (0, ""));
    let lines: Vec<&str> = end.stdout.lines().collect();
    assert!(lines.iter().all(|line| line.chars().all(|char| char.is_ascii_alphanumeric() || char == '_')), "{lines:?}");
    for event in ["pr_manager_execute", "pr_manager_run"] {
        assert_eq!(lines.contains(&event), subject.differs("trace-events", false, true), "{event} in {lines:?}");
    }
}

fn trace_warns_of_unknown_events(subject: &Subject) {
    let helper = subject.command().args(["-T", "nosuch"]).serve();
    assert_eq!(helper.stderr(), "qemu-pr-helper: warning: trace event 'nosuch' does not exist\n");
    // A pattern may match nothing.
    assert_eq!(subject.command().args(["-T", "nosuch*"]).serve().stderr(), "");
}

/// An event that each of them has for a request.
fn event(subject: &Subject) -> &'static str {
    subject.differs("trace-events", "object_class_dynamic_cast_assert", "pr_manager_run")
}

fn trace_writes_to_a_file(subject: &Subject) {
    let start = subject.command();
    let log = start.path("log");
    let event = event(subject);
    let helper = start.args(["-T", &format!("{event},file={}", log.display())]).serve();
    helper.connect().run(&in_cdb(0, 8), &[], null());
    let text = eventually("the event is written", || {
        fs::read_to_string(&log).ok().filter(|text| text.contains(&format!("{event} ")))
    });
    assert!(text.lines().all(|line| line.split(' ').any(|word| word == event)), "{text}");
    assert_eq!(helper.stderr(), "");
}

fn trace_reads_patterns_from_a_file(subject: &Subject) {
    let start = subject.command();
    let (events, log) = (start.path("events"), start.path("log"));
    let event = event(subject);
    fs::write(&events, format!("# a comment\n\n{}*\n-{event}\n", &event[..4])).unwrap();
    let off = start.args(["-T", &format!("events={},file={}", events.display(), log.display())]).serve();
    off.connect().run(&in_cdb(0, 8), &[], null());
    let end = off.terminate();
    let text = fs::read_to_string(end.directory.path().join("log")).unwrap();
    assert!(!text.is_empty() && !text.contains(event), "{text}");

    let start = subject.command();
    let (events, log) = (start.path("events"), start.path("log"));
    fs::write(&events, format!("# a comment\n\n{event}\n")).unwrap();
    let helper = start.args(["-T", &format!("events={},file={}", events.display(), log.display())]).serve();
    helper.connect().run(&in_cdb(0, 8), &[], null());
    eventually("the event is written", || fs::read_to_string(&log).ok().filter(|text| text.contains(event)));
}
