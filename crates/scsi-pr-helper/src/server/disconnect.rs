//! [`DisconnectReason`]: why the server closes a connection.

use std::fmt;
use std::io;
use std::time::Duration;

use scsi_pr::InvalidCommand;
use scsi_pr_daemon::reason;

use crate::wire::RequestViolation;

/// The reason why the server closes a connection.
#[derive(Debug)]
pub(super) enum DisconnectReason {
    Violation(RequestViolation),
    NoDescriptor,
    ManyDescriptors,
    EndInParameterList,
    Receive(io::Error),
    Send(io::Error),
    /// The client is not one of those that are served.
    NotAdmitted,
    /// The peer process has this many connections, its share.
    PeerConnections(usize),
    /// There are this many connections.
    Connections(usize),
    HalfSent(Duration),
    NoThread(io::Error),
}

/// The causes that are counted: a [`DisconnectReason`] without its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    NotAllowed,
    MaxConnections,
    ProcessShare,
    NoThread,
    Violation,
    HalfSent,
    ReceiveError,
    SendError,
}

impl Cause {
    /// Every cause, in the order of its number.
    pub(super) const ALL: [Self; 8] = [
        Self::NotAllowed,
        Self::MaxConnections,
        Self::ProcessShare,
        Self::NoThread,
        Self::Violation,
        Self::HalfSent,
        Self::ReceiveError,
        Self::SendError,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NotAllowed => "not-allowed",
            Self::MaxConnections => "max-connections",
            Self::ProcessShare => "process-share",
            Self::NoThread => "no-thread",
            Self::Violation => "protocol-violation",
            Self::HalfSent => "half-sent",
            Self::ReceiveError => "receive-error",
            Self::SendError => "send-error",
        }
    }
}

impl DisconnectReason {
    pub(super) const fn cause(&self) -> Cause {
        match self {
            Self::Violation(_) | Self::NoDescriptor | Self::ManyDescriptors | Self::EndInParameterList => {
                Cause::Violation
            }
            Self::Receive(_) => Cause::ReceiveError,
            Self::Send(_) => Cause::SendError,
            Self::NotAdmitted => Cause::NotAllowed,
            Self::PeerConnections(_) => Cause::ProcessShare,
            Self::Connections(_) => Cause::MaxConnections,
            Self::HalfSent(_) => Cause::HalfSent,
            Self::NoThread(_) => Cause::NoThread,
        }
    }

    /// Whether the log should say it. A client that breaks the protocol finds its connection closed, and its guest a
    /// command that failed without a reason. A client that is gone needs no line.
    pub(super) const fn should_log(&self) -> bool {
        !matches!(self, Self::Receive(_))
    }
}

impl fmt::Display for DisconnectReason {
    /// In the words of the C helper, and of strerror(3), where it has any: its users search their logs for them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation(RequestViolation::Command(InvalidCommand::Opcode(_))) => {
                f.write_str("Invalid CDB, closing socket.")
            }
            Self::Violation(violation) => write!(f, "Invalid request, closing socket: {violation}"),
            Self::NoDescriptor => f.write_str("No file descriptor in request."),
            Self::ManyDescriptors => f.write_str("More than one file descriptor in request, closing socket."),
            Self::EndInParameterList => f.write_str("Unexpected end-of-file before all data were read"),
            Self::Receive(error) => write!(f, "Unable to read from socket: {}", reason(error)),
            Self::Send(error) => write!(f, "Unable to write to socket: {}", reason(error)),
            Self::NotAdmitted => f.write_str(
                "Client not allowed, closing socket: permit its user with --allow-user, or its group with --allow-group",
            ),
            Self::PeerConnections(limit) => write!(
                f,
                "Too many connections of one process, closing socket: {limit} are allowed; raise --max-connections if \
                 the process is right to have more"
            ),
            Self::Connections(limit) => write!(
                f,
                "Too many connections, closing socket: {limit} are allowed; raise --max-connections, or the limits on \
                 open files and tasks"
            ),
            Self::HalfSent(timeout) => {
                write!(f, "Half a request and nothing more for {} s, closing socket.", timeout.as_secs())
            }
            Self::NoThread(error) => write!(
                f,
                "Unable to start a thread for a connection, closing socket: {}; raise the limit on tasks",
                reason(error)
            ),
        }
    }
}
