//! `memtrace leaks`: the leaks of a running process now, from the daemon.

use anyhow::Result;
use clap::Args;

use super::{
    output::{Place, ReportOptions},
    socket::Socket,
};
use crate::daemon::{protocol::Request, within::Within};

/// Arguments of `leaks`.
#[derive(Args)]
pub struct Leaks {
    /// Of these processes.
    #[arg(short, long = "pid", required = true, value_parser = super::usage::pid, value_name = "PID")]
    pids: Vec<u32>,
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    options: ReportOptions,
}

impl Leaks {
    /// Asks and reports; the trace goes on.
    pub fn execute(self) -> Result<u8> {
        let options = self.options.with_kind(Some("leaks".to_owned()));
        let mut output = options.check(Place::Stdout, Vec::new())?;
        let request = Request::Report {
            pids: self.pids,
            since: None,
            until: None,
            within: Within::default(),
        };
        output.write(self.socket.report(request)?)
    }
}
