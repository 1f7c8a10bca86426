//! [`ServerOptions`].

use std::time::Duration;

/// The bounds of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Connections at a time; more are closed at once.
    pub connections: usize,
    /// Threads for commands that may block.
    pub threads: usize,
    /// Bytes of data that the commands of all sessions hold in memory. Over it, each session has one command at a time in each
    /// direction.
    pub memory: usize,
    /// The silence after which the target sends a NOP-In; after as much again the connection is closed. It is checked once
    /// a second.
    pub ping_interval: Duration,
}

impl ServerOptions {
    /// The same with another time between a request and a NOP-In.
    #[must_use]
    pub fn with_ping_interval(self, ping_interval: Duration) -> Self {
        Self { ping_interval, ..self }
    }

    /// The same with another bound of memory, in bytes.
    #[must_use]
    pub fn with_memory(self, memory: usize) -> Self {
        Self { memory, ..self }
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { connections: 2048, threads: 4096, memory: 1 << 30, ping_interval: Duration::from_secs(30) }
    }
}
