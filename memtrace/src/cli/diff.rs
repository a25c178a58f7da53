//! `memtrace diff`: two recordings, or two moments of the daemon's history, compared.

use std::{
    io::{self, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use clap::Args;

use super::{socket::Socket, status};
use crate::{
    daemon::{protocol::Request, within::Within},
    report::{Style, diff, document::Document},
};

/// Arguments of `diff`.
#[derive(Args)]
pub struct Diff {
    /// The earlier recording; or, where neither is a file, a moment of the daemon's history: a mark, an age (2h) or a
    /// time (@SECONDS since 1970).
    old: String,
    /// The later one.
    new: String,
    #[command(flatten)]
    socket: Socket,
}

impl Diff {
    /// Prints what grew and what shrank.
    pub fn execute(self) -> Result<u8> {
        let (old, new) = if Path::new(&self.old).exists() || Path::new(&self.new).exists() {
            let read = |path: &str| super::report::read(Path::new(path));
            (read(&self.old)?, read(&self.new)?)
        } else {
            let past = self.past();
            past.with_context(|| {
                format!(
                    "{} and {} are no files; as moments of the daemon's history",
                    self.old, self.new
                )
            })?
        };
        let mut out = io::stdout().lock();
        let written = diff::render(&diff::compare(&old, &new), &Style::default(), &mut out);
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(status::DONE),
        }
    }

    /// What ran at the earlier moment, and what ran from then on as it was at the later one: its faults are those in
    /// between.
    fn past(&self) -> Result<(Document, Document)> {
        let report = |until: &str| {
            let request = Request::Report {
                pids: Vec::new(),
                since: Some(self.old.clone()),
                until: Some(until.to_owned()),
                within: Within::default(),
            };
            self.socket.report(request)
        };
        Ok((report(&self.old)?, report(&self.new)?))
    }
}
