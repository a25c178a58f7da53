//! Opens a history, and begins a new one where the file is damaged.

use std::{fs, io, path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags};

use super::{
    error::HistoryError,
    schema::{APPLICATION, TABLES, VERSION},
};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Pages of cache: 4 MiB.
const CACHE_PAGES: i64 = 1024;

/// A connection that writes, and where the damaged file went that was in its place, if one was.
pub struct Opened {
    /// The connection.
    pub connection: Connection,
    /// The name that the damaged file has now.
    pub aside: Option<String>,
}

/// Opens or makes the database; one that is damaged is moved aside and a new one begun.
pub fn open(path: &Path, max_bytes: u64) -> Result<Opened, HistoryError> {
    match try_open(path, max_bytes) {
        Ok(connection) => Ok(Opened {
            connection,
            aside: None,
        }),
        Err(error) if error.is_damage() => {
            log::warn!("{error}");
            let aside = move_aside(path)?;
            Ok(Opened {
                connection: try_open(path, max_bytes)?,
                aside: Some(aside),
            })
        }
        Err(error) => Err(error),
    }
}

fn try_open(path: &Path, max_bytes: u64) -> Result<Connection, HistoryError> {
    let failed = |source| HistoryError::Database {
        path: path.to_owned(),
        source,
    };
    let connection = Connection::open(path).map_err(failed)?;
    set_up(&connection, max_bytes).map_err(failed)?;
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (version, application) = (
        number("user_version").map_err(failed)?,
        number("application_id").map_err(failed)?,
    );
    if version == 0 && application == 0 {
        create(&connection).map_err(failed)?;
    } else if application != APPLICATION {
        return Err(failed(damage("the file is not a history of memtrace")));
    } else if version != VERSION {
        let path = path.to_owned();
        return Err(HistoryError::Version {
            path,
            version,
            known: VERSION,
        });
    }
    check(&connection).map_err(failed)?;
    Ok(connection)
}

fn set_up(connection: &Connection, max_bytes: u64) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "page_size", PAGE as i64)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // Each commit is on the disk when it returns: a power cut costs what was not committed.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", CACHE_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    let pages = (max_bytes / PAGE) as i64;
    connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "BEGIN; {TABLES} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
    ))
}

/// Walks the whole file, as PRAGMA quick_check does; it says "ok" or what is wrong.
fn check(connection: &Connection) -> rusqlite::Result<()> {
    let told: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if told != "ok" {
        return Err(damage(&told));
    }
    if schema(connection)? != fresh_schema()? {
        return Err(damage("the tables are not those of a history"));
    }
    Ok(())
}

/// Whether what is on the disk is whole, told by a connection that has none of it in its cache.
pub fn verify(path: &Path) -> Result<(), HistoryError> {
    let connection = open_to_read(path)?;
    check(&connection).map_err(|source| HistoryError::Database {
        path: path.to_owned(),
        source,
    })
}

/// What the database says of its tables: a damaged word of it would be an error only where it is used.
fn schema(connection: &Connection) -> rusqlite::Result<Vec<(String, Option<String>)>> {
    let sql = "SELECT name, sql FROM sqlite_schema ORDER BY name";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

fn fresh_schema() -> rusqlite::Result<Vec<(String, Option<String>)>> {
    let fresh = Connection::open_in_memory()?;
    create(&fresh)?;
    schema(&fresh)
}

fn damage(message: &str) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(message.to_owned()))
}

/// Renames the database and its journal: what is in them may still be read by hand.
fn move_aside(path: &Path) -> Result<String, HistoryError> {
    let failed = |source| HistoryError::Aside {
        path: path.to_owned(),
        source,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let free = (1u32..).find_map(|turn| {
        let aside = format!("{name}.damaged-{turn}");
        (!path.with_file_name(&aside).exists()).then_some(aside)
    });
    let aside = free.ok_or_else(|| failed(io::ErrorKind::AlreadyExists.into()))?;
    for suffix in ["", "-wal", "-shm"] {
        let from = path.with_file_name(format!("{name}{suffix}"));
        let to = path.with_file_name(format!("{aside}{suffix}"));
        match fs::rename(from, to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    Ok(aside)
}

/// A connection that reads what the writer commits.
pub fn open_to_read(path: &Path) -> Result<Connection, HistoryError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags).and_then(|connection| {
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "cell_size_check", true)?;
        Ok(connection)
    });
    opened.map_err(|source| HistoryError::Database {
        path: path.to_owned(),
        source,
    })
}
