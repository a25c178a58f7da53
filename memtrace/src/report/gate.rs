//! `--fail-on`: limits that make memtrace exit with status 3, for continuous integration.
//!
//! Figures are sums over all processes of a document, after suppressions and the minimum age were
//! applied. A block that a child inherited by fork and kept counts in both. With a baseline, only what
//! leaks beyond it counts, site by site: growth at one site is not offset by a fix at another.

use std::collections::HashMap;
use std::fmt;

use memtrace_common::counter::Counter;

use super::document::{Coverage, Document, Heap, Process};
use super::stack::SiteKey;
use super::suppress::Amount;
use super::text::clean;
use crate::units::{self, UnitError};

/// What a limit is put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Bytes of leaks.
    LeakedBytes,
    /// Blocks of leaks.
    LeakedBlocks,
    /// Allocation sites of leaks.
    LeakSites,
    /// Blocks freed twice.
    DoubleFrees,
    /// Frees of what was never allocated.
    InvalidFrees,
    /// Largest peak of live heap bytes of any process.
    PeakHeapBytes,
    /// Largest peak of committed bytes of any process.
    PeakCommittedBytes,
    /// Major faults.
    MajorFaults,
    /// Events lost.
    LostEvents,
}

impl Measure {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::LeakedBytes,
        Self::LeakedBlocks,
        Self::LeakSites,
        Self::DoubleFrees,
        Self::InvalidFrees,
        Self::PeakHeapBytes,
        Self::PeakCommittedBytes,
        Self::MajorFaults,
        Self::LostEvents,
    ];

    /// As typed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeakedBytes => "leaked-bytes",
            Self::LeakedBlocks => "leaked-blocks",
            Self::LeakSites => "leak-sites",
            Self::DoubleFrees => "double-frees",
            Self::InvalidFrees => "invalid-frees",
            Self::PeakHeapBytes => "peak-heap-bytes",
            Self::PeakCommittedBytes => "peak-committed-bytes",
            Self::MajorFaults => "major-faults",
            Self::LostEvents => "lost-events",
        }
    }

    const fn in_bytes(self) -> bool {
        matches!(
            self,
            Self::LeakedBytes | Self::PeakHeapBytes | Self::PeakCommittedBytes
        )
    }

    const fn needs_heap(self) -> bool {
        !matches!(
            self,
            Self::PeakCommittedBytes | Self::MajorFaults | Self::LostEvents
        )
    }

    fn figure(self, value: u64) -> String {
        if self.in_bytes() {
            units::bytes(value)
        } else {
            units::count(value)
        }
    }
}

/// One limit: more than `limit` is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Of what.
    pub measure: Measure,
    /// The most that is allowed.
    pub limit: u64,
}

/// Why a `--fail-on` argument could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// No `=`.
    #[error("{text:?} is no condition; write NAME=LIMIT, as in leaked-bytes=64KiB")]
    NoLimit {
        /// As typed.
        text: String,
    },
    /// No such measure.
    #[error("nothing called {name:?} can be limited; there are {known}")]
    UnknownMeasure {
        /// As typed.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// The size cannot be read.
    #[error("{name}: {error}")]
    BadLimit {
        /// The measure.
        name: &'static str,
        /// What is wrong.
        error: UnitError,
    },
    /// The count cannot be read.
    #[error("{name}: {text:?} is no whole number")]
    BadCount {
        /// The measure.
        name: &'static str,
        /// As typed.
        text: String,
    },
}

/// Reads `leaked-bytes=64KiB,leaked-blocks=10`.
pub fn parse(text: &str) -> Result<Vec<Condition>, GateError> {
    text.split(',').map(|part| parse_one(part.trim())).collect()
}

