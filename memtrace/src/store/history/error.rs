//! What can go wrong with a history.

use std::{io, path::PathBuf};

/// Why a history cannot be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// SQLite failed.
    #[error("the history {path}: {source}", path = path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// It was written by a newer memtrace.
    #[error("the history {path} is of version {version}, this memtrace knows {known}: update memtrace, or move the file away", path = path.display())]
    Version {
        /// The database.
        path: PathBuf,
        /// The version in it.
        version: i64,
        /// The version that is known.
        known: i64,
    },
    /// A damaged one cannot be moved aside.
    #[error("the damaged history {path} cannot be moved aside: {source}", path = path.display())]
    Aside {
        /// The database.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The thread that writes cannot be started.
    #[error("the history's thread cannot be started: {source}")]
    Thread {
        /// The system's error.
        source: io::Error,
    },
    /// More is to be written than there is room for.
    #[error("the disk is behind: try again")]
    Behind,
    /// Nothing of that name, and no time either.
    #[error(
        "{text:?} is no mark, no age and no time: name a mark of memtrace mark, an age such as 2h, or seconds since 1970 as @1700000000"
    )]
    Moment {
        /// As typed.
        text: String,
    },
}

impl HistoryError {
    /// Whether the file is damaged, rather than the disk full or the system unwilling.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Database { source, .. } if is_damage(source))
    }
}

/// Whether SQLite found the file damaged: also where a value is of a type that the schema does not have.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(
        error.sqlite_error_code(),
        Some(DatabaseCorrupt | NotADatabase)
    ) || matches!(
        error,
        rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::IntegralValueOutOfRange(..)
    )
}
