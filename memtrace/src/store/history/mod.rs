//! The daemon's history: what each process did, in an SQLite database with points that thin out with age.
//!
//! docs/HISTORY.md describes the tables for those who query them. A thread of its own writes, so that a slow or full
//! disk holds nobody up; a batch a second is one transaction, on the disk when it is committed. What cannot be written
//! is kept for a while and told as a gap.

mod batch;
mod buckets;
mod clock;
pub mod columns;
mod error;
mod growth;
mod known;
#[cfg(test)]
mod many_tests;
mod open;
mod query;
mod retention;
mod schema;
#[cfg(test)]
mod tests;
mod thread;
mod writer;

pub use batch::{Batch, Ended, Grown, Identity, Row};
pub use error::HistoryError;
pub use query::{Reader, Span};
pub use retention::Retention;
pub use thread::{History, Suspicion, Written};
pub use writer::Writer;