fn parse_one(text: &str) -> Result<Condition, GateError> {
    let (name, limit) = text.split_once('=').ok_or_else(|| GateError::NoLimit {
        text: text.to_owned(),
    })?;
    let (typed, limit) = (name.trim(), limit.trim());
    let measure = Measure::ALL
        .iter()
        .copied()
        .find(|measure| measure.name() == typed);
    let measure = measure.ok_or_else(|| GateError::UnknownMeasure {
        name: typed.to_owned(),
        known: Measure::ALL
            .iter()
            .map(|measure| measure.name())
            .collect::<Vec<_>>()
            .join(", "),
    })?;
    let name = measure.name();
    let limit = if measure.in_bytes() {
        units::parse_size(limit).map_err(|error| GateError::BadLimit { name, error })?
    } else {
        limit.parse().map_err(|_| GateError::BadCount {
            name,
            text: limit.to_owned(),
        })?
    };
    Ok(Condition { measure, limit })
}

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// More than allowed.
    Exceeded {
        /// The condition.
        condition: Condition,
        /// What was found.
        found: u64,
        /// Only what lies beyond the baseline was counted.
        beyond_baseline: bool,
    },
    /// It cannot be said to hold.
    NotMeasured {
        /// The condition.
        condition: Condition,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exceeded {
                condition: Condition { measure, limit },
                found,
                beyond_baseline,
            } => {
                let beyond = if *beyond_baseline {
                    " beyond the baseline"
                } else {
                    ""
                };
                let (found, limit) = (measure.figure(*found), measure.figure(*limit));
                write!(f, "{}: {found}{beyond}, more than {limit}", measure.name())
            }
            Self::NotMeasured { condition, reason } => {
                write!(f, "{}: not measured: {reason}", condition.measure.name())
            }
        }
    }
}

/// What a gate found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Conditions that do not hold, in the order typed. Not empty: exit status 3.
    pub failures: Vec<Failure>,
    /// Processes that heap conditions could not look into, with the reason. A small one fails nothing by
    /// itself: a stripped helper would make every pipeline red. The first process and the largest do.
    pub unseen: Vec<String>,
}

/// Evaluates the conditions. `baseline` is an earlier document, filtered alike.
pub fn evaluate(
    conditions: &[Condition],
    document: &Document,
    baseline: Option<&Document>,
) -> Verdict {
    let mut verdict = Verdict::default();
    let leaked = baseline.map_or_else(
        || all_leaks(document),
        |baseline| beyond(document, baseline),
    );
    if conditions
        .iter()
        .any(|condition| condition.measure.needs_heap())
    {
        let unseen = document
            .processes
            .iter()
            .filter(|process| process.heap.is_none());
        verdict.unseen = unseen.map(unseen_heap).collect();
    }
    for &condition in conditions {
        if condition.measure.needs_heap()
            && let Some(reason) = unmeasured(document)
        {
            let failure = Failure::NotMeasured { condition, reason };
            verdict.failures.push(failure);
            continue;
        }
        if matches!(
            condition.measure,
            Measure::DoubleFrees | Measure::InvalidFrees
        ) && heaps(document).any(|heap| heap.sampling.is_some())
        {
            let reason = "with --sample-bytes most frees are not seen".to_owned();
            let failure = Failure::NotMeasured { condition, reason };
            verdict.failures.push(failure);
            continue;
        }
        let found = figure(condition.measure, document, leaked);
        if found > condition.limit {
            let of_leaks = matches!(
                condition.measure,
                Measure::LeakedBytes | Measure::LeakedBlocks | Measure::LeakSites
            );
            let beyond_baseline = baseline.is_some() && of_leaks;
            verdict.failures.push(Failure::Exceeded {
                condition,
                found,
                beyond_baseline,
            });
        }
    }
    verdict
}

/// Why figures of the heap do not stand for the program under test, where they do not.
fn unmeasured(document: &Document) -> Option<String> {
    let Some(first) = document.processes.first() else {
        return Some("no process was traced".to_owned());
    };
    let processes = || document.processes.iter();
    let peak = processes().max_by_key(|process| process.address_space.peak_committed_bytes);
    let private = processes().max_by_key(|process| private_bytes(process));
    let subjects = [Some(first), peak, private];
    let blind = subjects
        .into_iter()
        .flatten()
        .find(|process| process.heap.is_none());
    if let Some(process) = blind {
        return Some(unseen_heap(process));
    }
    let lost = lost_of_heap(&document.coverage);
    (lost > 0).then(|| format!("{} lost", units::counted(lost, "event", "events")))
}

