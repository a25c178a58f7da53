//! Which daemon is asked.

use std::path::PathBuf;

use clap::Args;

use crate::{
    daemon::{
        Config,
        client::{self, ClientError},
        protocol::{Reply, Request},
    },
    report::document::Document,
};

/// Option of everything that asks the daemon.
#[derive(Args, Clone, Debug)]
pub struct Socket {
    /// The daemon's socket [default: /run/memtrace/socket]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Socket {
    /// Asks, and waits for the answer.
    pub fn ask(&self, request: Request) -> Result<Reply, ClientError> {
        let default = || Config::default().socket_path();
        client::ask(&self.socket.clone().unwrap_or_else(default), request)
    }

    /// Asks for a report.
    pub fn report(&self, request: Request) -> Result<Document, ClientError> {
        match self.ask(request)? {
            Reply::Report(document) => Ok(*document),
            _ => Err(strange()),
        }
    }
}

/// The daemon answered another question.
pub fn strange() -> ClientError {
    let reason = "an answer to another question".to_owned();
    ClientError::Strange { reason }
}
