//! `memtrace doctor`: what this machine can and cannot do, tried rather than looked up.

use std::{
    fmt,
    io::{self, Write as _},
};

use anyhow::Result;
use clap::Args;

use super::status;
use crate::probe::check::{self, Finding, State};

/// Arguments of `doctor`.
#[derive(Args)]
pub struct Doctor {}

impl Doctor {
    /// Prints one line per finding. Exit status 1 where tracing cannot work.
    pub fn execute(self) -> Result<u8> {
        let findings = check::all();
        let mut out = io::stdout().lock();
        let written = findings
            .iter()
            .try_for_each(|finding| writeln!(out, "{}", Line(finding)));
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
        let broken = findings
            .iter()
            .any(|finding| matches!(finding.state, State::Broken { .. }));
        Ok(if broken { status::FAILED } else { status::DONE })
    }
}

struct Line<'a>(&'a Finding);

impl fmt::Display for Line<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { what, state } = self.0;
        match state {
            State::Works { detail } => write!(out, "ok       {what}: {detail}"),
            State::Limited { detail, remedy } => {
                write!(out, "limited  {what}: {detail}")?;
                write_remedy(out, remedy)
            }
            State::Broken { detail, remedy } => {
                write!(out, "MISSING  {what}: {detail}")?;
                write_remedy(out, remedy)
            }
        }
    }
}

fn write_remedy(out: &mut fmt::Formatter<'_>, remedy: &str) -> fmt::Result {
    if remedy.is_empty() {
        Ok(())
    } else {
        write!(out, "\n         → {remedy}")
    }
}
