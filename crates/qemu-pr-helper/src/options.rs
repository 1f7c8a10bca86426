//! The command line, read as getopt_long(3) reads it for the C helper: options anywhere, long names cut short as long
//! as they stay unique, short ones bundled, each acting when it is met, and other arguments ignored.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lexopt::{Arg, Parser};
use scsi_pr_helper::Limits;
use scsi_pr_linux::policy::{AllowedPeers, ServiceActions, UnknownServiceAction};

use crate::identity::{self, Id};
use crate::message::{Message, Result, invoked_as};
use crate::number::decimal;
use crate::trace;

/// Where the socket is without `-k`.
pub(crate) const DEFAULT_SOCKET: &str = "/var/run/qemu-pr-helper.sock";
/// Where the pid file is with `-d` and without `-f`.
pub(crate) const DEFAULT_PID_FILE: &str = "/var/run/qemu-pr-helper.pid";

/// The action that the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// To print the help text.
    Help,
    /// To print the version.
    Version,
    /// To print the names of the trace events.
    TraceEvents,
    /// To run.
    Run(Box<Options>),
}

/// How to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) daemon: bool,
    socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    /// The values of `-u` and `-g`, if given.
    pub(crate) user: Option<Id>,
    pub(crate) group: Option<Id>,
    pub(crate) sandbox: bool,
    verbose: usize,
    quiet: bool,
    pub(crate) trace: trace::Settings,
    pub(crate) manager: Manager,
    /// The service actions that no client may send.
    pub(crate) deny: ServiceActions,
    allowed_users: Vec<u32>,
    allowed_groups: Vec<u32>,
    /// The path of the socket for metrics.
    pub(crate) metrics: Option<PathBuf>,
    max_connections: Option<usize>,
    max_commands: Option<usize>,
}

/// The manager that runs commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manager {
    /// The manager for the kind of device. PERSISTENT RESERVE OUT is refused on a part of a unit.
    #[default]
    Auto,
    /// SG_IO for every device.
    SgIo,
    /// The manager of multipath maps for every device.
    Multipath,
    /// The kernel's reservation ioctls for every device.
    Block,
    /// NVMe reservation commands for every device.
    Nvme,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            daemon: false,
            socket: None,
            pid_file: None,
            user: None,
            group: None,
            sandbox: true,
            verbose: 0,
            quiet: false,
            trace: trace::Settings::default(),
            manager: Manager::default(),
            deny: ServiceActions::default(),
            allowed_users: Vec::new(),
            allowed_groups: Vec::new(),
            metrics: None,
            max_connections: None,
            max_commands: None,
        }
    }
}

impl Options {
    /// The path of `-k`, if given.
    pub(crate) fn given_socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// The path to listen on.
    pub(crate) fn socket(&self) -> &Path {
        self.given_socket().unwrap_or(Path::new(DEFAULT_SOCKET))
    }

    /// The pid file to write: with `-d`, or where `-f` asks for it. A relative one is in the root directory with `-d`,
    /// because the C helper opens it from there.
    pub(crate) fn pid_file(&self) -> Option<PathBuf> {
        match &self.pid_file {
            Some(path) if self.daemon => Some(Path::new("/").join(path)),
            None if self.daemon => Some(DEFAULT_PID_FILE.into()),
            path => path.clone(),
        }
    }

    /// The processes that may connect.
    pub(crate) fn allowed_peers(&self) -> AllowedPeers {
        AllowedPeers::new(self.allowed_users.clone(), self.allowed_groups.clone())
    }

    /// The limits of the server.
    pub(crate) fn limits(&self) -> Limits {
        let default = Limits::default();
        default
            .with_connections(self.max_connections.unwrap_or(default.connections))
            .with_running(self.max_commands.unwrap_or(default.running))
    }

