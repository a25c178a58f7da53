//! What can go wrong with a recording.

use std::{io, path::PathBuf};

/// A recording could not be written. What was flushed before remains readable.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file could not be created.
    #[error("cannot create the recording {}: {cause}; choose another place with -o", path.display())]
    Create {
        /// Where it was to be.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The file could not be extended.
    #[error("cannot write the recording {}: {cause}; it is kept up to byte {offset}", path.display())]
    Write {
        /// The recording.
        path: PathBuf,
        /// Bytes that are good.
        offset: u64,
        /// What the system said.
        cause: io::Error,
    },
    /// An earlier write failed; nothing is added after that.
    #[error("the recording {} ended at byte {offset}, where a write had failed", path.display())]
    Ended {
        /// The recording.
        path: PathBuf,
        /// Bytes that are good.
        offset: u64,
    },
    /// One event is larger than a reader would accept; it was left out, others can follow.
    #[error("an event of kind {kind} was left out of the recording {}: its {bytes} bytes exceed the limit of {limit}", path.display())]
    EventTooLarge {
        /// The recording.
        path: PathBuf,
        /// The event's kind.
        kind: &'static str,
        /// Its lists and texts.
        bytes: usize,
        /// The most there may be.
        limit: usize,
    },
    /// What writes it panicked: a defect of memtrace.
    #[error("the recording {} ends early: what writes it failed; please report this", path.display())]
    Panicked {
        /// The recording.
        path: PathBuf,
    },
    /// Arrow refused what was collected: a defect of memtrace.
    #[error("cannot encode events for the recording {}: {what}; please report this", path.display())]
    Encode {
        /// The recording.
        path: PathBuf,
        /// What Arrow said.
        what: String,
    },
}

/// A recording could not be read, or not further.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be opened.
    #[error("cannot open the recording {}: {cause}", path.display())]
    Open {
        /// The recording.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The system failed to read it.
    #[error("cannot read the recording {} at byte {offset}: {cause}", path.display())]
    Read {
        /// The recording.
        path: PathBuf,
        /// Where the unreadable part begins.
        offset: u64,
        /// What the system said.
        cause: io::Error,
    },
    /// It is something else.
    #[error("{} is not a memtrace recording: {what}; give a file written with -o", path.display())]
    NotARecording {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// Another version of memtrace wrote it.
    #[error("the recording {} has format {version}, this memtrace reads format {supported}; use the memtrace that wrote it", path.display())]
    OtherFormat {
        /// The recording.
        path: PathBuf,
        /// Its format.
        version: u32,
        /// The format that this memtrace reads.
        supported: u32,
    },
    /// Bytes were changed. The events before this place were given out and are good.
    #[error("the recording {} is damaged at byte {offset}: {what}; make it again, or copy it again from where it was made", path.display())]
    Damaged {
        /// The recording.
        path: PathBuf,
        /// Where the message begins that cannot be read.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
}
