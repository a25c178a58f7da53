//! `memtrace mark`: names a moment, for `--since` and `--until`.

use anyhow::Result;
use clap::Args;

use super::{
    socket::{Socket, strange},
    status,
};
use crate::daemon::protocol::{Reply, Request};

/// Arguments of `mark`.
#[derive(Args)]
pub struct Mark {
    /// A word: deploy-17.
    name: String,
    #[command(flatten)]
    socket: Socket,
}

impl Mark {
    /// Asks the daemon to remember this moment.
    pub fn execute(self) -> Result<u8> {
        match self.socket.ask(Request::Mark { name: self.name })? {
            Reply::Done {} => Ok(status::DONE),
            _ => Err(strange().into()),
        }
    }
}
