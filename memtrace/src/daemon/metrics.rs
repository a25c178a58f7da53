//! What Prometheus is told, as of the last reading: series of those that hold most memory, and the others as one.
//!
//! A counter must not fall, and who holds most changes. So what a process does while it is not among the first is
//! added to the others' counters when it is seen, and stays there when the process rises or ends.

use memtrace_common::histogram::BUCKETS;
use rustc_hash::FxHashMap;

use super::protocol::{CgroupLine, Listing};
use crate::{event::Pid, model::Overview, report::document::Process};

/// A process by pid and start.
type Key = (Pid, u64);

/// Counters of faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// Minor ones.
    pub minor: u64,
    /// Major ones.
    pub major: u64,
    /// Nanoseconds spent in those with a latency.
    pub spent_ns: u64,
    /// By [`memtrace_common::histogram::bucket`].
    pub buckets: Vec<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            minor: 0,
            major: 0,
            spent_ns: 0,
            buckets: vec![0; BUCKETS],
        }
    }
}

impl Faults {
    fn of_row(row: &Overview) -> Self {
        let mut faults = Self {
            minor: row.minor,
            major: row.major,
            spent_ns: row.minor_ns.saturating_add(row.major_ns),
            ..Self::default()
        };
        let told = faults.buckets.iter_mut().zip(&row.fault_buckets);
        told.for_each(|(bucket, count)| *bucket = *count);
        faults
    }

    fn of_ended(process: &Process) -> Self {
        let mut faults = Self {
            minor: process.faults.minor,
            major: process.faults.major,
            ..Self::default()
        };
        if let Some(latency) = &process.faults.latency_ns {
            faults.spent_ns = latency.minor_sum.saturating_add(latency.major_sum);
            for bucket in &latency.buckets {
                faults.buckets[memtrace_common::histogram::bucket(bucket.le)] += bucket.count;
            }
        }
        faults
    }

    /// Adds what came since `before`.
    fn add_growth(&mut self, now: &Self, before: &Self) {
        let grown = |sum: &mut u64, now: u64, before: u64| *sum += now.saturating_sub(before);
        grown(&mut self.minor, now.minor, before.minor);
        grown(&mut self.major, now.major, before.major);
        grown(&mut self.spent_ns, now.spent_ns, before.spent_ns);
        for (index, sum) in self.buckets.iter_mut().enumerate() {
            grown(sum, now.buckets[index], before.buckets[index]);
        }
    }
}

/// A process's series, or the others'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessSeries {
    /// `None` for the others together.
    pub who: Option<Who>,
    /// Bytes mapped.
    pub reserved: u64,
    /// Bytes resident.
    pub committed: u64,
    /// Bytes in live blocks; `None` where no heap is seen.
    pub heap_live: Option<u64>,
    /// 99th percentile of the latency of its faults over the last minute, in nanoseconds, as `ps` tells it.
    pub fault_p99_ns: Option<u64>,
    /// Its faults.
    pub faults: Faults,
}

/// What tells processes apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// As the host numbers it.
    pub pid: Pid,
    /// Name of the main thread.
    pub comm: String,
    /// Container or unit, empty without one.
    pub container: String,
}

/// Everything that is told.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    top: usize,
    seen: FxHashMap<Key, Faults>,
    /// The first processes, and the others at the end.
    pub processes: Vec<ProcessSeries>,
    /// The first cgroups.
    pub cgroups: Vec<CgroupLine>,
    /// Bytes charged to the other cgroups, and how many these are.
    pub other_cgroups: (u64, u64),
    /// Processes that run.
    pub running: u64,
    /// All faults, of those that ended too.
    pub faults: Faults,
    /// Events lost.
    pub lost: u64,
}

impl Metrics {
    /// With series of this many processes and cgroups.
    pub fn new(top: usize) -> Self {
        Self {
            top,
            ..Self::default()
        }
    }

