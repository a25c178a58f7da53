//! Fault totals of a process: from the kernel side's map, and where that knows a sample of them alone, from the kernel's
//! own counts.

use memtrace_common::histogram::{HistogramKey, KernelCounts, Pair};
use rustc_hash::FxHashMap;

use crate::{
    event::{Event, EventKind, FaultTotals, Pid},
    probe::object::Object,
    seed,
};

/// Reads the histogram of a process; with `last` it is removed from the map.
pub fn read(
    object: &mut Object,
    counts: Option<&mut Counts>,
    (pid, start_ns): (Pid, u64),
    time_ns: u64,
    last: bool,
) -> Option<Event> {
    let key = HistogramKey {
        pid,
        start_low: start_ns as u32,
    };
    let histogram = object.histogram(key, last)?;
    let mut totals = FaultTotals {
        user: histogram.user,
        kernel: histogram.kernel,
        minor_sum_ns: histogram.minor_sum_ns,
        major_sum_ns: histogram.major_sum_ns,
        minor_untimed: histogram.minor_untimed,
        major_untimed: histogram.major_untimed,
        minor: histogram.minor,
        major: histogram.major,
    };
    if let Some(counts) = counts {
        complete(&mut totals, counts.of(pid, &histogram.counted, last));
    }
    Some(Event {
        time_ns,
        pid,
        tid: 0,
        kind: EventKind::FaultTotals(Box::new(totals)),
    })
}

/// The kernel's own counts of processes that run.
#[derive(Default)]
pub struct Counts {
    /// As read last, all that the process ever had.
    latest: FxHashMap<Pid, Pair>,
    /// Of threads that were not known when their process was met: what they had by then.
    before: FxHashMap<Pid, Pair>,
}

impl Counts {
    /// A thread of a process was met: the others had faults before, too. Their number is read a moment later.
    pub fn met_with_others(&mut self, pid: Pid, tid: u32) {
        let others = seed::faults_of_threads(pid, Some(tid));
        if others != Pair::NONE {
            self.before.insert(pid, others);
        }
    }

    /// Reads the counts of a process anew.
    pub fn update(&mut self, pid: Pid) {
        if let Some(counted) = seed::faults(pid) {
            self.latest.insert(pid, counted);
        }
    }

    /// A process is gone.
    pub fn forget(&mut self, pid: Pid) {
        self.latest.remove(&pid);
        self.before.remove(&pid);
    }

    /// Faults of a process since it is traced. `last`: it has ended.
    fn of(&mut self, pid: Pid, known: &KernelCounts, last: bool) -> Pair {
        let (all, others) = if last {
            self.latest.remove(&pid);
            let others = self.before.remove(&pid);
            (known.ended, others)
        } else {
            let all = self.latest.get(&pid).copied().unwrap_or_default();
            (all - known.ended_before, self.before.get(&pid).copied())
        };
        all - known.before - others.unwrap_or_default()
    }
}

/// Puts the faults that were counted beside those that were timed. What mode they were taken in is estimated from these.
fn complete(totals: &mut FaultTotals, counted: Pair) {
    let timed = |buckets: &[u64]| buckets.iter().sum::<u64>();
    totals.minor_untimed = counted.minor.saturating_sub(timed(&totals.minor));
    totals.major_untimed = counted.major.saturating_sub(timed(&totals.major));
    let all =
        totals.minor_untimed + totals.major_untimed + timed(&totals.minor) + timed(&totals.major);
    let known = (totals.user + totals.kernel).max(1);
    let kernel = u128::from(all) * u128::from(totals.kernel) / u128::from(known);
    totals.kernel = kernel as u64;
    totals.user = all - totals.kernel;
}

#[cfg(test)]
mod tests {
    use memtrace_common::histogram::BUCKETS;

    use super::*;

    fn pair(minor: u64, major: u64) -> Pair {
        Pair { minor, major }
    }

    #[test]
    fn what_was_before_the_trace_is_no_fault_of_it() {
        let mut counts = Counts::default();
        let mut known = KernelCounts {
            before: pair(100, 10),
            ended_before: pair(1000, 0),
            ended: Pair::NONE,
            others: 0,
        };
        assert_eq!(
            counts.of(7, &known, false),
            Pair::NONE,
            "it was not read yet"
        );
        counts.latest.insert(7, pair(1150, 11));
        assert_eq!(counts.of(7, &known, false), pair(50, 1));
        counts.before.insert(7, pair(20, 0));
        assert_eq!(counts.of(7, &known, false), pair(30, 1));
        known.ended = pair(200, 12);
        assert_eq!(counts.of(7, &known, true), pair(80, 2));
        assert!(counts.latest.is_empty() && counts.before.is_empty());
    }

    #[test]
    fn faults_that_were_not_timed_are_counted() {
        let mut totals = FaultTotals {
            user: 6,
            kernel: 2,
            minor_sum_ns: 0,
            major_sum_ns: 0,
            minor_untimed: 0,
            major_untimed: 0,
            minor: [0; BUCKETS],
            major: [0; BUCKETS],
        };
        totals.minor[3] = 7;
        totals.major[9] = 1;
        complete(&mut totals, pair(79, 1));
        assert_eq!((totals.minor_untimed, totals.major_untimed), (72, 0));
        assert_eq!((totals.user, totals.kernel), (60, 20));
        // Counts that were read before what was timed.
        complete(&mut totals, Pair::NONE);
        assert_eq!((totals.minor_untimed, totals.major_untimed), (0, 0));
        assert_eq!((totals.user, totals.kernel), (6, 2));
    }
}
