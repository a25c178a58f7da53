//! Sites that grow, with their stacks: written now and then of processes that are sampled, and read for a span of time.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rusqlite::{Connection, OptionalExtension as _, Row as Found, Transaction, params};

use super::{batch::Grown, query::Span};
use crate::report::document::{Frame, Growth, GrowthPoint, GrowthSite, Process, StackEnd};

/// Milliseconds for which what was written last holds: sites are written once a minute.
const HOLDS_MS: i64 = 120_000;

/// Milliseconds between two points that are kept for long.
const COARSE_MS: i64 = 1_800_000;

/// Points of one site in a report at most.
const MAX_POINTS: usize = 128;

/// Writes the sites of a process as of a time.
pub fn write(
    transaction: &Transaction<'_>,
    process: i64,
    time_ms: i64,
    sites: &[Grown],
) -> rusqlite::Result<()> {
    for Grown {
        site,
        frames,
        since_ms,
        oldest_ms,
        newest_ms,
    } in sites
    {
        let id = stack_id(frames);
        // What has its names is longer than what has none.
        let sql = "INSERT INTO stack (id, stack_end, frames) VALUES (?1, ?2, ?3) \
                   ON CONFLICT (id) DO UPDATE SET frames = excluded.frames \
                   WHERE length(excluded.frames) > length(frames)";
        let stack_end = serde_json::to_string(&site.stack_end).unwrap_or_default();
        let text = serde_json::to_string(frames).unwrap_or_default();
        transaction
            .prepare_cached(sql)?
            .execute(params![id, stack_end, text])?;
        let sql = "INSERT OR REPLACE INTO growth (time_ms, process, stack, since_ms, bytes, bytes_error, \
                   samples, bytes_per_second, bytes_per_second_error, confidence, over_ms, \
                   leak_candidate, oldest_ms, newest_ms) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
        transaction.prepare_cached(sql)?.execute(params![
            time_ms,
            process,
            id,
            since_ms,
            signed(site.bytes),
            signed(site.bytes_error),
            signed(site.samples),
            site.bytes_per_second,
            site.bytes_per_second_error,
            site.confidence,
            signed(site.over_ns / 1_000_000),
            site.leak_candidate,
            oldest_ms,
            newest_ms,
        ])?;
    }
    Ok(())
}

/// A stack by where its code is: equal in every process that runs the same files.
fn stack_id(frames: &[Frame]) -> i64 {
    let mut hasher = DefaultHasher::new();
    for frame in frames.iter().filter(|frame| !frame.inlined) {
        match (&frame.module, frame.offset) {
            (Some(module), Some(offset)) => (module, offset).hash(&mut hasher),
            _ => (frame.address, &frame.function).hash(&mut hasher),
        }
    }
    (hasher.finish() >> 1) as i64
}

/// Puts the sites into a process, as of the end of the span, with their levels within it.
pub fn fill(
    connection: &Connection,
    process: &mut Process,
    id: i64,
    span: Span,
) -> rusqlite::Result<()> {
    let sql = "SELECT max(time_ms) FROM growth WHERE process = ?1 AND time_ms BETWEEN ?2 AND ?3";
    let from_ms = span.since_ms.saturating_sub(HOLDS_MS);
    let last: Option<i64> = connection
        .prepare_cached(sql)?
        .query_row(params![id, from_ms, span.until_ms], |row| row.get(0))
        .optional()?
        .flatten();
    let Some(time_ms) = last else {
        return Ok(());
    };
    let sql = "SELECT g.stack, s.stack_end, s.frames, g.since_ms, g.bytes, g.bytes_error, g.samples, \
               g.bytes_per_second, g.bytes_per_second_error, g.confidence, g.over_ms, \
               g.leak_candidate, g.oldest_ms, g.newest_ms \
               FROM growth g JOIN stack s ON s.id = g.stack WHERE g.process = ?1 AND g.time_ms = ?2 \
               ORDER BY g.leak_candidate DESC, g.bytes DESC";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![id, time_ms])?;
    let mut growth = Growth {
        since_ns: u64::MAX,
        ..Growth::default()
    };
    while let Some(row) = rows.next()? {
        let since_ms: i64 = row.get(3)?;
        growth.since_ns = growth.since_ns.min(nanoseconds(since_ms));
        let mut site = site(row, time_ms, &mut process.frames)?;
        site.points = points(connection, id, row.get(0)?, span)?;
        growth.sites.push(site);
    }
    if !growth.sites.is_empty() {
        process.growth = Some(growth);
    }
    Ok(())
}

