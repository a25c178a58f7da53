//! What formats of stacks have in common: stacks with values.

use crate::report::document::{Document, Frame, Leak, Process, SiteTotals};
use crate::report::stack::NO_STACK;

/// Stands for the stacks of sites that are not listed.
const OTHER_SITES: &str = "(other sites)";
/// Stands for the places of faults that are not listed.
const OTHER_FAULTS: &str = "(elsewhere)";

/// Values of one sample, as [`Measure::columns`] names them.
pub(super) type Values = [u64; 4];

/// What the stacks of an export are weighted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// What was not given back.
    Leaks,
    /// All that was asked for.
    Allocations,
    /// What was live when the heap held most.
    Peak,
    /// Page faults.
    Faults,
}

/// One value of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// What it is; those of heaps are named as heap profilers name them.
    pub(super) name: &'static str,
    /// Its unit.
    pub(super) unit: &'static str,
}

const HEAP: &[Column] = &[
    column("alloc_objects", "count"),
    column("alloc_space", "bytes"),
    column("inuse_objects", "count"),
    column("inuse_space", "bytes"),
];

const FAULTS: &[Column] = &[
    column("faults", "count"),
    column("major_faults", "count"),
    column("latency", "nanoseconds"),
];

const fn column(name: &'static str, unit: &'static str) -> Column {
    Column { name, unit }
}

impl Measure {
    /// Every measure.
    pub const ALL: [Self; 4] = [Self::Leaks, Self::Allocations, Self::Peak, Self::Faults];

    /// The report that shows the same as text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leaks => "leaks",
            Self::Allocations => "allocations",
            Self::Peak => "peak",
            Self::Faults => "faults",
        }
    }

    /// What the weight is, for people.
    pub(super) fn about(self) -> &'static str {
        match self {
            Self::Leaks => "bytes not given back",
            Self::Allocations => "bytes allocated",
            Self::Peak => "bytes live at the peak of the heap",
            Self::Faults => "page faults",
        }
    }

    /// The values of its samples.
    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            Self::Faults => FAULTS,
            _ => HEAP,
        }
    }

    /// Which column weighs where there is room for one.
    pub(super) fn main_column(self) -> usize {
        match self {
            Self::Leaks | Self::Peak => 3,
            Self::Allocations => 1,
            Self::Faults => 0,
        }
    }
}

/// A stack, or words in place of one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stack<'a> {
    /// Innermost first, not empty.
    Frames(Vec<&'a Frame>),
    /// Why there are no frames.
    Words(&'static str),
}

impl<'a> Stack<'a> {
    fn of(frames: Vec<&'a Frame>) -> Self {
        if frames.is_empty() {
            Self::Words(NO_STACK)
        } else {
            Self::Frames(frames)
        }
    }
}

/// Values of one stack of a process.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample<'a> {
    pub(super) process: &'a Process,
    pub(super) stack: Stack<'a>,
    pub(super) values: Values,
}

/// Everything of a document that `measure` takes. A stack may come more than once.
pub(super) fn samples(document: &Document, measure: Measure) -> Vec<Sample<'_>> {
    let mut samples = Vec::new();
    for process in &document.processes {
        let mut add = |stack, values: Values| {
            if values != Values::default() {
                samples.push(Sample {
                    process,
                    stack,
                    values,
                });
            }
        };
        if measure == Measure::Faults {
            of_faults(process, &mut add);
        } else {
            of_heap(process, measure, &mut add);
        }
    }
    samples
}

fn of_heap<'a>(process: &'a Process, measure: Measure, add: &mut impl FnMut(Stack<'a>, Values)) {
    for site in &process.sites {
        let stack = Stack::of(process.stack(&site.stack).collect());
        add(stack, heap_values(&site.totals, measure, false));
    }
    if let Some(others) = &process.other_sites {
        let values = heap_values(&others.totals, measure, true);
        add(Stack::Words(OTHER_SITES), values);
    }
    if measure != Measure::Peak {
        // The leaks, not the sites, are without what --suppressions and --min-age leave out.
        for Leak {
            bytes,
            blocks,
            stack,
            ..
        } in &process.leaks
        {
            add(Stack::of(stack.iter().collect()), [0, 0, *blocks, *bytes]);
        }
    }
}

fn heap_values(totals: &SiteTotals, measure: Measure, live_too: bool) -> Values {
    let [blocks, bytes] = match measure {
        Measure::Peak => [totals.peak_blocks, totals.peak_bytes],
        _ if live_too => [totals.live_blocks, totals.live_bytes],
        _ => [0, 0],
    };
    let calls = totals.allocations.saturating_add(totals.reallocations);
    [calls, totals.bytes_allocated, blocks, bytes]
}

fn of_faults<'a>(process: &'a Process, add: &mut impl FnMut(Stack<'a>, Values)) {
    let faults = &process.faults;
    let latency =
        (faults.latency_ns.as_ref()).map_or(0, |all| all.minor_sum.saturating_add(all.major_sum));
    let mut rest = [
        faults.minor.saturating_add(faults.major),
        faults.major,
        latency,
        0,
    ];
    for site in &process.fault_sites {
        let all = site.minor.saturating_add(site.major);
        let values = [all, site.major, site.latency_ns, 0];
        for (rest, value) in rest.iter_mut().zip(values) {
            *rest = rest.saturating_sub(value);
        }
        add(Stack::of(process.stack(&site.stack).collect()), values);
    }
    add(Stack::Words(OTHER_FAULTS), rest);
}
