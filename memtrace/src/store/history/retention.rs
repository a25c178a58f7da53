//! What is too old or too much goes.

use rusqlite::Connection;

use super::{growth, open::PAGE, schema::TIERS};

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Milliseconds of points of each resolution, finest first; the last holds for processes and events too.
    pub keep_ms: [i64; TIERS.len()],
    /// Bytes of the database.
    pub bytes: u64,
}

/// Part of the database that stays free, so that a batch finds room between two looks.
const SPARE: u64 = 10;

/// Drops what is too old.
pub fn drop_old(
    connection: &Connection,
    retention: &Retention,
    now_ms: i64,
) -> rusqlite::Result<()> {
    for (tier, keep_ms) in TIERS.iter().zip(retention.keep_ms) {
        drop_before(connection, tier.table, now_ms.saturating_sub(keep_ms))?;
    }
    let oldest_ms = now_ms.saturating_sub(retention.keep_ms[TIERS.len() - 1]);
    drop_rest(connection, oldest_ms)?;
    let coarse_before_ms = now_ms.saturating_sub(retention.keep_ms[1]);
    growth::drop_old(connection, oldest_ms, coarse_before_ms)
}

/// Drops the oldest where the bound is near.
pub fn keep_bound(connection: &Connection, retention: &Retention) -> rusqlite::Result<()> {
    while used(connection)? > retention.bytes / SPARE * (SPARE - 1) {
        if !make_room(connection, retention)? {
            break;
        }
    }
    Ok(())
}

/// Drops the oldest tenth of the finest points that there are. False where there is nothing left to drop.
pub fn make_room(connection: &Connection, retention: &Retention) -> rusqlite::Result<bool> {
    for tier in TIERS {
        let sql = format!("SELECT min(time_ms), max(time_ms) FROM {}", tier.table);
        let (first, last): (Option<i64>, Option<i64>) =
            connection.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if let (Some(first), Some(last)) = (first, last)
            && last - first >= 10 * tier.step_ms
        {
            let until_ms = first + (last - first) / 10 + 1;
            log::info!(
                "{} loses its oldest points: the history has {} bytes at most",
                tier.table,
                retention.bytes
            );
            drop_before(connection, tier.table, until_ms)?;
            return Ok(true);
        }
    }
    let sql =
        "SELECT end_ms FROM process WHERE end_ms IS NOT NULL ORDER BY end_ms LIMIT 1 OFFSET 100";
    match connection.query_row(sql, [], |row| row.get(0)) {
        Ok(until_ms) => drop_rest(connection, until_ms).map(|()| true),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(false),
        Err(error) => Err(error),
    }
}

fn drop_before(connection: &Connection, table: &str, time_ms: i64) -> rusqlite::Result<()> {
    let sql = format!("DELETE FROM {table} WHERE time_ms < ?1");
    connection.execute(&sql, [time_ms]).map(drop)
}

fn drop_rest(connection: &Connection, time_ms: i64) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM process WHERE end_ms < ?1", [time_ms])?;
    connection.execute("DELETE FROM event WHERE time_ms < ?1", [time_ms])?;
    connection
        .execute("DELETE FROM mark WHERE time_ms < ?1", [time_ms])
        .map(drop)
}

/// Bytes of pages in use.
fn used(connection: &Connection) -> rusqlite::Result<u64> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let pages = number("page_count")? - number("freelist_count")?;
    Ok(pages.max(0) as u64 * PAGE)
}
