//! Page faults of a process: counts and latencies, by kind of mapping and in sum.
//!
//! Two sources: the events, which know the mapping but can be lost, and the kernel-side totals, which
//! are exact but know no more than bucket and sum. The report takes the totals where there are any,
//! and the finer percentiles of the events where these are complete.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use memtrace_common::histogram::{BUCKETS, bucket, upper_bound};

use crate::{
    event::{Access, FaultTotals},
    report::document::{Bucket, Faults, KindFaults, Latency},
};

use super::region::Kind;

/// Latencies of one kind of mapping.
#[derive(Clone, Debug)]
struct Distribution {
    minor_sum: u64,
    major_sum: u64,
    min: u64,
    max: u64,
    buckets: [u64; BUCKETS],
    /// `None` only if the library refused its constant parameters.
    histogram: Option<Histogram<u32>>,
}

impl Distribution {
    fn new() -> Self {
        Self {
            minor_sum: 0,
            major_sum: 0,
            min: u64::MAX,
            max: 0,
            buckets: [0; BUCKETS],
            histogram: Histogram::new(2).ok(),
        }
    }

    fn record(&mut self, latency_ns: u64, major: bool) {
        let sum = if major {
            &mut self.major_sum
        } else {
            &mut self.minor_sum
        };
        *sum = sum.saturating_add(latency_ns);
        self.min = self.min.min(latency_ns);
        self.max = self.max.max(latency_ns);
        self.buckets[bucket(latency_ns)] += 1;
        // Beyond 2^37 ns the buckets end too; a damaged latency must not grow the table.
        let known = latency_ns.min(1 << 37);
        if let Some(histogram) = &mut self.histogram
            && histogram.record(known).is_err()
        {
            self.histogram = None;
        }
    }

    fn add(&mut self, other: &Self) {
        self.minor_sum = self.minor_sum.saturating_add(other.minor_sum);
        self.major_sum = self.major_sum.saturating_add(other.major_sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        for (sum, count) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += count;
        }
        let complete = match (&mut self.histogram, &other.histogram) {
            (Some(all), Some(part)) => all.add(part).is_ok(),
            _ => false,
        };
        if !complete {
            self.histogram = None;
        }
    }

    fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    fn latency(&self) -> Latency {
        let mut latency = from_buckets(&self.buckets, self.minor_sum, self.major_sum);
        latency.min = self.min;
        latency.max = self.max;
        self.refine(&mut latency);
        latency
    }

    /// Replaces percentiles taken from buckets by finer ones.
    fn refine(&self, latency: &mut Latency) {
        let Some(histogram) = &self.histogram else {
            return;
        };
        let at = |quantile| {
            histogram
                .value_at_quantile(quantile)
                .clamp(self.min, self.max)
        };
        latency.p50 = at(0.5);
        latency.p90 = at(0.9);
        latency.p99 = at(0.99);
        latency.p999 = at(0.999);
    }
}

#[derive(Clone, Debug, Default)]
struct KindStats {
    minor: u64,
    major: u64,
    latency: Option<Box<Distribution>>,
}

/// Faults of one process since it began, exec or not.
#[derive(Clone, Debug, Default)]
pub struct FaultStats {
    user: u64,
    kernel: u64,
    kinds: [KindStats; 6],
    totals: Option<Box<FaultTotals>>,
}

impl FaultStats {
    /// A fault was handled.
    pub fn record(&mut self, kind: Kind, latency_ns: Option<u64>, access: Access) {
        if access.kernel {
            self.kernel += 1;
        } else {
            self.user += 1;
        }
        let stats = &mut self.kinds[kind.index()];
        if access.major {
            stats.major += 1;
        } else {
            stats.minor += 1;
        }
        if let Some(latency_ns) = latency_ns {
            stats
                .latency
                .get_or_insert_with(|| Box::new(Distribution::new()))
                .record(latency_ns, access.major);
        }
    }

    /// The kernel-side totals so far.
    pub fn set_totals(&mut self, totals: &FaultTotals) {
        self.totals = Some(Box::new(totals.clone()));
    }

    /// Minor and major faults so far. Events are told at once and totals now and then, so while the
    /// process runs the larger number is the newer one.
    pub fn counts(&self) -> (u64, u64) {
        let (minor, major) = self.seen();
        match self.totals.as_deref() {
            Some(totals) => {
                let (exact_minor, exact_major) = total_counts(totals);
                (minor.max(exact_minor), major.max(exact_major))
            }
            None => (minor, major),
        }
    }

