//! How many faults of a process that grows are sampled: some 128 a second, of a slow one each.
//!
//! A fault that an event passes over costs a count, one that a program sees some 0.3 µs, and one that is taken a stack.

use memtrace_common::growth::Growing as How;

/// Faults a second that are taken of one process: with more, one stands for several. Who faults less is known page by
/// page, a slow leak among them.
pub const PER_SECOND: u64 = 128;

/// The same where the sample is thinned.
pub const PER_SECOND_THINNED: u64 = 16;

/// Faults a second that the program is to see at least, where the events pass over the others.
const SEEN_PER_SECOND: u64 = 512;

/// What events count up to: prime, so that no rhythm of a program is likely to be a multiple of it.
const PERIODS: [u64; 5] = [1, 13, 61, 251, 1021];

/// Until the first reading, which tells how many faults there are.
pub const AT_FIRST: How = How {
    one_in: 64,
    stands_for: 64,
};

/// Of the faults that the program sees, one that is taken is one of so many at most.
const MAX_ONE_IN: u64 = 1 << 16;

/// What events of a process with so many faults a second are to count up to.
pub fn period(rate: u64) -> u64 {
    let fits = |period: &&u64| **period <= (rate / SEEN_PER_SECOND).max(1);
    PERIODS.iter().rev().find(fits).copied().unwrap_or(1)
}

/// How those are sampled that events of this period let pass.
pub fn sampled(rate: u64, per_second: u64, period: u64) -> How {
    let one_in = (rate / per_second / period).max(1).next_power_of_two();
    let one_in = one_in.min(MAX_ONE_IN);
    How {
        one_in: one_in as u32,
        stands_for: (one_in * period) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_process_is_known_fault_by_fault_and_a_fast_one_is_mostly_passed_over() {
        let of = |rate| {
            let period = period(rate);
            let How { one_in, stands_for } = sampled(rate, PER_SECOND, period);
            (period, one_in, stands_for)
        };
        assert_eq!(of(0), (1, 1, 1));
        assert_eq!(of(128), (1, 1, 1));
        assert_eq!(of(500), (1, 4, 4));
        assert_eq!(of(6000), (1, 64, 64));
        assert_eq!(of(7000), (13, 4, 52));
        assert_eq!(of(1_000_000), (1021, 8, 8_168));
        for rate in (0..20_000_000).step_by(12_345) {
            let (period, _, stands_for) = of(rate);
            // Between half as many as wished and all of them.
            let taken = rate / u64::from(stands_for);
            assert!(rate < 128 || (48..=256).contains(&taken), "{rate}: {taken}");
            assert!(rate / period <= 20_000, "{rate}: seen");
        }
        assert_eq!(sampled(u64::MAX, 1, 1021).stands_for, 1021 << 16);
    }
}