fn site(row: &Found<'_>, time_ms: i64, frames: &mut Vec<Frame>) -> rusqlite::Result<GrowthSite> {
    let age = |column: usize| -> rusqlite::Result<u64> {
        let then: i64 = row.get(column)?;
        Ok(nanoseconds(time_ms.saturating_sub(then)))
    };
    let (end, text): (String, String) = (row.get(1)?, row.get(2)?);
    let stack_end: Option<StackEnd> = serde_json::from_str(&end).unwrap_or_default();
    let told: Vec<Frame> = serde_json::from_str(&text).unwrap_or_default();
    let first = frames.len() as u32;
    frames.extend(told);
    Ok(GrowthSite {
        bytes: unsigned(row, 4)?,
        bytes_error: unsigned(row, 5)?,
        samples: unsigned(row, 6)?,
        bytes_per_second: row.get(7)?,
        bytes_per_second_error: row.get(8)?,
        confidence: row.get(9)?,
        over_ns: nanoseconds(row.get(10)?),
        leak_candidate: row.get(11)?,
        oldest_age_ns: age(12)?,
        newest_age_ns: age(13)?,
        points: Vec::new(),
        stack_end,
        stack: (first..frames.len() as u32).collect(),
    })
}

fn points(
    connection: &Connection,
    process: i64,
    stack: i64,
    span: Span,
) -> rusqlite::Result<Vec<GrowthPoint>> {
    let sql = "SELECT time_ms, bytes FROM growth WHERE process = ?1 AND stack = ?2 \
               AND time_ms BETWEEN ?3 AND ?4 ORDER BY time_ms";
    let mut statement = connection.prepare_cached(sql)?;
    let limits = params![process, stack, span.since_ms, span.until_ms];
    let rows = statement.query_map(limits, |row| {
        let time_ms: i64 = row.get(0)?;
        Ok(GrowthPoint {
            time_ns: nanoseconds(time_ms),
            bytes: unsigned(row, 1)?,
        })
    })?;
    let points: Vec<GrowthPoint> = rows.collect::<rusqlite::Result<_>>()?;
    let step = points.len().div_ceil(MAX_POINTS).max(1);
    // The last one is kept.
    let skipped = points.len().saturating_sub(1) % step;
    Ok(points.into_iter().skip(skipped).step_by(step).collect())
}

/// Drops what is older than a time altogether, and most of what is older than another; and what is of no process that
/// is known.
pub fn drop_old(
    connection: &Connection,
    oldest_ms: i64,
    coarse_before_ms: i64,
) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM growth WHERE time_ms < ?1", [oldest_ms])?;
    // One point in each half hour stays: the first.
    let sql = "DELETE FROM growth WHERE time_ms < ?1 AND EXISTS (SELECT 1 FROM growth before \
               WHERE before.process = growth.process AND before.stack = growth.stack \
               AND before.time_ms < growth.time_ms AND before.time_ms / ?2 = growth.time_ms / ?2)";
    connection.execute(sql, params![coarse_before_ms, COARSE_MS])?;
    connection.execute(
        "DELETE FROM growth WHERE process NOT IN (SELECT id FROM process)",
        [],
    )?;
    connection
        .execute(
            "DELETE FROM stack WHERE id NOT IN (SELECT stack FROM growth)",
            [],
        )
        .map(drop)
}

fn nanoseconds(ms: i64) -> u64 {
    (ms.max(0) as u64).saturating_mul(1_000_000)
}

fn unsigned(row: &Found<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "growth_tests.rs"]
mod tests;