    /// Time spent in minor and in major faults so far, in nanoseconds, as the totals have it.
    pub fn spent_ns(&self) -> (u64, u64) {
        let totals = self.totals.as_deref();
        totals.map_or((0, 0), |totals| (totals.minor_sum_ns, totals.major_sum_ns))
    }

    /// Minor and major faults so far by bucket, as the totals have them; empty without any.
    pub fn buckets(&self) -> Vec<u64> {
        let totals = self.totals.iter();
        totals
            .flat_map(|totals| totals.minor.iter().zip(&totals.major))
            .map(|(minor, major)| minor.saturating_add(*major))
            .collect()
    }

    fn seen(&self) -> (u64, u64) {
        self.kinds.iter().fold((0, 0), |(minor, major), kind| {
            (minor + kind.minor, major + kind.major)
        })
    }

    /// For the report.
    pub fn document(&self) -> Faults {
        let by_kind: BTreeMap<String, KindFaults> = Kind::ALL
            .iter()
            .zip(&self.kinds)
            .filter(|(_, stats)| stats.minor + stats.major > 0)
            .map(|(kind, stats)| {
                let faults = KindFaults {
                    minor: stats.minor,
                    major: stats.major,
                    latency_ns: stats.latency.as_ref().map(|latency| latency.latency()),
                };
                (kind.name().to_owned(), faults)
            })
            .collect();
        let (minor, major) = self.seen();
        // Totals that are behind the events were told before them.
        let totals = self.totals.as_deref().filter(|totals| {
            let (exact_minor, exact_major) = total_counts(totals);
            exact_minor.saturating_add(exact_major) >= minor + major
        });
        match totals {
            Some(totals) => self.exact(totals, by_kind),
            None => Faults {
                minor,
                major,
                user: self.user,
                kernel: self.kernel,
                latency_ns: self.all().map(|all| all.latency()),
                by_kind,
            },
        }
    }

    fn exact(&self, totals: &FaultTotals, by_kind: BTreeMap<String, KindFaults>) -> Faults {
        let (minor, major) = total_counts(totals);
        let mut buckets = totals.minor;
        for (sum, count) in buckets.iter_mut().zip(totals.major) {
            *sum = sum.saturating_add(count);
        }
        let mut latency = from_buckets(&buckets, totals.minor_sum_ns, totals.major_sum_ns);
        if let Some(all) = self.all()
            && all.count() == latency.count
        {
            latency.min = all.min;
            latency.max = all.max;
            all.refine(&mut latency);
        }
        Faults {
            minor,
            major,
            user: totals.user,
            kernel: totals.kernel,
            latency_ns: (latency.count > 0).then_some(latency),
            by_kind,
        }
    }

    /// The latencies of all kinds.
    fn all(&self) -> Option<Distribution> {
        let mut parts = self
            .kinds
            .iter()
            .filter_map(|kind| kind.latency.as_deref())
            .peekable();
        parts.peek()?;
        let mut all = Distribution::new();
        for part in parts {
            all.add(part);
        }
        Some(all)
    }
}

fn total_counts(totals: &FaultTotals) -> (u64, u64) {
    let sum = |buckets: &[u64], untimed| buckets.iter().copied().fold(untimed, u64::saturating_add);
    (
        sum(&totals.minor, totals.minor_untimed),
        sum(&totals.major, totals.major_untimed),
    )
}

/// The latencies of faults that are known by their buckets and sums; `None` where there are none.
pub fn latency_of(buckets: &[u64], minor_sum_ns: u64, major_sum_ns: u64) -> Option<Latency> {
    let mut all = [0; BUCKETS];
    for (to, from) in all.iter_mut().zip(buckets) {
        *to = *from;
    }
    let latency = from_buckets(&all, minor_sum_ns, major_sum_ns);
    (latency.count > 0).then_some(latency)
}

