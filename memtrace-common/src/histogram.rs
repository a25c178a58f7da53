//! Fault latencies, kept in a kernel map so that they are exact even when ring buffer events are lost.

/// Number of buckets; the last one also holds everything longer (2^37 ns, about 137 s).
pub const BUCKETS: usize = 128;

/// Smallest exponent: everything under 64 ns falls into bucket 0.
const MIN_EXPONENT: u32 = 6;

/// The bucket of a latency: four per power of two, so a bound is at most 25 % above the value.
pub const fn bucket(latency_ns: u64) -> usize {
    if latency_ns < 1 << MIN_EXPONENT {
        return 0;
    }
    let exponent = 63 - latency_ns.leading_zeros();
    let quarter = (latency_ns >> (exponent - 2)) & 3;
    let index = ((exponent - MIN_EXPONENT) * 4 + quarter as u32 + 1) as usize;
    if index < BUCKETS { index } else { BUCKETS - 1 }
}

/// The largest latency, inclusive, that [`bucket`] puts into `index`; `u64::MAX` for the last bucket.
pub const fn upper_bound(index: usize) -> u64 {
    if index == 0 {
        return (1 << MIN_EXPONENT) - 1;
    }
    if index >= BUCKETS - 1 {
        return u64::MAX;
    }
    let exponent = MIN_EXPONENT + (index as u32 - 1) / 4;
    let quarter = (index as u64 - 1) % 4;
    (1 << exponent) + ((quarter + 1) << (exponent - 2)) - 1
}

/// Identifies the histogram of one process: pids come back, start times do not.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HistogramKey {
    /// Thread-group id.
    pub pid: u32,
    /// Low half of [`crate::target::Target::start_ns`].
    pub start_low: u32,
}

/// Faults by the kernel's own count, which nothing runs for at a fault.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// Minor faults: `min_flt` of a task or a process.
    pub minor: u64,
    /// Major faults: `maj_flt`.
    pub major: u64,
}

impl Pair {
    /// None at all.
    pub const NONE: Self = Self { minor: 0, major: 0 };
}

impl core::ops::Sub for Pair {
    type Output = Self;

    /// Counts are read one after the other, so a part may be the larger one.
    fn sub(self, part: Self) -> Self {
        Self {
            minor: self.minor.saturating_sub(part.minor),
            major: self.major.saturating_sub(part.major),
        }
    }
}

/// What is known of a process's faults by the kernel's own counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelCounts {
    /// Of the threads that ran when tracing of the process began: what they had by then.
    pub before: Pair,
    /// Of the threads that had ended by then.
    pub ended_before: Pair,
    /// Threads that ran then and whose faults are not among these.
    pub others: u64,
    /// Of the threads that ended since: all that they ever had.
    pub ended: Pair,
}

impl KernelCounts {
    /// Of a process that is traced from its birth on.
    pub const NONE: Self = Self {
        before: Pair::NONE,
        ended_before: Pair::NONE,
        others: 0,
        ended: Pair::NONE,
    };
}

/// Every fault of one process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FaultHistogram {
    /// Faults taken in user mode.
    pub user: u64,
    /// Faults taken in kernel mode (copy_to_user into fresh pages, say).
    pub kernel: u64,
    /// Sum of the latencies of minor faults, in nanoseconds.
    pub minor_sum_ns: u64,
    /// Sum of the latencies of major faults, in nanoseconds.
    pub major_sum_ns: u64,
    /// Minor faults whose start was not seen: counted, without a latency.
    pub minor_untimed: u64,
    /// Major faults whose start was not seen: counted, without a latency.
    pub major_untimed: u64,
    /// Where faults are timed in windows alone: the kernel's own counts.
    pub counted: KernelCounts,
    /// Minor faults by [`bucket`].
    pub minor: [u64; BUCKETS],
    /// Major faults by [`bucket`].
    pub major: [u64; BUCKETS],
}

impl FaultHistogram {
    /// No fault yet.
    pub const EMPTY: Self = Self {
        user: 0,
        kernel: 0,
        minor_sum_ns: 0,
        major_sum_ns: 0,
        minor_untimed: 0,
        major_untimed: 0,
        counted: KernelCounts::NONE,
        minor: [0; BUCKETS],
        major: [0; BUCKETS],
    };
}

const _: () = assert!(size_of::<FaultHistogram>() == 8 * (13 + 2 * BUCKETS));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_lies_within_its_bucket() {
        for shift in 0..40 {
            for offset in [0, 1, 3, 7] {
                let ns = (1u64 << shift) + offset;
                let index = bucket(ns);
                assert!(ns <= upper_bound(index), "{ns} above bucket {index}");
                assert!(
                    index == 0 || ns > upper_bound(index - 1),
                    "{ns} below bucket {index}"
                );
            }
        }
    }

    #[test]
    fn bounds_rise() {
        for index in 1..BUCKETS {
            assert!(upper_bound(index) > upper_bound(index - 1));
        }
    }
}