/// Committed at the end where allocators put blocks.
fn private_bytes(process: &Process) -> u64 {
    let kinds = &process.address_space.by_kind;
    ["heap", "anonymous"]
        .into_iter()
        .filter_map(|kind| kinds.get(kind))
        .fold(0, |sum, kind| sum.saturating_add(kind.committed_bytes))
}

/// Lost events but for those that say nothing of the heap.
fn lost_of_heap(coverage: &Coverage) -> u64 {
    let elsewhere = [Counter::LostFault, Counter::HistogramMissing];
    let elsewhere = elsewhere
        .iter()
        .filter_map(|counter| coverage.lost_by_reason.get(counter.name()))
        .fold(0u64, |sum, count| sum.saturating_add(*count));
    coverage.lost.saturating_sub(elsewhere)
}

fn unseen_heap(process: &Process) -> String {
    let reason = process.heap_reason.as_deref().unwrap_or("reason unknown");
    format!(
        "{} (pid {}): {}",
        clean(&process.comm),
        process.pid,
        clean(reason)
    )
}

fn heaps(document: &Document) -> impl Iterator<Item = Heap> {
    document.processes.iter().filter_map(|process| process.heap)
}

fn figure(measure: Measure, document: &Document, leaked: Amount) -> u64 {
    let sum = |value: fn(Heap) -> u64| {
        heaps(document).fold(0u64, |sum, heap| sum.saturating_add(value(heap)))
    };
    let processes = document.processes.iter();
    match measure {
        Measure::LeakedBytes => leaked.bytes,
        Measure::LeakedBlocks => leaked.blocks,
        Measure::LeakSites => leaked.sites,
        Measure::DoubleFrees => sum(|heap| heap.double_frees.unwrap_or(0)),
        Measure::InvalidFrees => sum(|heap| heap.invalid_frees.unwrap_or(0)),
        Measure::PeakHeapBytes => heaps(document)
            .map(|heap| heap.peak_live_bytes)
            .max()
            .unwrap_or(0),
        Measure::PeakCommittedBytes => processes
            .map(|process| process.address_space.peak_committed_bytes)
            .max()
            .unwrap_or(0),
        Measure::MajorFaults => processes.fold(0, |sum: u64, process| {
            sum.saturating_add(process.faults.major)
        }),
        Measure::LostEvents => document.coverage.lost,
    }
}

fn all_leaks(document: &Document) -> Amount {
    sites(document)
        .values()
        .fold(Amount::default(), |sum, site| plus(sum, *site))
}

/// Leaks by site, processes taken together: pids say nothing across runs.
fn sites(document: &Document) -> HashMap<SiteKey, Amount> {
    let mut sites: HashMap<SiteKey, Amount> = HashMap::new();
    for leak in document.processes.iter().flat_map(|process| &process.leaks) {
        let site = sites.entry(SiteKey::new(&leak.stack)).or_default();
        *site = plus(
            *site,
            Amount {
                sites: 0,
                ..Amount::of(std::slice::from_ref(leak))
            },
        );
        site.sites = 1;
    }
    sites
}

fn plus(left: Amount, right: Amount) -> Amount {
    Amount {
        sites: left.sites + right.sites,
        blocks: left.blocks.saturating_add(right.blocks),
        bytes: left.bytes.saturating_add(right.bytes),
    }
}

