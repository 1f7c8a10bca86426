//! [`DisconnectReason`]: why the server closes a connection.

use std::io;
use std::time::Duration;

use scsi_pr::InvalidCommand;
use scsi_pr_daemon::reason;

use crate::wire::RequestViolation;

/// The reason why the server closes a connection. Its texts are those of the C helper, and of strerror(3), where there are any: users
/// search their logs for them.
#[derive(Debug, thiserror::Error)]
pub(super) enum DisconnectReason {
    #[error("{}", match .0 {
        RequestViolation::Command(InvalidCommand::Opcode(_)) => "Invalid CDB, closing socket.".to_owned(),
        violation => format!("Invalid request, closing socket: {violation}"),
    })]
    Violation(RequestViolation),
    #[error("No file descriptor in request.")]
    NoDescriptor,
    #[error("More than one file descriptor in request, closing socket.")]
    ManyDescriptors,
    #[error("Unexpected end-of-file before all data were read")]
    EndInParameterList,
    #[error("Unable to read from socket: {}", reason(.0))]
    Receive(io::Error),
    #[error("Unable to write to socket: {}", reason(.0))]
    Send(io::Error),
    /// The client is not one of those that are served.
    #[error("Client not allowed, closing socket: permit its user with --allow-user, or its group with --allow-group")]
    NotAdmitted,
    /// The peer process has this many connections, its share.
    #[error(
        "Too many connections of one process, closing socket: {0} are allowed; raise --max-connections if the process is right \
         to have more"
    )]
    PeerConnections(usize),
    /// There are this many connections.
    #[error(
        "Too many connections, closing socket: {0} are allowed; raise --max-connections, or the limits on open files and tasks"
    )]
    Connections(usize),
    #[error("Half a request and nothing more for {} s, closing socket.", .0.as_secs())]
    HalfSent(Duration),
    #[error("Unable to start a thread for a connection, closing socket: {}; raise the limit on tasks", reason(.0))]
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
