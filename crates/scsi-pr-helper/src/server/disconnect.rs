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

/// The causes that are counted, each for several reasons.
pub(super) const CAUSES: [&str; 8] = [
    "not-allowed",
    "max-connections",
    "process-share",
    "no-thread",
    "protocol-violation",
    "half-sent",
    "receive-error",
    "send-error",
];

impl DisconnectReason {
    /// The number of the cause in [`CAUSES`].
    pub(super) const fn cause(&self) -> usize {
        match self {
            Self::NotAdmitted => 0,
            Self::Connections(_) => 1,
            Self::PeerConnections(_) => 2,
            Self::NoThread(_) => 3,
            Self::Violation(_) | Self::NoDescriptor | Self::ManyDescriptors | Self::EndInParameterList => 4,
            Self::HalfSent(_) => 5,
            Self::Receive(_) => 6,
            Self::Send(_) => 7,
        }
    }

    /// Whether the log should say it. A client that breaks the protocol finds its connection closed, and its guest a
    /// command that failed without a reason. A client that is gone needs no line.
    pub(super) const fn should_log(&self) -> bool {
        !matches!(self, Self::Receive(_))
    }
}