    /// The least severe level that is logged.
    pub(crate) fn log_level(&self) -> tracing::level_filters::LevelFilter {
        use tracing::level_filters::LevelFilter;
        match self.verbose {
            _ if self.quiet => LevelFilter::OFF,
            0 => LevelFilter::WARN,
            1 => LevelFilter::INFO,
            2 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }
}

/// The long options, in the order in which getopt_long(3) lists the candidates of an abbreviation.
pub(crate) const LONG_OPTIONS: [(&str, Name); 18] = [
    ("help", Name::Help),
    ("version", Name::Version),
    ("socket", Name::Socket),
    ("pidfile", Name::PidFile),
    ("daemon", Name::Daemon),
    ("trace", Name::Trace),
    ("user", Name::User),
    ("group", Name::Group),
    ("verbose", Name::Verbose),
    ("quiet", Name::Quiet),
    // The C helper does not have those below. An abbreviation means one of the C helper's where that is possible.
    ("manager", Name::Manager),
    ("sandbox", Name::Sandbox),
    ("deny", Name::Deny),
    ("allow-user", Name::AllowUser),
    ("allow-group", Name::AllowGroup),
    ("metrics", Name::Metrics),
    ("max-connections", Name::MaxConnections),
    ("max-commands", Name::MaxCommands),
];

/// An option, however it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Help,
    Version,
    Socket,
    PidFile,
    Daemon,
    Trace,
    User,
    Group,
    Verbose,
    Quiet,
    Manager,
    Sandbox,
    Deny,
    AllowUser,
    AllowGroup,
    Metrics,
    MaxConnections,
    MaxCommands,
}

impl Name {
    fn short(letter: char) -> Option<Self> {
        Some(match letter {
            'h' => Self::Help,
            'V' => Self::Version,
            'k' => Self::Socket,
            'f' => Self::PidFile,
            'd' => Self::Daemon,
            'T' => Self::Trace,
            'u' => Self::User,
            'g' => Self::Group,
            'v' => Self::Verbose,
            'q' => Self::Quiet,
            _ => return None,
        })
    }

    fn takes_value(self) -> bool {
        !matches!(self, Self::Help | Self::Version | Self::Daemon | Self::Verbose | Self::Quiet)
    }
}

/// Reads the command line: `arguments` are those after the program's name. Warnings go to `warn` at once.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>, warn: &mut dyn FnMut(Message)) -> Result<Request> {
    let mut parser = Parser::from_args(arguments);
    parser.set_short_equals(false);
    let mut options = Options::default();
    while let Some((name, value)) = next(&mut parser)? {
        match name {
            Name::Help => return Ok(Request::Help),
            Name::Version => return Ok(Request::Version),
            Name::Socket if !value.as_encoded_bytes().starts_with(b"/") => {
                return Err(Message::new("socket path must be absolute"));
            }
            Name::Socket => options.socket = Some(value.into()),
            Name::PidFile => options.pid_file = Some(value.into()),
            Name::Daemon => options.daemon = true,
            Name::Trace => match options.trace.add(&value, warn)? {
                trace::Applied::Settings => {}
                trace::Applied::ListRequested => return Ok(Request::TraceEvents),
            },
            Name::User => options.user = Some(identity::user(&value).ok_or_else(|| invalid("user", &value))?),
            Name::Group => options.group = Some(identity::group(&value).ok_or_else(|| invalid("group", &value))?),
            Name::Verbose => options.verbose += 1,
            Name::Quiet => options.quiet = true,
            Name::Manager => {
                options.manager = match value.to_str() {
                    Some("auto") => Manager::Auto,
                    Some("sg-io") => Manager::SgIo,
                    Some("multipath") => Manager::Multipath,
                    Some("block") => Manager::Block,
                    Some("nvme") => Manager::Nvme,
                    _ => return Err(invalid("manager", &value)),
                }
            }
            Name::Sandbox => {
                options.sandbox = match value.to_str() {
                    Some("on") => true,
                    Some("off") => false,
                    _ => return Err(invalid("sandbox", &value)),
                }
            }
            Name::Deny => {
                let list: ServiceActions = value
                    .to_string_lossy()
                    .parse()
                    .map_err(|error: UnknownServiceAction| Message::new(error.to_string()))?;
                options.deny = options.deny.union(list);
            }
            Name::AllowUser => {
                options.allowed_users.push(identity::user(&value).flatten().ok_or_else(|| invalid("user", &value))?)
            }
            Name::AllowGroup => {
                options.allowed_groups.push(identity::group(&value).flatten().ok_or_else(|| invalid("group", &value))?)
            }
            Name::Metrics if !value.as_encoded_bytes().starts_with(b"/") => {
                return Err(Message::new("path of the metrics socket must be absolute"));
            }
            Name::Metrics => options.metrics = Some(value.into()),
            Name::MaxConnections => options.max_connections = Some(bound("number of connections", &value)?),
            Name::MaxCommands => options.max_commands = Some(bound("number of commands", &value)?),
        }
    }
    Ok(Request::Run(Box::new(options)))
}

