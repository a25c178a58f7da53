//! What the programs cost, by the sample of their runs that they take themselves.

use memtrace_common::run_time::{Hook, ONE_IN, RunTime};

/// What a uprobe's trap costs beside its program, in nanoseconds: 680 for one that the kernel emulates were measured,
/// of which an empty program's run is some 20. No program can measure it.
const TRAP_NS: u64 = 660;

/// Nanoseconds that all runs took, with the traps that led to them; `sample` has the runs of the sample by their hook.
pub(super) fn spent_ns(sample: impl Fn(Hook) -> RunTime) -> u64 {
    let spent = Hook::ALL.map(|hook| {
        let RunTime { runs, ns } = sample(hook);
        let traps = match hook {
            Hook::Kernel => 0,
            Hook::User => runs.saturating_mul(TRAP_NS),
        };
        ns.saturating_add(traps).saturating_mul(u64::from(ONE_IN))
    });
    spent.into_iter().fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_stands_for_all_and_a_trap_costs_too() {
        let spent = spent_ns(|hook| match hook {
            Hook::Kernel => RunTime { runs: 5, ns: 700 },
            Hook::User => RunTime { runs: 2, ns: 1000 },
        });
        assert_eq!(spent, 64 * (700 + 1000 + 2 * 660));
        let damaged = RunTime {
            runs: u64::MAX,
            ns: 1,
        };
        assert_eq!(spent_ns(|_| damaged), u64::MAX);
    }
}
