//! Formats for other programs: a trait, and one file per format.
//!
//! What people read is made by [`crate::report`].

use std::io::{self, Write};

use crate::report::document::Document;

mod json;

pub use json::Json;

/// A format that a whole [`Document`] can be written in.
pub trait Export: Sync {
    /// As typed after `--format`.
    fn name(&self) -> &'static str;

    /// Writes the document.
    fn export(&self, document: &Document, out: &mut dyn Write) -> io::Result<()>;
}

/// Every format.
pub const ALL: &[&dyn Export] = &[&Json { pretty: true }, &Json { pretty: false }];

/// The format of that name.
pub fn by_name(name: &str) -> Option<&'static dyn Export> {
    ALL.iter().copied().find(|format| format.name() == name)
}
