//! [`DisconnectReason`].

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::login::Refusal;
use crate::pdu::PduError;
use crate::session::ProtocolError;

/// The time for a whole login.
pub(crate) const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The reason why a connection ends.
#[derive(Debug, Error)]
pub(crate) enum DisconnectReason {
    #[error("the peer has closed the connection")]
    Closed,
    #[error("the initiator has logged out")]
    LoggedOut,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Pdu(#[from] PduError),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("login refused: {0}")]
    Login(#[from] Refusal),
    #[error("the login took longer than {} s", LOGIN_TIMEOUT.as_secs())]
    LoginTimeout,
    #[error("the peer has not answered a ping")]
    Silent,
    #[error("a former session of this initiator has not ended in time")]
    FormerSession,
    #[error("the server stops")]
    Stopping,
    #[error("no thread can be started: {0}")]
    NoThread(#[source] io::Error),
}
