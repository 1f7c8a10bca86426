//! The texts of `-h` and `-V`.

use scsi_pr_helper::Limits;

use crate::identity::DEFAULT_USER;
use crate::message::invoked_as;
use crate::options::{DEFAULT_PID_FILE, DEFAULT_SOCKET};

/// The text of `--help`.
pub(crate) fn help() -> String {
    let limits = Limits::default();
    format!(
        "\
Usage: {program} [OPTIONS]
Runs SCSI persistent reservation commands for virtual machines.

  -h, --help                print this and exit
  -V, --version             print the version and exit

  -d, --daemon              run in the background; returns once the helper serves
  -f, --pidfile=PATH        write a pid file, and lock it
                            (with -d by default '{DEFAULT_PID_FILE}')
  -k, --socket=PATH         the Unix socket to listen on, an absolute path
                            (default '{DEFAULT_SOCKET}')
  -T, --trace [[enable=]<pattern>][,events=<file>][,file=<file>]
                            log events by name; '-T help' lists them
  -u, --user=USER           the user to run as, by name or number
                            (without it, root becomes '{DEFAULT_USER}' where that user exists)
  -g, --group=GROUP         the group to run as, by name or number
  -v, --verbose             log more; may be repeated
  -q, --quiet               log nothing about clients

      --manager=auto|sg-io|multipath|block|nvme
                            the way to run commands: 'auto' goes by the device, and changes no reservation
                            through a part of a disk or through one of its paths; the others are used for every
                            device: SCSI commands unchanged, libmpathpersist, the kernel's reservation ioctls,
                            NVMe commands
                            (default 'auto')
      --sandbox=on|off      whether the process that serves clients is confined by Landlock and seccomp
                            (default 'on')
      --deny=SERVICE-ACTION[,…]
                            refuse these service actions, by the standard's names: 'preempt-and-abort',
                            'clear', 'read-keys' …; may be repeated
      --allow-user=USER     serve only processes of these users and groups; may be repeated
      --allow-group=GROUP   (without both, every process that may connect)
      --metrics=PATH        answer with OpenMetrics text on this Unix socket, an absolute path
      --max-connections=N   the most clients at a time (default {connections})
      --max-commands=N      the most commands at a time (default {commands})

A socket that systemd passes (LISTEN_FDS) takes the place of --socket.
",
        program = invoked_as(),
        connections = limits.connections,
        commands = limits.running,
    )
}

/// The text of `--version`.
pub(crate) fn version() -> String {
    format!(
        "\
{} {} (scsi-pr)
Takes the place of QEMU's qemu-pr-helper.

Licence: MIT or Apache-2.0, at your choice. There is no warranty.
",
        invoked_as(),
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::LONG_OPTIONS;

    #[test]
    fn every_option_is_listed() {
        let help = help();
        for (name, _) in LONG_OPTIONS {
            assert!(help.contains(&format!("--{name}")), "--{name}");
        }
    }
}
