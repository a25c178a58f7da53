//! Stacks as sets of return addresses, to compare those of memtrace with those of others.

use std::collections::HashMap;

use memtrace::report::document::{Frame, Process};

use crate::Traced;

/// What was allocated at each stack: return addresses, the direct caller's first.
pub type Stacks = HashMap<Vec<u64>, Blocks>;

/// Blocks of one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// Sum of the sizes asked for.
    pub bytes: u64,
    /// How many.
    pub blocks: u64,
}

impl Blocks {
    /// Adds one or several.
    pub fn add(&mut self, blocks: u64, bytes: u64) {
        self.blocks += blocks;
        self.bytes += bytes;
    }
}

/// All that a process allocated, by stack.
#[track_caller]
pub fn allocated(process: &Process) -> Stacks {
    assert_eq!(process.other_sites, None, "every site is listed");
    let mut stacks = Stacks::new();
    for site in &process.sites {
        let blocks = stacks.entry(addresses(process.stack(&site.stack)));
        let totals = &site.totals;
        blocks.or_default().add(
            totals.allocations + totals.reallocations,
            totals.bytes_allocated,
        );
    }
    stacks
}

/// The return addresses of frames.
pub fn addresses<'a>(frames: impl IntoIterator<Item = &'a Frame>) -> Vec<u64> {
    let real = frames.into_iter().filter(|frame| !frame.inlined);
    real.map(|frame| frame.address).collect()
}

/// Stacks that ended early or were not taken whole, by reason.
pub fn cut(traced: &Traced) -> HashMap<String, u64> {
    let reasons = traced.document.coverage.lost_by_reason.iter();
    let ends = [
        "stack_truncated",
        "unwind_no_rules",
        "unwind_unreadable",
        "unwind_unsupported_rule",
        "unwind_no_mapping",
        "unwind_stack_pointer",
        "unwind_not_copied",
        "unwind_scratch_busy",
    ];
    reasons
        .filter(|(reason, _)| ends.contains(&reason.as_str()))
        .map(|(reason, count)| (reason.clone(), *count))
        .collect()
}
