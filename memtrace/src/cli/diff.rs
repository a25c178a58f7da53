//! `memtrace diff`: two recordings compared.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Result;
use clap::Args;

use super::status;
use crate::report::{Style, diff};

/// Arguments of `diff`.
#[derive(Args)]
pub struct Diff {
    /// The earlier recording.
    old: PathBuf,
    /// The later one.
    new: PathBuf,
}

impl Diff {
    /// Prints what grew and what shrank.
    pub fn execute(self) -> Result<u8> {
        let old = super::report::read(&self.old)?;
        let new = super::report::read(&self.new)?;
        let mut out = io::stdout().lock();
        let written = diff::render(&diff::compare(&old, &new), &Style::default(), &mut out);
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(status::DONE),
        }
    }
}
