//! `memtrace explain`: what a word in a report means and what to do about it.

use std::io::{self, Write as _};

use anyhow::Result;
use clap::Args;

use super::status;
use crate::report::{Style, explain};

/// Arguments of `explain`.
#[derive(Args)]
pub struct Explain {
    /// The word; without one, all words are listed.
    word: Vec<String>,
}

impl Explain {
    /// Prints the explanation.
    pub fn execute(self) -> Result<u8> {
        let mut out = io::stdout().lock();
        let written = if self.word.is_empty() {
            explain::words().try_for_each(|word| writeln!(out, "{word}"))
        } else {
            explain::explain(&self.word.join(" "))?.render(&Style::default(), &mut out)
        };
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(status::DONE),
        }
    }
}