    /// Takes one reading.
    pub fn update(&mut self, rows: &[Overview], ended: &[Process], listing: &Listing) {
        self.lost = listing.lost;
        self.running = rows.len() as u64;
        let mut other = match self.processes.pop() {
            Some(other) => ProcessSeries {
                faults: other.faults,
                ..ProcessSeries::default()
            },
            None => ProcessSeries::default(),
        };
        for process in ended {
            let before = self.seen.remove(&(process.pid, process.start_time_ns));
            let (now, before) = (Faults::of_ended(process), before.unwrap_or_default());
            other.faults.add_growth(&now, &before);
            self.faults.add_growth(&now, &before);
        }
        let lines = listing.processes.iter();
        let p99: FxHashMap<Pid, u64> = lines
            .filter_map(|line| Some((line.pid, line.fault_p99_ns?)))
            .collect();
        let mut order: Vec<&Overview> = rows.iter().collect();
        order.sort_by_key(|row| (std::cmp::Reverse(row.committed_bytes), row.pid));
        self.processes.clear();
        for (place, row) in order.into_iter().enumerate() {
            let now = Faults::of_row(row);
            let before = self.seen.insert((row.pid, row.start_ns), now.clone());
            let before = before.unwrap_or_default();
            self.faults.add_growth(&now, &before);
            if place < self.top {
                self.processes.push(ProcessSeries {
                    fault_p99_ns: p99.get(&row.pid).copied(),
                    ..series(row, now)
                });
            } else {
                other.faults.add_growth(&now, &before);
                other.reserved += row.reserved_bytes;
                other.committed += row.committed_bytes;
                if let Some(bytes) = row.heap_live_bytes {
                    *other.heap_live.get_or_insert(0) += bytes;
                }
            }
        }
        self.processes.push(other);
        self.update_cgroups(&listing.cgroups);
    }

    fn update_cgroups(&mut self, cgroups: &[CgroupLine]) {
        self.cgroups = cgroups.to_vec();
        self.cgroups
            .sort_by_key(|line| std::cmp::Reverse(line.current_bytes));
        let rest = self.cgroups.split_off(self.top.min(self.cgroups.len()));
        let charged = rest.iter().filter_map(|line| line.current_bytes).sum();
        self.other_cgroups = (charged, rest.len() as u64);
    }
}

fn series(row: &Overview, faults: Faults) -> ProcessSeries {
    ProcessSeries {
        who: Some(Who {
            pid: row.pid,
            comm: row.comm.clone(),
            container: crate::seed::container::name(&row.cgroup).unwrap_or_default(),
        }),
        reserved: row.reserved_bytes,
        committed: row.committed_bytes,
        heap_live: row.heap_live_bytes,
        fault_p99_ns: None,
        faults,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: Pid, committed_bytes: u64, minor: u64) -> Overview {
        let mut fault_buckets = vec![0; BUCKETS];
        fault_buckets[5] = minor;
        Overview {
            pid,
            start_ns: 1,
            running: true,
            image: 1,
            comm: format!("p{pid}"),
            cgroup: "/".into(),
            reserved_bytes: committed_bytes,
            committed_bytes,
            heap_live_bytes: (pid == 3).then_some(7),
            heap_calls: None,
            minor,
            major: 0,
            minor_ns: 100 * minor,
            major_ns: 0,
            fault_buckets,
        }
    }

    fn update(metrics: &mut Metrics, rows: &[Overview], ended: &[Process]) {
        metrics.update(rows, ended, &Listing::default());
    }

    /// pid, `None` for the others, with its minor faults and resident bytes.
    fn told(metrics: &Metrics) -> Vec<(Option<Pid>, u64, u64)> {
        let line = |one: &ProcessSeries| {
            let pid = one.who.as_ref().map(|who| who.pid);
            (pid, one.faults.minor, one.committed)
        };
        metrics.processes.iter().map(line).collect()
    }

    #[test]
    fn the_others_are_one_and_their_counters_do_not_fall() {
        let mut metrics = Metrics::new(1);
        update(
            &mut metrics,
            &[row(1, 50, 5), row(2, 40, 6), row(3, 30, 7)],
            &[],
        );
        assert_eq!(told(&metrics), [(Some(1), 5, 50), (None, 13, 70)]);
        assert_eq!(metrics.processes[1].heap_live, Some(7));
        // The second one rises: what it did before stays with the others.
        update(
            &mut metrics,
            &[row(1, 50, 8), row(2, 90, 10), row(3, 30, 7)],
            &[],
        );
        assert_eq!(told(&metrics), [(Some(2), 10, 90), (None, 13 + 3, 80)]);
        // The third one ends with a last fault that was not seen.
        let mut last = crate::report::fixture::process();
        last.pid = 3;
        last.start_time_ns = 1;
        last.faults.minor = 8;
        last.faults.latency_ns = None;
        update(&mut metrics, &[row(1, 50, 8), row(2, 90, 10)], &[last]);
        assert_eq!(told(&metrics), [(Some(2), 10, 90), (None, 17, 50)]);
        assert_eq!(metrics.faults.minor, 8 + 10 + 8);
        assert_eq!(metrics.faults.buckets[5], 8 + 10 + 7);
        assert_eq!((metrics.running, metrics.seen.len()), (2, 2));
    }
}
