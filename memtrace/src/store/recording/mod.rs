//! Recordings: [`Event`](crate::event::Event)s on disk, readable by any Arrow implementation.
//!
//! A recording is an Arrow IPC *stream*: a schema, then record batches, each compressed with zstd,
//! then an end mark, and behind it a summary. docs/RECORDING.md documents the columns; this module is the only place that
//! knows them.
//!
//! - [`Writer`] collects events and writes them a batch at a time. The caller says when what was
//!   collected must be on disk ([`Writer::flush`]); what was flushed survives whatever follows.
//! - [`Reader`] gives the same events back with one batch in memory. A recording without its end
//!   mark was cut: all its whole batches are read, and [`Reader::truncated`] says so.
//! - [`Reader::summary`] gives what the writer put behind the end mark, without reading the events.
//!
//! A recording may come from anywhere, and is believed in nothing: each message carries checksums
//! that other tools take for padding (`frame.rs`), lengths are compared with fixed limits before
//! memory is reserved, and a row that makes no sense is an error that names its batch.
//!
//! Not here: when to flush (the live path knows), and what an event means (the model knows).

mod ahead;
mod blocks;
mod bounded;
mod decode;
mod detail;
mod encode;
mod error;
mod frame;
mod images;
mod packed;
mod reader;
mod schema;
mod summary;
mod tables;
mod unpacked;
mod wide;
mod writer;

#[cfg(test)]
mod limits;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod sizes;
#[cfg(test)]
mod tests;

pub use ahead::read_ahead;
pub use error::{ReadError, WriteError};
pub use reader::Reader;
pub use schema::FORMAT_VERSION;
pub use writer::Writer;

/// Rows of a batch at most.
const BATCH_ROWS: usize = 64 * 1024;

/// A batch ends when its lists and texts exceed this, in bytes.
const BATCH_VARIABLE_BYTES: usize = 8 << 20;

/// Lists and texts of one event at most, in bytes. Only the resident pages of a huge and scattered
/// mapping come near.
const EVENT_BYTES: usize = 64 << 20;

/// A frame of a stack at most: the number of its code, and the code where it is new, by module and offset.
const FRAME_BYTES: usize = 20;

/// A function of a name beside its texts: where it is read it takes as much, and its JSON may be 12 bytes.
const FUNCTION_BYTES: usize = 96;

/// An argument of a command line, likewise; its JSON may be 3 bytes.
const ARGUMENT_BYTES: usize = 56;

/// A decompressed batch at most: a full batch, and one event of the largest size on top.
const DECOMPRESSED_BYTES: usize = 96 << 20;

// The fixed-width columns take less than 160 bytes a row.
const _: () = assert!(BATCH_ROWS * 160 + BATCH_VARIABLE_BYTES + EVENT_BYTES <= DECOMPRESSED_BYTES);