/// The next option and its value, which is empty where the option takes none.
fn next(parser: &mut Parser) -> Result<Option<(Name, OsString)>> {
    loop {
        // Unexpected values are handled below, so this cannot fail.
        let (name, written) = match parser.next().map_err(|error| wrong(error.to_string()))? {
            None => return Ok(None),
            Some(Arg::Value(_)) => continue,
            Some(Arg::Short(letter)) => match Name::short(letter) {
                Some(name) => (name, None),
                None => return Err(wrong(format!("invalid option -- '{letter}'"))),
            },
            Some(Arg::Long(written)) => {
                let written = written.to_owned();
                match candidates(&written)[..] {
                    [(full, name)] => (name, Some((full, written))),
                    [] => {
                        let value = parser.optional_value().map(|value| format!("={}", value.to_string_lossy()));
                        let value = value.unwrap_or_default();
                        return Err(wrong(format!("unrecognized option '--{written}{value}'")));
                    }
                    ref several => {
                        let value = parser.optional_value().map(|value| format!("={}", value.to_string_lossy()));
                        let value = value.unwrap_or_default();
                        let possible: String = several.iter().map(|(full, _)| format!(" '--{full}'")).collect();
                        return Err(wrong(format!(
                            "option '--{written}{value}' is ambiguous; possibilities:{possible}"
                        )));
                    }
                }
            }
        };
        if name.takes_value() {
            return match (parser.value(), written) {
                (Ok(value), _) => Ok(Some((name, value))),
                (Err(_), Some((full, _))) => Err(wrong(format!("option '--{full}' requires an argument"))),
                (Err(_), None) => {
                    let letter = "kfTug".chars().find(|letter| Name::short(*letter) == Some(name));
                    Err(wrong(format!("option requires an argument -- '{}'", letter.unwrap_or_default())))
                }
            };
        }
        return match written {
            Some((full, _)) if parser.optional_value().is_some() => {
                Err(wrong(format!("option '--{full}' doesn't allow an argument")))
            }
            _ => Ok(Some((name, OsString::new()))),
        };
    }
}

/// The number of long options that the C helper has too.
const C_OPTIONS: usize = 10;

