//! What a second brings to the history.

use std::collections::HashMap;

use crate::report::document::{Frame, GrowthSite, LeftOut};

/// A process by pid and start, as events have them.
pub type Key = (u32, u64);

/// One reading of everything, at a time of the wall clock in milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// When.
    pub time_ms: i64,
    /// The processes that run.
    pub rows: Vec<Row>,
    /// Those that ended since the batch before, but for those of its last [`Batch::behind_ms`].
    pub ended: Vec<Ended>,
    /// How far behind its time the ends are told, in milliseconds.
    pub behind_ms: i64,
    /// Events lost since the batch before.
    pub lost: u64,
    /// What is left out for the budget's sake.
    pub left_out: Vec<LeftOut>,
    /// Ended processes that found no room while nothing could be written.
    pub dropped: u64,
}

/// Ended processes that wait to be written at most.
const MAX_WAITING: usize = 50_000;

/// A process that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Which.
    pub key: Key,
    /// What it is; told the first time, and when it changes.
    pub identity: Option<Identity>,
    /// Bytes mapped.
    pub reserved: u64,
    /// Bytes resident.
    pub committed: u64,
    /// Bytes in live blocks; `None` where the heap is not seen.
    pub heap_live: Option<u64>,
    /// Minor faults so far.
    pub minor: u64,
    /// Major faults so far.
    pub major: u64,
    /// Time spent in minor faults so far, in nanoseconds.
    pub minor_ns: u64,
    /// Time spent in major faults so far.
    pub major_ns: u64,
    /// Faults so far by bucket.
    pub buckets: Vec<u64>,
    /// Sites that grow, where they are to be written now.
    pub growth: Vec<Grown>,
}

/// What one stack touched first and still holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Grown {
    /// Figures, without points and stack.
    pub site: GrowthSite,
    /// The stack, innermost first.
    pub frames: Vec<Frame>,
    /// Since when the process is sampled, in milliseconds since 1970.
    pub since_ms: i64,
    /// When the first page that it holds was touched.
    pub oldest_ms: i64,
    /// When the last was.
    pub newest_ms: i64,
}

/// What a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its parent.
    pub parent_pid: u32,
    /// When it began to be traced, in milliseconds since 1970.
    pub start_ms: i64,
    /// Name of the main thread.
    pub comm: String,
    /// Path of the program.
    pub exe: String,
    /// Arguments, redacted as the configuration says.
    pub command_line: Vec<String>,
    /// cgroup path.
    pub cgroup: String,
    /// Container or unit that the path names.
    pub container: Option<String>,
}

/// A process that ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Its last state.
    pub row: Row,
    /// When, in milliseconds since 1970.
    pub end_ms: i64,
    /// Exit status.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Most bytes mapped at a time.
    pub peak_reserved: u64,
    /// Most bytes resident at a time.
    pub peak_committed: u64,
}

impl Batch {
    /// Adds what a later batch tells: one that could not be written is not lost but for its resolution.
    pub fn absorb(&mut self, mut later: Batch) {
        self.time_ms = later.time_ms;
        self.behind_ms = later.behind_ms;
        // An identity is told once, and growth now and then, so they move to the row that stays.
        let mut before: HashMap<Key, (Option<Identity>, Vec<Grown>)> = self
            .rows
            .drain(..)
            .map(|row| (row.key, (row.identity, row.growth)))
            .collect();
        for row in later
            .rows
            .iter_mut()
            .chain(later.ended.iter_mut().map(|one| &mut one.row))
        {
            let (identity, growth) = before.remove(&row.key).unwrap_or_default();
            row.identity = row.identity.take().or(identity);
            if row.growth.is_empty() {
                row.growth = growth;
            }
        }
        self.rows = later.rows;
        let room = MAX_WAITING.saturating_sub(self.ended.len());
        let dropped = later.ended.len().saturating_sub(room) as u64;
        later.ended.truncate(room);
        self.ended.append(&mut later.ended);
        self.lost += later.lost;
        self.dropped += later.dropped + dropped;
    }
}
