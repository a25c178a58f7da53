//! From the model's rows to the history's.

use std::path::Path;

use rustc_hash::FxHashMap;
use tokio::sync::oneshot;

use super::{Config, grown, protocol::Reply, redact::redact};
use crate::{
    event::Pid,
    model::{Model, Overview},
    report::document::{LeftOut, Process},
    seed::container,
    store::history::{Batch, Ended, History, HistoryError, Identity, Retention, Row, Suspicion},
};

/// A name is a word that a shell need not quote.
const MAX_NAME: usize = 100;

/// The moment of a reading.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// On the clock of events.
    pub time_ns: u64,
    /// In milliseconds since 1970.
    pub now_ms: i64,
    /// Those that ended by then are told.
    pub ended_ns: u64,
}

/// The history, and what it was told of each process.
pub struct Archive {
    history: History,
    /// The program that each running process was last told to run.
    told: FxHashMap<(Pid, u64), u32>,
    grown: grown::Told,
    lost: u64,
}

impl Archive {
    /// Opens or makes the history.
    pub fn begin(config: &Config, now_ms: i64) -> Result<Self, HistoryError> {
        let ms = |kept: std::time::Duration| i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
        let kept = &config.history;
        let retention = Retention {
            keep_ms: [ms(kept.keep_1s), ms(kept.keep_10s), ms(kept.keep_5min)],
            bytes: kept.size,
        };
        Ok(Self {
            history: History::begin(&config.history_path(), retention, now_ms)?,
            told: FxHashMap::default(),
            grown: grown::Told::default(),
            lost: 0,
        })
    }

    /// Where the history is, and how its writer is told of damage.
    pub fn reading(&self) -> (&Path, Suspicion) {
        (self.history.path(), self.history.suspicion())
    }

    /// Names a moment; answers when that is in the history.
    pub fn mark(&self, name: String, now_ms: i64, reply: oneshot::Sender<Reply>) {
        let is_word = |c: char| c.is_alphanumeric() || "-_.:/".contains(c);
        // What begins with a digit or @ is an age or a time.
        let begins = name.chars().next().is_some_and(char::is_alphabetic);
        if !begins || name.len() > MAX_NAME || !name.chars().all(is_word) {
            let refusal =
                "a mark is a letter and further letters, digits and -_.:/, 100 bytes at most";
            // Here and below: the client may have gone.
            let _ = reply.send(Reply::error(refusal));
            return;
        }
        let written = |written: Result<(), HistoryError>| {
            let _ = reply.send(match written {
                Ok(()) => Reply::Done {},
                Err(error) => Reply::error(error),
            });
        };
        self.history.mark(name, now_ms, Box::new(written));
    }

    /// Hands one reading over.
    pub fn write(
        &mut self,
        config: &Config,
        model: &Model,
        moment: Moment,
        rows: Vec<Overview>,
        ended: Vec<Process>,
        left_out: Vec<LeftOut>,
    ) {
        let Moment {
            time_ns, now_ms, ..
        } = moment;
        // What happened during the reading is later than its moment.
        let wall = |ns: u64| now_ms + (ns as i64 - time_ns as i64) / 1_000_000;
        let lost = model.lost();
        let ended: Vec<Ended> = ended
            .into_iter()
            .map(|process| self.ended(process, &wall))
            .collect();
        let rows = rows
            .into_iter()
            .map(|row| self.row(config, model, row, (now_ms, &wall)))
            .collect();
        self.history.write(Batch {
            time_ms: now_ms,
            rows,
            ended,
            lost: lost.saturating_sub(self.lost),
            left_out,
            behind_ms: (time_ns.saturating_sub(moment.ended_ns) / 1_000_000) as i64,
            dropped: 0,
        });
        self.lost = lost;
    }

    /// What was told of growth.
    pub fn grown(&mut self) -> &mut grown::Told {
        &mut self.grown
    }

    /// Writes what is on its way, and ends.
    pub fn finish(self) {
        self.history.finish();
    }

    fn row(
        &mut self,
        config: &Config,
        model: &Model,
        row: Overview,
        (now_ms, wall): (i64, &dyn Fn(u64) -> i64),
    ) -> Row {
        let key = (row.pid, row.start_ns);
        let growth = self.grown.due(model, key, now_ms, wall);
        let known = self.told.insert(key, row.image) == Some(row.image);
        let identity = (!known).then(|| {
            let (parent_pid, exe, mut command_line) = model.identity(row.pid).unwrap_or_default();
            redact(&mut command_line, config.redact_command_lines);
            Identity {
                parent_pid,
                start_ms: wall(row.start_ns),
                comm: row.comm,
                exe,
                command_line,
                container: container::name(&row.cgroup),
                cgroup: row.cgroup,
            }
        });
        Row {
            key,
            identity,
            reserved: row.reserved_bytes,
            committed: row.committed_bytes,
            heap_live: row.heap_live_bytes,
            minor: row.minor,
            major: row.major,
            minor_ns: row.minor_ns,
            major_ns: row.major_ns,
            buckets: row.fault_buckets,
            growth,
        }
    }

    fn ended(&mut self, process: Process, wall: &dyn Fn(u64) -> i64) -> Ended {
        let key = (process.pid, process.start_time_ns);
        self.told.remove(&key);
        self.grown.forget(key);
        let end_ns = process.end_time_ns.unwrap_or(process.start_time_ns);
        let growth = process.growth.as_ref();
        let growth = growth
            .map(|growth| grown::grown(growth, &process.frames, end_ns, wall))
            .unwrap_or_default();
        let faults = &process.faults;
        let latency = faults.latency_ns.clone().unwrap_or_default();
        let mut buckets = Vec::new();
        for bucket in &latency.buckets {
            let index = memtrace_common::histogram::bucket(bucket.le);
            if buckets.len() <= index {
                buckets.resize(index + 1, 0);
            }
            buckets[index] = bucket.count;
        }
        let exit = process.exit;
        Ended {
            end_ms: wall(end_ns),
            code: exit.and_then(|exit| exit.code),
            signal: exit.and_then(|exit| exit.signal),
            peak_reserved: process.address_space.peak_reserved_bytes,
            peak_committed: process.address_space.peak_committed_bytes,
            row: Row {
                key,
                reserved: process.address_space.reserved_bytes,
                committed: process.address_space.committed_bytes,
                heap_live: process.heap.map(|heap| heap.live_bytes),
                minor: faults.minor,
                major: faults.major,
                minor_ns: latency.minor_sum,
                major_ns: latency.major_sum,
                buckets,
                growth,
                identity: Some(Identity {
                    parent_pid: process.parent_pid,
                    start_ms: wall(process.start_time_ns),
                    comm: process.comm,
                    exe: process.exe,
                    command_line: process.command_line,
                    container: container::name(&process.cgroup),
                    cgroup: process.cgroup,
                }),
            },
        }
    }
}