/// What leaks at each site beyond what leaked there in the baseline.
fn beyond(document: &Document, baseline: &Document) -> Amount {
    let earlier = sites(baseline);
    sites(document)
        .into_iter()
        .fold(Amount::default(), |sum, (key, now)| {
            let before = earlier.get(&key).copied().unwrap_or_default();
            let bytes = now.bytes.saturating_sub(before.bytes);
            let blocks = now.blocks.saturating_sub(before.blocks);
            plus(
                sum,
                Amount {
                    sites: u64::from(bytes > 0 || blocks > 0),
                    blocks,
                    bytes,
                },
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    fn failures(conditions: &str, document: &Document, baseline: Option<&Document>) -> Vec<String> {
        let verdict = evaluate(&parse(conditions).unwrap(), document, baseline);
        verdict.failures.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn conditions_are_read() {
        assert_eq!(
            parse("leaked-bytes=1.5MiB, leaked-blocks=7").unwrap(),
            [
                Condition {
                    measure: Measure::LeakedBytes,
                    limit: 3 << 19
                },
                Condition {
                    measure: Measure::LeakedBlocks,
                    limit: 7
                },
            ]
        );
        for measure in Measure::ALL {
            assert_eq!(
                parse(&format!("{}=0", measure.name())).unwrap()[0].measure,
                *measure
            );
        }
    }

    #[test]
    fn conditions_that_are_none() {
        for (text, message) in [
            (
                "",
                "\"\" is no condition; write NAME=LIMIT, as in leaked-bytes=64KiB",
            ),
            (
                "leaked-bytes",
                "\"leaked-bytes\" is no condition; write NAME=LIMIT, as in leaked-bytes=64KiB",
            ),
            (
                "leaked-bytes=many",
                "leaked-bytes: \"many\" is no size: a number comes first, as in 512, 64KiB or 1.5GiB",
            ),
            (
                "leaked-blocks=1K",
                "leaked-blocks: \"1K\" is no whole number",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
        assert!(
            parse("leaks=1")
                .unwrap_err()
                .to_string()
                .contains("there are leaked-bytes, ")
        );
    }

    #[test]
    fn at_the_limit_is_not_above_it() {
        let document = fixture::leaky();
        assert_eq!(
            failures("leaked-blocks=1010,lost-events=0", &document, None),
            [""; 0]
        );
        assert_eq!(
            failures(
                "leaked-bytes=0,leaked-blocks=1009,major-faults=0",
                &document,
                None
            ),
            [
                "leaked-bytes: 10.1 MiB, more than 0 B",
                "leaked-blocks: 1,010, more than 1,009",
                "major-faults: 1, more than 0",
            ]
        );
    }

    #[test]
    fn only_growth_beyond_the_baseline_counts() {
        let baseline = fixture::leaky();
        let mut document = fixture::leaky();
        assert_eq!(
            failures("leaked-bytes=0,leak-sites=0", &document, Some(&baseline)),
            [""; 0]
        );
        let leaks = &mut document.processes[0].leaks;
        leaks[0].bytes -= 1024;
        leaks[1].bytes += 512;
        leaks.push(fixture::leak("leak_new", 100, 1));
        assert_eq!(
            failures(
                "leaked-bytes=0,leak-sites=0,leaked-blocks=1",
                &document,
                Some(&baseline)
            ),
            [
                "leaked-bytes: 612 B beyond the baseline, more than 0 B",
                "leak-sites: 2 beyond the baseline, more than 0",
            ]
        );
    }

    #[test]
    fn a_heap_that_nobody_saw_does_not_pass() {
        let mut document = fixture::leaky();
        document.processes[0].heap = None;
        document.processes[0].heap_reason = Some("stripped".into());
        document.processes[0].leaks.clear();
        assert_eq!(
            failures("leaked-bytes=0,lost-events=0", &document, None),
            ["leaked-bytes: not measured: leaky (pid 123): stripped"]
        );
        assert_eq!(
            failures("leaked-bytes=0", &fixture::empty(), None),
            ["leaked-bytes: not measured: no process was traced"]
        );
        document.processes.insert(0, fixture::process());
        let largest = &mut document.processes[1].address_space;
        largest.peak_committed_bytes += 1;
        assert_eq!(
            failures("leaked-bytes=1G", &document, None),
            ["leaked-bytes: not measured: leaky (pid 123): stripped"]
        );
        let small = &mut document.processes[1].address_space;
        small.peak_committed_bytes = 4096;
        small.by_kind.clear();
        let verdict = evaluate(&parse("leaked-bytes=1G").unwrap(), &document, None);
        assert_eq!(verdict.failures, []);
        assert_eq!(verdict.unseen, ["leaky (pid 123): stripped"]);
    }

    #[test]
    fn a_heap_with_events_lost_does_not_pass() {
        let mut document = fixture::leaky();
        let coverage = &mut document.coverage;
        coverage.lost = 3;
        coverage.lost_by_reason.insert("ring_full_fault".into(), 3);
        assert_eq!(failures("leaked-bytes=1G", &document, None), [""; 0]);
        document.coverage.lost = 5;
        assert_eq!(
            failures("leaked-bytes=1G", &document, None),
            ["leaked-bytes: not measured: 2 events lost"]
        );
    }
}
