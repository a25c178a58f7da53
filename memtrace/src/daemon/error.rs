//! Why the daemon does not start, or ends.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{
    probe::{self, area::AreaError},
    store::history::HistoryError,
    trace::SelectError,
};

use super::config::ConfigError;

/// What failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The area.
    #[error(transparent)]
    Area(#[from] AreaError),
    /// The probes.
    #[error(transparent)]
    Probe(#[from] probe::Error),
    /// Whose heap is to be probed.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The history cannot be begun anew either.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Another daemon holds the lock.
    #[error("another memtrace daemon runs (pid {pid}): {lock} is locked", lock = lock.display())]
    Running {
        /// The lock file.
        lock: PathBuf,
        /// As the file says.
        pid: String,
    },
    /// A directory, the lock or the socket.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The endpoint for Prometheus.
    #[error("cannot listen on {address}: {source}; metrics.listen names another address")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// Powers that are not needed cannot be given up.
    #[error("cannot give up capabilities: {source}")]
    Privileges {
        /// The system's error.
        source: caps::errors::CapsError,
    },
    /// The group of the socket.
    #[error("there is no group {name}: socket.group names one of /etc/group")]
    NoGroup {
        /// As configured.
        name: String,
    },
    /// Signals, timers or the ring buffers.
    #[error("cannot wait for events: {source}")]
    Wait {
        /// The system's error.
        source: io::Error,
    },
}