/// The long options that `written` may stand for: itself, else those of the C helper that begin with it, else the others.
fn candidates(written: &str) -> Vec<(&'static str, Name)> {
    if let Some(exact) = LONG_OPTIONS.iter().find(|(name, _)| *name == written) {
        return vec![*exact];
    }
    let (of_c, others) = LONG_OPTIONS.split_at(C_OPTIONS);
    let begins = |options: &[(&'static str, Name)]| -> Vec<_> {
        options.iter().filter(|(name, _)| name.starts_with(written)).copied().collect()
    };
    let of_c = begins(of_c);
    if of_c.is_empty() { begins(others) } else { of_c }
}

/// The message of getopt_long(3), and a pointer to --help.
fn wrong(what: String) -> Message {
    let program = invoked_as();
    Message::new(format!("Try `{program} --help' for more information.")).preceded_by(format!("{program}: {what}"))
}

fn invalid(what: &str, value: &std::ffi::OsStr) -> Message {
    Message::new(format!("invalid {what} '{}'", value.to_string_lossy()))
}

fn bound(what: &str, value: &std::ffi::OsStr) -> Result<usize> {
    match value.to_str().and_then(decimal) {
        Some((false, number @ 1..)) => usize::try_from(number).map_err(|_| invalid(what, value)),
        _ => Err(invalid(what, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tracing::level_filters::LevelFilter;

    fn parsed(arguments: &[&str]) -> Result<Request> {
        parse(arguments.iter().map(OsString::from), &mut |warning| panic!("{warning}"))
    }

    fn run(arguments: &[&str]) -> Options {
        match parsed(arguments) {
            Ok(Request::Run(options)) => *options,
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    /// That `arguments` are refused with these words of getopt's.
    fn refused(arguments: &[&str], what: &str) {
        assert_eq!(parsed(arguments), Err(wrong(what.to_owned())), "{arguments:?}");
    }

    #[test]
    fn every_form_of_an_option() {
        for arguments in [
            &["-k", "/x"][..],
            &["-k/x"],
            &["--socket", "/x"],
            &["--socket=/x"],
            &["--sock=/x"],
            &["--s", "/x"],
            &["-dk", "/x"],
            &["-dk/x"],
            &["ignored", "-k", "/x", "ignored", "-"],
            &["-k", "/first", "-k", "/x"],
            &["-k/x", "--", "-k", "rel", "--bogus"],
        ] {
            assert_eq!(run(arguments).socket(), Path::new("/x"), "{arguments:?}");
        }
        let options = run(&["-vvd", "-u", "root", "-g+12", "-f", "pid", "--quiet"]);
        assert!(options.daemon && options.quiet && options.verbose == 2);
        assert_eq!((options.user, options.group), (Some(Some(0)), Some(Some(12))));
    }

    #[test]
    fn defaults() {
        assert_eq!(run(&[]), Options::default());
        assert_eq!(run(&[]).socket(), Path::new("/var/run/qemu-pr-helper.sock"));
        assert_eq!(run(&[]).given_socket(), None);
    }

    #[test]
    fn a_pid_file_only_with_d_or_f() {
        let pid_file = |arguments: &[&str]| run(arguments).pid_file();
        assert_eq!(pid_file(&[]), None);
        assert_eq!(pid_file(&["-d"]), Some("/var/run/qemu-pr-helper.pid".into()));
        assert_eq!(pid_file(&["-f", "p"]), Some("p".into()));
        assert_eq!(pid_file(&["-df", "p"]), Some("/p".into()));
        assert_eq!(pid_file(&["-f", "/run/p", "-d"]), Some("/run/p".into()));
    }

    #[test]
    fn quiet_wins_over_verbose() {
        for (arguments, level) in [
            (&[][..], LevelFilter::WARN),
            (&["-v"], LevelFilter::INFO),
            (&["-vv"], LevelFilter::DEBUG),
            (&["-vvv", "-v"], LevelFilter::TRACE),
            (&["-q", "-v"], LevelFilter::OFF),
            (&["-vq"], LevelFilter::OFF),
        ] {
            assert_eq!(run(arguments).log_level(), level, "{arguments:?}");
        }
    }

    #[test]
    fn options_act_in_order() {
        assert_eq!(parsed(&["-h", "--bogus"]), Ok(Request::Help));
        assert_eq!(parsed(&["positional", "-V", "-k", "rel"]), Ok(Request::Version));
        assert_eq!(parsed(&["-dVx"]), Ok(Request::Version));
        assert_eq!(parsed(&["-T", "help"]), Ok(Request::TraceEvents));
        assert!(parsed(&["-k", "rel", "-h"]).is_err());
        refused(&["-xh"], "invalid option -- 'x'");
    }

    #[test]
    fn wrong_options_have_the_messages_of_getopt() {
        refused(&["--bogus"], "unrecognized option '--bogus'");
        refused(&["--bogus=1"], "unrecognized option '--bogus=1'");
        refused(&["---"], "unrecognized option '---'");
        refused(&["--socket-x"], "unrecognized option '--socket-x'");
        refused(&["-x"], "invalid option -- 'x'");
        refused(&["-k"], "option requires an argument -- 'k'");
        refused(&["-dT"], "option requires an argument -- 'T'");
        refused(&["--sock"], "option '--socket' requires an argument");
        refused(&["--quiet="], "option '--quiet' doesn't allow an argument");
        refused(&["--dae=1"], "option '--daemon' doesn't allow an argument");
        refused(&["--ver"], "option '--ver' is ambiguous; possibilities: '--version' '--verbose'");
        refused(&["--ve=3"], "option '--ve=3' is ambiguous; possibilities: '--version' '--verbose'");
    }

    #[test]
    fn the_c_helper_s_abbreviations_stay_unique() {
        for short in ["h", "s", "p", "d", "t", "u", "g", "q"] {
            assert_eq!(candidates(short).len(), 1, "--{short}");
        }
    }

    #[test]
    fn sockets_have_absolute_paths() {
        for arguments in [&["-k", "rel"][..], &["-k", ""], &["-k=/x"], &["--socket="], &["-k", "-V"], &["-kx", "-k/y"]]
        {
            assert_eq!(parsed(arguments), Err(Message::new("socket path must be absolute")), "{arguments:?}");
        }
    }

    #[test]
    fn values_are_checked() {
        for (arguments, text) in [
            (["-u", "nosuch"], "invalid user 'nosuch'"),
            (["-g", ""], "invalid group ''"),
            (["--manager", "mpath"], "invalid manager 'mpath'"),
            (["--sandbox", "maybe"], "invalid sandbox 'maybe'"),
            (["--allow-user", "nosuch"], "invalid user 'nosuch'"),
            (["--allow-user", "4294967295"], "invalid user '4294967295'"),
            (["--allow-group", "nosuch"], "invalid group 'nosuch'"),
            (["--metrics", "relative"], "path of the metrics socket must be absolute"),
            (["--max-connections", "0"], "invalid number of connections '0'"),
            (["--max-commands", "-1"], "invalid number of commands '-1'"),
        ] {
            assert_eq!(parsed(&arguments), Err(Message::new(text)));
        }
        let options = run(&["--manager=sg-io", "--max-con", "5", "--max-com=6"]);
        let limits = options.limits();
        assert_eq!((options.manager, limits.connections, limits.running), (Manager::SgIo, 5, 6));
        assert_eq!(run(&["--man=sg-io", "--manager=auto"]).manager, Manager::Auto);
        assert!(run(&[]).sandbox && !run(&["--sa=off"]).sandbox && run(&["--sandbox=off", "--sandbox=on"]).sandbox);
    }

    #[test]
    fn policy_options_add_to_each_other() {
        let options = run(&["--deny=clear,preempt", "--de", "read-keys", "--allow-user=root", "--allow-u=12"]);
        assert_eq!(options.deny, "clear,preempt,read-keys".parse().unwrap());
        assert_eq!(options.allowed_peers(), AllowedPeers::new(vec![0, 12], Vec::new()));
        let options = run(&["--allow-group", "7", "--allow-g=root"]);
        assert_eq!(options.allowed_peers(), AllowedPeers::new(Vec::new(), vec![7, 0]));
        assert!(run(&[]).allowed_peers().is_everyone());
        let error = parsed(&["--deny=clear,steal"]).unwrap_err().to_string();
        assert!(error.contains("invalid service action 'steal'; the valid ones are: read-keys, "), "{error}");
    }

    proptest! {
        #[test]
        fn any_arguments_are_read_or_refused(arguments: Vec<String>) {
            let _ = parse(arguments.into_iter().map(OsString::from), &mut |_| {});
        }

        #[test]
        fn a_long_option_is_known_by_each_unique_beginning(index in 0..LONG_OPTIONS.len(), length in 1usize..16) {
            let (full, name) = LONG_OPTIONS[index];
            let written = &full[..length.min(full.len())];
            let sharing = |options: &[(&str, Name)]| options.iter().filter(|(other, _)| other.starts_with(written)).count();
            let (of_c, others) = LONG_OPTIONS.split_at(C_OPTIONS);
            let found = candidates(written);
            let is_hidden = index >= C_OPTIONS && sharing(of_c) > 0;
            let expected = if sharing(of_c) > 0 { sharing(of_c) } else { sharing(others) };
            prop_assert_eq!(found.len(), if written == full { 1 } else { expected });
            prop_assert!(found.contains(&(full, name)) || is_hidden);
        }
    }
}
