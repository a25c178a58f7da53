//! `memtrace leaks`: the leaks of a running process now, from the daemon.

use anyhow::Result;
use clap::{Args, builder::UnknownArgumentValueParser};

use super::{
    output::{Place, ReportOptions},
    socket::Socket,
};
use crate::daemon::{protocol::Request, within::Within};

/// What whoever asks for the leaks of a recording is told.
const OF_A_RECORDING: &str = "of a recording: memtrace report leaks --from FILE";

/// Arguments of `leaks`.
#[derive(Args)]
pub struct Leaks {
    /// Of these processes.
    #[arg(short, long = "pid", required = true, value_parser = super::usage::pid, value_name = "PID")]
    pids: Vec<u32>,
    /// Of a recording: another subcommand's.
    #[arg(long, hide = true, value_name = "FILE", value_parser = UnknownArgumentValueParser::suggest(OF_A_RECORDING))]
    from: Option<()>,
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
