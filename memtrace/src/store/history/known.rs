//! What the writer remembers of a running process: its row, and when its points of each resolution are due.

use super::{
    batch::{Identity, Row},
    buckets,
    schema::{TIERS, Tier},
};

/// A running process.
#[derive(Default)]
pub struct Known {
    /// Its row in the database; `None` until one is committed.
    pub id: Option<i64>,
    /// What it is, for a database that has to be begun anew.
    pub identity: Identity,
    tiers: [Progress; TIERS.len()],
}

/// How far the points of one resolution have come.
#[derive(Default)]
struct Progress {
    written: Option<Values>,
    written_ms: i64,
    peak: u64,
    buckets: Vec<u64>,
}

/// What makes a point differ from the one before.
type Values = (u64, u64, Option<u64>, u64, u64);

fn values(row: &Row) -> Values {
    (
        row.reserved,
        row.committed,
        row.heap_live,
        row.minor,
        row.major,
    )
}

/// A point to write.
pub struct Point {
    /// Which resolution, by its place in [`TIERS`].
    pub tier: usize,
    /// Most bytes resident since the point before.
    pub committed_peak: u64,
    /// The faults since the point before.
    pub faults: Option<Vec<u8>>,
}

impl Known {
    /// The points that are due as of `time_ms`; `last`: the process ended, all are.
    pub fn due(&mut self, row: &Row, time_ms: i64, last: bool) -> Vec<Point> {
        let tiers = TIERS.iter().zip(&mut self.tiers).enumerate();
        let due = tiers.filter_map(|(index, (tier, progress))| {
            progress.peak = progress.peak.max(row.committed);
            progress.is_due(tier, row, time_ms, last).then(|| {
                let faults = buckets::since(&progress.buckets, &row.buckets);
                Point {
                    tier: index,
                    committed_peak: progress.peak,
                    faults: buckets::encode(&faults),
                }
            })
        });
        due.collect()
    }

    /// These points are in the database.
    pub fn wrote(&mut self, row: &Row, time_ms: i64, tiers: &[usize]) {
        for &tier in tiers {
            if let Some(progress) = self.tiers.get_mut(tier) {
                *progress = Progress {
                    written: Some(values(row)),
                    written_ms: time_ms,
                    peak: 0,
                    buckets: row.buckets.clone(),
                };
            }
        }
    }

    /// The database is a new one: nothing of the process is in it.
    pub fn forget_row(&mut self) {
        self.id = None;
        for progress in &mut self.tiers {
            progress.written = None;
        }
    }
}

impl Progress {
    fn is_due(&self, tier: &Tier, row: &Row, time_ms: i64, last: bool) -> bool {
        let Some(written) = self.written else {
            return true;
        };
        let changed = written != values(row);
        let step = time_ms / tier.step_ms != self.written_ms / tier.step_ms;
        let old = time_ms.saturating_sub(self.written_ms) >= tier.repeat_ms;
        // A clock that was set back must not silence a process until it has caught up.
        let back = time_ms < self.written_ms;
        back || (last && changed) || (step && (changed || old))
    }
}