/// A distribution known by its buckets alone: percentiles are upper bounds, the least is a lower one.
fn from_buckets(buckets: &[u64; BUCKETS], minor_sum: u64, major_sum: u64) -> Latency {
    let count = buckets.iter().copied().fold(0, u64::saturating_add);
    // The last bucket is open: all that is known is where it begins.
    let bound =
        |index: usize| upper_bound(index.min(BUCKETS - 2)) + u64::from(index == BUCKETS - 1);
    let filled = |(index, count): (usize, &u64)| (*count > 0).then_some(index);
    let first = buckets.iter().enumerate().find_map(filled).unwrap_or(0);
    let last = buckets
        .iter()
        .enumerate()
        .rev()
        .find_map(filled)
        .unwrap_or(0);
    let at = |per_mille: u128| {
        let rank = (u128::from(count) * per_mille).div_ceil(1000);
        let mut seen = 0;
        for (index, count) in buckets.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank && *count > 0 {
                return bound(index);
            }
        }
        bound(last)
    };
    Latency {
        count,
        minor_sum,
        major_sum,
        min: first
            .checked_sub(1)
            .map_or(0, |below| upper_bound(below) + 1),
        mean: minor_sum
            .saturating_add(major_sum)
            .checked_div(count)
            .unwrap_or(0),
        p50: at(500),
        p90: at(900),
        p99: at(990),
        p999: at(999),
        max: bound(last),
        buckets: buckets
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(index, &count)| Bucket {
                le: upper_bound(index),
                count,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINOR: Access = Access {
        major: false,
        kernel: false,
        write: None,
        protection: false,
        instruction: false,
    };
    const MAJOR: Access = Access {
        major: true,
        kernel: true,
        ..MINOR
    };

    fn totals() -> FaultTotals {
        FaultTotals {
            user: 5,
            kernel: 2,
            minor_sum_ns: 700,
            major_sum_ns: 10_000,
            minor_untimed: 2,
            major_untimed: 1,
            minor: [0; BUCKETS],
            major: [0; BUCKETS],
        }
    }

    #[test]
    fn events_alone() {
        let mut stats = FaultStats::default();
        stats.record(Kind::Anonymous, Some(100), MINOR);
        stats.record(Kind::Anonymous, Some(300), MINOR);
        stats.record(Kind::File, Some(20_000), MAJOR);
        stats.record(Kind::File, None, MINOR);
        let faults = stats.document();
        assert_eq!(
            (faults.minor, faults.major, faults.user, faults.kernel),
            (3, 1, 3, 1)
        );
        let all = faults.latency_ns.unwrap();
        assert_eq!(
            (all.count, all.min, all.max, all.mean),
            (3, 100, 20_000, 6_800)
        );
        assert_eq!((all.minor_sum, all.major_sum), (400, 20_000));
        assert!((300..=303).contains(&all.p50), "{}", all.p50);
        assert_eq!(all.p999, 20_000);
        assert_eq!(
            all.buckets.iter().map(|bucket| bucket.count).sum::<u64>(),
            3
        );
        assert!(all.buckets.contains(&Bucket { le: 111, count: 1 }));
        let kinds: Vec<&str> = faults.by_kind.keys().map(String::as_str).collect();
        assert_eq!(kinds, ["anonymous", "file"]);
        assert_eq!(
            faults.by_kind["anonymous"]
                .latency_ns
                .as_ref()
                .unwrap()
                .mean,
            200
        );
    }

    #[test]
    fn totals_are_exact_and_events_refine_them() {
        let mut stats = FaultStats::default();
        let mut totals = totals();
        totals.minor[bucket(100)] = 3;
        totals.major[bucket(10_000)] = 1;
        stats.set_totals(&totals);
        for _ in 0..3 {
            stats.record(Kind::Anonymous, Some(100), MINOR);
        }
        let faults = stats.document();
        assert_eq!(
            (faults.minor, faults.major, faults.user, faults.kernel),
            (5, 2, 5, 2)
        );
        let coarse = faults.latency_ns.unwrap();
        assert_eq!((coarse.count, coarse.mean), (4, 2_675));
        assert_eq!((coarse.min, coarse.p50), (96, 111));
        assert_eq!((coarse.p90, coarse.max), (10_239, 10_239));
        stats.record(Kind::File, Some(10_000), MAJOR);
        let fine = stats.document().latency_ns.unwrap();
        assert_eq!((fine.min, fine.p50, fine.max), (100, 100, 10_000));
        assert_eq!(fine.mean, 2_675);
    }

    #[test]
    fn no_fault_no_latency() {
        let faults = FaultStats::default().document();
        assert_eq!(faults.latency_ns, None);
        assert!(faults.by_kind.is_empty());
    }

    #[test]
    fn the_open_bucket_is_reported_by_its_beginning() {
        let mut stats = FaultStats::default();
        stats.record(Kind::Other, Some(u64::MAX), MAJOR);
        let mut totals = totals();
        totals.major[BUCKETS - 1] = 1;
        assert_eq!(stats.document().latency_ns.unwrap().max, u64::MAX);
        let mut unseen = FaultStats::default();
        unseen.set_totals(&totals);
        let latency = unseen.document().latency_ns.unwrap();
        assert_eq!(latency.max, upper_bound(BUCKETS - 2) + 1);
        assert_eq!(latency.buckets[0].le, u64::MAX);
    }
}
