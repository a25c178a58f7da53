//! What questions are answered from: the model's rows of the last second, with rates, containers and cgroups.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    event::Pid,
    model::{Overview, latency_of},
    seed::{self, container},
};

use super::{
    cgroup::{self, Controller, Growth},
    protocol::{CgroupLine, Listing, ProcessLine},
};

/// Readings between two points that growth is measured from.
const POINT_NS: u64 = 5_000_000_000;

/// A process by pid and start.
type Key = (Pid, u64);

/// The processes that run, as of the last reading.
#[derive(Default)]
pub struct Table {
    tracks: FxHashMap<Key, Track>,
    listing: Listing,
    controller: Option<Controller>,
    growth: Growth,
}

/// What is remembered of a process between readings.
struct Track {
    container_pid: Option<Pid>,
    points: Vec<(u64, u64)>,
    faults: u64,
    read_ns: u64,
    /// Faults by bucket as they were half a minute and a minute ago.
    earlier: [(u64, Vec<u64>); 2],
}

impl Table {
    /// An empty table on this machine.
    pub fn new() -> Self {
        Self {
            controller: Controller::find(),
            ..Self::default()
        }
    }

    /// Takes the rows of one moment.
    pub fn update(&mut self, time_ns: u64, lost: u64, rows: &[Overview]) {
        let keys: FxHashSet<Key> = rows.iter().map(|row| (row.pid, row.start_ns)).collect();
        self.tracks.retain(|key, _| keys.contains(key));
        let processes = rows.iter().map(|row| self.line(time_ns, row)).collect();
        let cgroups = self.cgroups(time_ns, rows);
        self.listing = Listing {
            time_ns,
            lost,
            processes,
            cgroups,
        };
    }

    /// The last reading.
    pub fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Whether this process was in the last reading.
    pub fn has(&self, pid: Pid, start_ns: u64) -> bool {
        self.tracks.contains_key(&(pid, start_ns))
    }

    fn line(&mut self, time_ns: u64, row: &Overview) -> ProcessLine {
        let faults = row.minor.saturating_add(row.major);
        let track = self
            .tracks
            .entry((row.pid, row.start_ns))
            .or_insert_with(|| Track::new(time_ns, row));
        if track
            .points
            .last()
            .is_none_or(|last| time_ns >= last.0 + POINT_NS)
        {
            cgroup::note(&mut track.points, time_ns, row.committed_bytes);
        }
        let elapsed = time_ns.saturating_sub(track.read_ns);
        let new = faults.saturating_sub(track.faults);
        let faults_per_second = if elapsed == 0 {
            0.0
        } else {
            new as f64 * 1e9 / elapsed as f64
        };
        (track.faults, track.read_ns) = (faults, time_ns);
        let growth_per_second = track.growth(time_ns, row.committed_bytes);
        ProcessLine {
            pid: row.pid,
            container_pid: track.container_pid,
            comm: row.comm.clone(),
            reserved_bytes: row.reserved_bytes,
            committed_bytes: row.committed_bytes,
            lazy_bytes: row.reserved_bytes.saturating_sub(row.committed_bytes),
            growth_per_second,
            minor: row.minor,
            major: row.major,
            faults_per_second,
            fault_p99_ns: track.p99(time_ns, &row.fault_buckets),
            heap_live_bytes: row.heap_live_bytes,
            cgroup: row.cgroup.clone(),
            container: container::name(&row.cgroup),
        }
    }

