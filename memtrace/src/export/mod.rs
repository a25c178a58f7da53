//! Formats for other programs: a trait, and one file per format.
//!
//! What people read is made by [`crate::report`].

use std::io::{self, Write};

use crate::report::document::Document;

mod flamegraph;
mod folded;
mod json;
mod pprof;
mod sample;

pub use json::Json;
pub use sample::Measure;

/// A format that a [`Document`] can be written in.
pub trait Export: Sync {
    /// As typed after `--format`.
    fn name(&self) -> &'static str;

    /// Whether it holds the stacks of one [`Measure`] rather than the whole document.
    fn is_of_stacks(&self) -> bool {
        true
    }

    /// Whether it is no text.
    fn is_binary(&self) -> bool {
        false
    }

    /// Writes the document; formats of stacks, what `measure` takes of it.
    fn export(&self, document: &Document, measure: Measure, out: &mut dyn Write) -> io::Result<()>;
}

/// Every format.
pub const ALL: &[&dyn Export] = &[
    &Json { pretty: true },
    &Json { pretty: false },
    &folded::Folded,
    &pprof::Pprof,
    &flamegraph::FlameGraph,
];

/// The format of that name.
pub fn by_name(name: &str) -> Option<&'static dyn Export> {
    ALL.iter().copied().find(|format| format.name() == name)
}

#[cfg(test)]
pub(crate) fn exported(name: &str, document: &Document, measure: Measure) -> Vec<u8> {
    let mut out = Vec::new();
    let format = by_name(name).unwrap();
    format.export(document, measure, &mut out).unwrap();
    out
}
