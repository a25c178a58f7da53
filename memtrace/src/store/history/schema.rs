//! The tables. docs/HISTORY.md says what they mean.

/// Kept in `user_version`.
pub const VERSION: i64 = 1;

/// Kept in `application_id`: "mtrc".
pub const APPLICATION: i64 = 0x6d74_7263;

/// Made once, in an empty database.
pub const TABLES: &str = "
CREATE TABLE process (
    id INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    parent_pid INTEGER NOT NULL,
    start_ms INTEGER NOT NULL,
    end_ms INTEGER,
    comm TEXT NOT NULL,
    exe TEXT NOT NULL,
    command_line TEXT NOT NULL,
    cgroup TEXT NOT NULL,
    container TEXT,
    exit_code INTEGER,
    exit_signal INTEGER,
    peak_reserved INTEGER,
    peak_committed INTEGER,
    minor INTEGER NOT NULL DEFAULT 0,
    major INTEGER NOT NULL DEFAULT 0,
    minor_ns INTEGER NOT NULL DEFAULT 0,
    major_ns INTEGER NOT NULL DEFAULT 0,
    faults BLOB
) STRICT;
CREATE INDEX process_by_end ON process (end_ms);
CREATE TABLE sample_1s (
    time_ms INTEGER NOT NULL,
    process INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    committed INTEGER NOT NULL,
    committed_peak INTEGER NOT NULL,
    heap_live INTEGER,
    minor INTEGER NOT NULL,
    major INTEGER NOT NULL,
    minor_ns INTEGER NOT NULL,
    major_ns INTEGER NOT NULL,
    faults BLOB,
    PRIMARY KEY (time_ms, process)
) STRICT, WITHOUT ROWID;
CREATE TABLE sample_10s (
    time_ms INTEGER NOT NULL,
    process INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    committed INTEGER NOT NULL,
    committed_peak INTEGER NOT NULL,
    heap_live INTEGER,
    minor INTEGER NOT NULL,
    major INTEGER NOT NULL,
    minor_ns INTEGER NOT NULL,
    major_ns INTEGER NOT NULL,
    faults BLOB,
    PRIMARY KEY (time_ms, process)
) STRICT, WITHOUT ROWID;
CREATE TABLE sample_5min (
    time_ms INTEGER NOT NULL,
    process INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    committed INTEGER NOT NULL,
    committed_peak INTEGER NOT NULL,
    heap_live INTEGER,
    minor INTEGER NOT NULL,
    major INTEGER NOT NULL,
    minor_ns INTEGER NOT NULL,
    major_ns INTEGER NOT NULL,
    faults BLOB,
    PRIMARY KEY (time_ms, process)
) STRICT, WITHOUT ROWID;
CREATE TABLE growth (
    time_ms INTEGER NOT NULL,
    process INTEGER NOT NULL,
    stack INTEGER NOT NULL,
    since_ms INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    bytes_error INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    bytes_per_second REAL NOT NULL,
    bytes_per_second_error REAL NOT NULL,
    confidence REAL NOT NULL,
    over_ms INTEGER NOT NULL,
    leak_candidate INTEGER NOT NULL,
    oldest_ms INTEGER NOT NULL,
    newest_ms INTEGER NOT NULL,
    PRIMARY KEY (process, time_ms, stack)
) STRICT, WITHOUT ROWID;
CREATE INDEX growth_by_stack ON growth (process, stack, time_ms);
CREATE TABLE stack (
    id INTEGER PRIMARY KEY,
    stack_end TEXT NOT NULL,
    frames TEXT NOT NULL
) STRICT;
CREATE TABLE event (
    time_ms INTEGER NOT NULL,
    end_ms INTEGER,
    kind TEXT NOT NULL,
    count INTEGER,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX event_by_time ON event (time_ms);
CREATE TABLE mark (
    name TEXT NOT NULL,
    time_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE state (
    key TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// How far apart points are, finest first, and how long an unchanged process may go without one.
pub const TIERS: [Tier; 3] = [
    Tier {
        table: "sample_1s",
        step_ms: 1000,
        repeat_ms: 60_000,
    },
    Tier {
        table: "sample_10s",
        step_ms: 10_000,
        repeat_ms: 600_000,
    },
    Tier {
        table: "sample_5min",
        step_ms: 300_000,
        repeat_ms: 300_000,
    },
];

/// A resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Its table.
    pub table: &'static str,
    /// Milliseconds between points.
    pub step_ms: i64,
    /// A process that did not change has a point at least this often.
    pub repeat_ms: i64,
}