    fn cgroups(&mut self, time_ns: u64, rows: &[Overview]) -> Vec<CgroupLine> {
        let mut members: BTreeMap<&str, u64> = BTreeMap::new();
        for row in rows {
            *members.entry(&row.cgroup).or_default() += 1;
        }
        let usages: Vec<_> = members
            .into_iter()
            .map(|(path, processes)| {
                let usage = self.controller.as_ref().and_then(|found| found.read(path));
                (path, processes, usage)
            })
            .collect();
        let current = usages
            .iter()
            .filter_map(|(path, _, usage)| Some(((*path).to_owned(), usage.as_ref()?.current)));
        self.growth.note(time_ns, &current.collect());
        let lines = usages.into_iter().map(|(path, processes, usage)| {
            let growth_per_second = self.growth.of(path);
            let headroom_bytes = usage.and_then(|usage| usage.headroom);
            let growing = growth_per_second > 0.0;
            CgroupLine {
                path: path.to_owned(),
                container: container::name(path),
                processes,
                current_bytes: usage.map(|usage| usage.current),
                max_bytes: usage.and_then(|usage| usage.max),
                high_bytes: usage.and_then(|usage| usage.high),
                growth_per_second,
                headroom_bytes,
                seconds_left: headroom_bytes
                    .filter(|_| growing)
                    .map(|left| left as f64 / growth_per_second),
            }
        });
        lines.collect()
    }
}

impl Track {
    fn new(time_ns: u64, row: &Overview) -> Self {
        // Faults are counted from when tracing began, which is when it was first seen.
        let zeros = || (time_ns, Vec::new());
        Self {
            container_pid: seed::container_pid(row.pid),
            points: Vec::new(),
            faults: row.minor.saturating_add(row.major),
            read_ns: time_ns,
            earlier: [zeros(), zeros()],
        }
    }

    fn growth(&self, time_ns: u64, committed: u64) -> f64 {
        match self.points.first() {
            Some(&first) => cgroup::rate(&[first, (time_ns, committed)]),
            None => 0.0,
        }
    }

    /// The 99th percentile of the faults since the older of two earlier readings, which move on half a minute apart.
    fn p99(&mut self, time_ns: u64, buckets: &[u64]) -> Option<u64> {
        if time_ns >= self.earlier[1].0 + cgroup::GROWTH_NS / 2 {
            self.earlier.swap(0, 1);
            self.earlier[1] = (time_ns, buckets.to_vec());
        }
        let before = &self.earlier[0].1;
        let since = buckets.iter().enumerate().map(|(index, count)| {
            let before = before.get(index).copied().unwrap_or(0);
            count.saturating_sub(before)
        });
        latency_of(&since.collect::<Vec<_>>(), 0, 0).map(|latency| latency.p99)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtrace_common::histogram::{BUCKETS, bucket, upper_bound};

    const SECOND: u64 = 1_000_000_000;

    fn row(second: u64, committed_bytes: u64, faults: &[(u64, u64)]) -> Overview {
        let mut fault_buckets = vec![0; BUCKETS];
        for (latency, count) in faults {
            fault_buckets[bucket(*latency)] += count;
        }
        Overview {
            pid: u32::MAX,
            start_ns: second.min(1),
            running: true,
            image: 1,
            comm: "x".into(),
            cgroup: "/memtrace-test/gone".into(),
            reserved_bytes: committed_bytes + 5,
            committed_bytes,
            heap_live_bytes: None,
            heap_calls: None,
            minor: fault_buckets.iter().sum(),
            major: 0,
            minor_ns: 0,
            major_ns: 0,
            fault_buckets,
        }
    }

    #[test]
    fn rates_are_of_the_last_minute_and_the_last_reading() {
        let mut table = Table::default();
        for second in 1..=180u64 {
            // 100 bytes a second, 10 faults a second of 1 µs, and one slow one at the very beginning.
            let faults = [(1000, 10 * second), (1_000_000, 10)];
            table.update(second * SECOND, 0, &[row(1, 100 * second, &faults)]);
        }
        let [line] = &table.listing().processes[..] else {
            panic!("one process");
        };
        assert_eq!(
            (line.growth_per_second, line.faults_per_second),
            (100.0, 10.0)
        );
        assert_eq!(line.fault_p99_ns, Some(upper_bound(bucket(1000))));
        assert_eq!((line.lazy_bytes, line.container_pid), (5, None));
        assert_eq!(table.listing().cgroups[0].processes, 1);
        table.update(200 * SECOND, 0, &[]);
        assert!(table.tracks.is_empty());
    }
}
