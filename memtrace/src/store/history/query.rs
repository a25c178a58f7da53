//! Questions about the past: a report of a span of time, as a document like any other.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OptionalExtension as _, Row as Found, params};

use super::{
    buckets,
    error::HistoryError,
    growth, open,
    schema::{TIERS, Tier},
};
use crate::{
    report::document::{
        AddressSpace, Coverage, Document, Exit, Faults, LeftOut, Process, SCHEMA, TimelinePoint,
    },
    units,
};

/// A span of time, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub since_ms: i64,
    /// Where it ends.
    pub until_ms: i64,
}

/// Processes in one report at most.
const MAX_PROCESSES: usize = 10_000;

/// How much later than a process began or ended its first or last point may be dated, beside the step: that of a
/// daemon that was held up.
const MARGIN_MS: i64 = 60_000;

/// Points in one process's timeline at most.
const MAX_POINTS: usize = 512;

/// The reading end of a history.
pub struct Reader {
    path: PathBuf,
    connection: Connection,
}

impl Reader {
    /// Opens the database that a daemon writes, or that it left.
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        Ok(Self {
            path: path.to_owned(),
            connection: open::open_to_read(path)?,
        })
    }

    /// A moment as typed: a mark (the last one of that name), an age (`2h`) or a time (`@1700000000`, in seconds).
    pub fn moment(&self, text: &str, now_ms: i64) -> Result<i64, HistoryError> {
        let sql = "SELECT time_ms FROM mark WHERE name = ?1 ORDER BY rowid DESC LIMIT 1";
        let mark = self
            .connection
            .query_row(sql, [text], |row| row.get(0))
            .optional();
        if let Some(time_ms) = mark.map_err(|error| self.failed(error))? {
            return Ok(time_ms);
        }
        let unknown = || HistoryError::Moment {
            text: text.to_owned(),
        };
        if let Some(seconds) = text.strip_prefix('@') {
            let seconds: i64 = seconds.parse().map_err(|_| unknown())?;
            return seconds.checked_mul(1000).ok_or_else(unknown);
        }
        let age = units::parse_duration(text).map_err(|_| unknown())?;
        Ok(now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The processes that ran within the span; of these pids alone unless empty, and in cgroups that fit. Faults and
    /// the timeline are those of the span, sizes those at its end. Times are nanoseconds since 1970.
    ///
    /// Of more than 10,000 those that run and those that were largest are told, the others are
    /// counted as `processes_not_told`.
    pub fn report(
        &self,
        span: Span,
        pids: &[u32],
        fits: impl Fn(&str) -> bool,
    ) -> Result<Document, HistoryError> {
        self.try_report(span, pids, fits)
            .map_err(|error| self.failed(error))
    }

    fn failed(&self, source: rusqlite::Error) -> HistoryError {
        HistoryError::Database {
            path: self.path.clone(),
            source,
        }
    }

    fn try_report(
        &self,
        span: Span,
        pids: &[u32],
        fits: impl Fn(&str) -> bool,
    ) -> rusqlite::Result<Document> {
        // One transaction is one state of the database.
        let transaction = self.connection.unchecked_transaction()?;
        let tier = self.tier(span)?;
        let (ids, omitted) = self.found(span, pids, fits)?;
        let sql = "SELECT id, pid, parent_pid, start_ms, end_ms, comm, exe, command_line, cgroup, exit_code, \
                   exit_signal, peak_reserved, peak_committed FROM process WHERE id = ?1";
        let mut statement = self.connection.prepare(sql)?;
        let mut processes = Vec::with_capacity(ids.len());
        for id in ids {
            let mut process = statement.query_row([id], process)?;
            self.fill(&mut process, id, tier, span)?;
            growth::fill(&self.connection, &mut process, id, span)?;
            processes.push(process);
        }
        let mut coverage = self.coverage(span)?;
        if omitted > 0 {
            let reasons = &mut coverage.lost_by_reason;
            reasons.insert("processes_not_told".to_owned(), omitted);
        }
        transaction.finish()?;
        Ok(Document {
            schema: SCHEMA,
            memtrace: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: String::new(),
            arch: std::env::consts::ARCH.to_owned(),
            coverage,
            processes,
        })
    }

    /// The ids of the processes to tell, in the order in which they were met; and how many more there are.
    fn found(
        &self,
        span: Span,
        pids: &[u32],
        fits: impl Fn(&str) -> bool,
    ) -> rusqlite::Result<(Vec<i64>, u64)> {
        // Of a month there may be a million: chosen here, since SQLite would sort them in a file.
        let sql = "SELECT id, pid, cgroup, peak_committed FROM process \
                   WHERE start_ms <= ?2 AND (end_ms IS NULL OR end_ms >= ?1)";
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query(params![span.since_ms, span.until_ms])?;
        let (mut chosen, mut omitted) = (BinaryHeap::new(), 0);
        while let Some(row) = rows.next()? {
            let (pid, cgroup): (u32, String) = (row.get(1)?, row.get(2)?);
            if !(pids.is_empty() || pids.contains(&pid)) || !fits(&cgroup) {
                continue;
            }
            // Whoever runs has no peak yet, nor has who ran when a daemon ended.
            let (id, peak): (i64, Option<i64>) = (row.get(0)?, row.get(3)?);
            chosen.push(Reverse((peak.unwrap_or(i64::MAX), id)));
            if chosen.len() > MAX_PROCESSES {
                chosen.pop();
                omitted += 1;
            }
        }
        let mut ids: Vec<i64> = chosen.into_iter().map(|Reverse((_, id))| id).collect();
        ids.sort_unstable();
        Ok((ids, omitted))
    }

    /// The finest resolution that reaches back to where the span begins; the coarsest where none does.
    fn tier(&self, span: Span) -> rusqlite::Result<Tier> {
        let oldest = |tier: &Tier| -> rusqlite::Result<Option<i64>> {
            let sql = format!("SELECT min(time_ms) FROM {}", tier.table);
            self.connection.query_row(&sql, [], |row| row.get(0))
        };
        let [finest, .., coarsest] = TIERS;
        let beginning = oldest(&coarsest)?.unwrap_or(0);
        for tier in TIERS {
            // What began after the span reaches back further than any.
            if oldest(&tier)?.is_some_and(|first| first <= span.since_ms.max(beginning)) {
                return Ok(tier);
            }
        }
        Ok(finest)
    }

    /// Sizes, faults and the timeline of a process, from its points.
    fn fill(&self, process: &mut Process, id: i64, tier: Tier, span: Span) -> rusqlite::Result<()> {
        let sql = format!(
            "SELECT time_ms, reserved, committed, committed_peak, heap_live, minor, major, minor_ns, \
             major_ns, faults FROM {} \
             WHERE time_ms BETWEEN ?1 AND ?2 AND process = ?3 ORDER BY time_ms",
            tier.table
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        // A process that does not change is told again within this time.
        let from = span.since_ms.saturating_sub(tier.repeat_ms + tier.step_ms);
        // Points lie in the order of time, and most lives are short.
        let ms = |ns: u64| i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX);
        let margin = tier.step_ms + MARGIN_MS;
        let from = from.max(ms(process.start_time_ns).saturating_sub(margin));
        let ended = process.end_time_ns.map_or(i64::MAX, ms);
        let until = span.until_ms.min(ended.saturating_add(margin));
        let mut rows = statement.query(params![from, until, id])?;
        let (mut before, mut times): (Option<TimelinePoint>, _) = (None, [None; 2]);
        let (mut points, mut histogram, mut peak) = (Vec::new(), Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let time_ms: i64 = row.get(0)?;
            let point = point(row)?;
            let spent = (unsigned(row, 7)?, unsigned(row, 8)?);
            if time_ms < span.since_ms {
                (before, times[0]) = (Some(point), Some(spent));
                continue;
            }
            times[1] = Some(spent);
            peak = peak.max(unsigned(row, 3)?);
            let faults: Option<Vec<u8>> = row.get(9)?;
            if !buckets::add(faults.as_deref().unwrap_or_default(), &mut histogram) {
                return Err(rusqlite::Error::InvalidColumnType(
                    9,
                    "faults".to_owned(),
                    rusqlite::types::Type::Blob,
                ));
            }
            points.push(point);
        }
        let Some(last) = points.last().or(before.as_ref()).copied() else {
            return Ok(());
        };
        let (minor, major) = before.map_or((0, 0), |before| (before.minor, before.major));
        let [spent_before, spent] = times.map(Option::unwrap_or_default);
        let minor_ns = spent.0.saturating_sub(spent_before.0);
        let major_ns = spent.1.saturating_sub(spent_before.1);
        process.faults = Faults {
            minor: last.minor.saturating_sub(minor),
            major: last.major.saturating_sub(major),
            latency_ns: crate::model::latency_of(&histogram, minor_ns, major_ns),
            ..Faults::default()
        };
        let space = &mut process.address_space;
        space.reserved_bytes = last.reserved_bytes;
        space.committed_bytes = last.committed_bytes;
        space.lazy_bytes = last.reserved_bytes.saturating_sub(last.committed_bytes);
        space.peak_committed_bytes = space
            .peak_committed_bytes
            .max(peak)
            .max(last.committed_bytes);
        space.peak_reserved_bytes = space.peak_reserved_bytes.max(last.reserved_bytes);
        process.timeline = thin(points, last);
        Ok(())
    }

    fn coverage(&self, span: Span) -> rusqlite::Result<Coverage> {
        let mut coverage = Coverage::default();
        let sql = "SELECT kind, count(*), total(count) FROM event \
                   WHERE time_ms <= ?2 AND ifnull(end_ms, time_ms) >= ?1 GROUP BY kind";
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query(params![span.since_ms, span.until_ms])?;
        while let Some(row) = rows.next()? {
            let (kind, events, count): (String, i64, f64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let count = count as u64;
            match kind.as_str() {
                "lost" => {
                    coverage.lost += count;
                    coverage
                        .lost_by_reason
                        .insert("lost_events".to_owned(), count);
                }
                "dropped" => {
                    coverage.processes_dropped += count;
                }
                "gap" | "damaged" => {
                    coverage
                        .lost_by_reason
                        .insert(format!("history_{kind}"), events as u64);
                }
                _ => {}
            }
        }
        coverage.left_out = self.left_out(span)?;
        Ok(coverage)
    }

    fn left_out(&self, span: Span) -> rusqlite::Result<Vec<LeftOut>> {
        let sql = "SELECT time_ms, end_ms, detail FROM event \
                   WHERE kind = 'budget' AND time_ms <= ?2 AND end_ms >= ?1 ORDER BY time_ms";
        let mut statement = self.connection.prepare(sql)?;
        let rows = statement.query_map(params![span.since_ms, span.until_ms], |row| {
            Ok(LeftOut {
                since_ms: row.get(0)?,
                until_ms: row.get(1)?,
                what: row.get(2)?,
            })
        })?;
        rows.collect()
    }
}

fn process(row: &Found<'_>) -> rusqlite::Result<Process> {
    let nanoseconds = |ms: i64| ms.max(0) as u64 * 1_000_000;
    let end_ms: Option<i64> = row.get(4)?;
    let exit = Exit {
        code: row.get(9)?,
        signal: row.get(10)?,
    };
    let command_line: String = row.get(7)?;
    Ok(Process {
        pid: row.get(1)?,
        parent_pid: row.get(2)?,
        start_time_ns: nanoseconds(row.get(3)?),
        end_time_ns: end_ms.map(nanoseconds),
        comm: row.get(5)?,
        exe: row.get(6)?,
        command_line: serde_json::from_str(&command_line).unwrap_or_default(),
        cgroup: row.get(8)?,
        exit: end_ms.map(|_| exit),
        heap: None,
        heap_reason: Some("the history keeps sizes, not blocks".to_owned()),
        address_space: AddressSpace {
            peak_reserved_bytes: optional(row, 11)?,
            peak_committed_bytes: optional(row, 12)?,
            committed_source: "kernel counters".to_owned(),
            ..AddressSpace::default()
        },
        faults: Faults::default(),
        leaks: Vec::new(),
        sites: Vec::new(),
        other_sites: None,
        fault_sites: Vec::new(),
        growth: None,
        frames: Vec::new(),
        regions: Vec::new(),
        timeline: Vec::new(),
    })
}

fn point(row: &Found<'_>) -> rusqlite::Result<TimelinePoint> {
    let time_ms: i64 = row.get(0)?;
    let heap_live: Option<i64> = row.get(4)?;
    Ok(TimelinePoint {
        time_ns: time_ms.max(0) as u64 * 1_000_000,
        reserved_bytes: unsigned(row, 1)?,
        committed_bytes: unsigned(row, 2)?,
        heap_live_bytes: heap_live.map(|bytes| bytes.max(0) as u64),
        program_break_bytes: 0,
        minor: unsigned(row, 5)?,
        major: unsigned(row, 6)?,
    })
}

/// A number that is never negative: one that is shows damage.
fn unsigned(row: &Found<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

fn optional(row: &Found<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: Option<i64> = row.get(column)?;
    Ok(value.map_or(0, |value| value.max(0) as u64))
}

/// At most [`MAX_POINTS`], evenly chosen, and the last one.
fn thin(points: Vec<TimelinePoint>, last: TimelinePoint) -> Vec<TimelinePoint> {
    let step = points.len().div_ceil(MAX_POINTS - 1).max(1);
    let mut kept: Vec<TimelinePoint> = points.into_iter().step_by(step).collect();
    if kept.last() != Some(&last) {
        kept.push(last);
    }
    kept
}
