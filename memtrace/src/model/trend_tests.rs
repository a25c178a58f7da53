//! A slow leak among caches, by a simulated clock.

use super::*;

const SECOND: u64 = 1_000_000_000;
const MIB: f64 = 1_048_576.0;
const MINUTE: f64 = 60.0;

/// xorshift: tests need no better.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.next()
    }
}

/// What a site holds, in bytes, after some seconds.
type Level = Box<dyn Fn(f64) -> f64>;

/// A site seen by a sample: each page is in it with the probability `1 / stands_for`, when it comes and when it goes.
struct Site {
    level: Level,
    stands_for: u64,
    pages: u64,
    samples: u64,
    variance: f64,
    series: Series,
}

const PAGE: u64 = 4096;

impl Site {
    fn new(stands_for: u64, level: Level) -> Self {
        let series = Series::begin(0);
        Self {
            level,
            stands_for,
            pages: 0,
            samples: 0,
            variance: 0.0,
            series,
        }
    }

    fn tick(&mut self, second: u64, random: &mut Random) {
        let pages = ((self.level)(second as f64).max(0.0) / PAGE as f64) as u64;
        let weight = (self.stands_for * PAGE) as f64;
        let scatter = (self.stands_for * (self.stands_for - 1)) as f64 * (PAGE * PAGE) as f64;
        for _ in self.pages..pages {
            if random.next() * (self.stands_for as f64) < 1.0 {
                self.samples += 1;
                self.variance += scatter;
            }
        }
        for gone in pages..self.pages {
            // Whichever pages go: one of those that are left is in the sample by this chance.
            if random.next() * ((self.pages + pages - gone) as f64) < self.samples as f64 {
                self.samples = self.samples.saturating_sub(1);
                self.variance += scatter;
            }
        }
        self.pages = pages;
        let bytes = (self.samples as f64 * weight) as u64;
        self.series.push(Point {
            time_ns: second * SECOND,
            bytes,
            low: bytes,
            high: bytes,
            variance: self.variance,
        });
    }

    fn is_candidate(&self) -> bool {
        judge(self.series.points(), &Thresholds::default()).is_candidate
    }
}

/// Fills towards a size, slower and slower.
fn warms_up(size: f64, tau: f64) -> Level {
    Box::new(move |t| size * (1.0 - (-t / tau).exp()))
}

/// Fills at one pace and is emptied when full.
fn saw_tooth(size: f64, period: f64, phase: f64) -> Level {
    Box::new(move |t| size * ((t + phase) / period).fract())
}

/// Is dropped now and then, and fills again.
fn refills(size: f64, period: f64, tau: f64) -> Level {
    Box::new(move |t| size * (1.0 - (-(t % period) / tau).exp()))
}

/// Goes with the load of the day.
fn breathes(size: f64, day: f64, phase: f64) -> Level {
    Box::new(move |t| size * (1.0 - ((t / day + phase) * std::f64::consts::TAU).cos()) / 2.0)
}

/// Caches of many sizes and paces.
fn caches(random: &mut Random) -> Vec<Level> {
    let size = |random: &mut Random| random.between(4.0, 60.0) * MIB;
    let mut caches: Vec<Level> = Vec::new();
    for _ in 0..4 {
        caches.push(warms_up(size(random), random.between(10.0, 2.5 * MINUTE)));
        let (period, phase) = (random.between(20.0, 2.5 * MINUTE), random.next());
        caches.push(saw_tooth(size(random), period, phase * period));
        let period = random.between(6.0, 15.0) * MINUTE;
        caches.push(refills(size(random), period, random.between(5.0, MINUTE)));
        let day = 24.0 * 60.0 * MINUTE;
        caches.push(breathes(size(random), day, random.next()));
        let (steady, churn) = (size(random), random.between(0.02, 0.2));
        caches.push(Box::new(move |t| {
            steady * (1.0 + churn * (t * 1.7).sin() * (t * 0.31).cos())
        }));
    }
    caches
}

/// When the leak was named, and when caches were, by index. They are judged each `look` seconds.
fn simulate(
    seed: u64,
    (seconds, look): (u64, u64),
    stands_for: u64,
    leak: Level,
) -> (Option<u64>, Vec<(u64, usize)>) {
    let mut random = Random::new(seed);
    let mut caches: Vec<Site> = caches(&mut random)
        .into_iter()
        .map(|level| Site::new(stands_for, level))
        .collect();
    let mut leak = Site::new(stands_for, leak);
    let (mut named, mut wrong) = (None, Vec::new());
    for second in (5..=seconds).step_by(5) {
        leak.tick(second, &mut random);
        caches
            .iter_mut()
            .for_each(|cache| cache.tick(second, &mut random));
        if !second.is_multiple_of(look) {
            continue;
        }
        if named.is_none() && leak.is_candidate() {
            named = Some(second);
        }
        for (index, cache) in caches.iter().enumerate() {
            if cache.is_candidate() {
                wrong.push((second, index));
            }
        }
    }
    (named, wrong)
}

#[test]
fn a_leak_of_one_mib_a_minute_is_named_within_five_minutes_and_no_cache_is() {
    for seed in 1..=20 {
        for stands_for in [1, 4] {
            let leak: Level = Box::new(|t| MIB / MINUTE * t);
            let (named, wrong) = simulate(seed, (600, 5), stands_for, leak);
            assert!(
                named.is_some_and(|at| at <= 300),
                "seed {seed}, 1 in {stands_for}: {named:?}"
            );
            assert_eq!(wrong, [], "seed {seed}, 1 in {stands_for}");
        }
    }
}

#[test]
fn in_a_day_no_cache_is_named_and_a_leak_that_begins_late_is() {
    let begins = 25.0 * 3600.0;
    let leak: Level = Box::new(move |t| 20.0 * MIB + (t - begins).max(0.0) * MIB / MINUTE);
    let (named, wrong) = simulate(7, (26 * 3600, 60), 1, leak);
    let named = named.expect("it is named");
    assert!((90_000..90_000 + 300).contains(&named), "{named}");
    assert_eq!(wrong, []);
}

fn judged(level: impl Fn(f64) -> f64, seconds: u64) -> Trend {
    let mut series = Series::begin(0);
    for second in (5..=seconds).step_by(5) {
        let bytes = level(second as f64) as u64;
        series.push(Point {
            time_ns: second * SECOND,
            bytes,
            low: bytes,
            high: bytes,
            variance: 0.0,
        });
    }
    judge(series.points(), &Thresholds::default())
}

#[test]
fn the_slope_is_that_of_the_line() {
    let trend = judged(|t| 10_000.0 * t, 600);
    assert!((trend.bytes_per_second - 10_000.0).abs() < 1.0, "{trend:?}");
    assert_eq!((trend.over_ns, trend.is_candidate), (600 * SECOND, true));
    assert!(trend.confidence > 0.999, "{trend:?}");
    assert!(
        !judged(|t| 10_000.0 * t, 170).is_candidate,
        "too short a time"
    );
    assert!(!judged(|t| 4_000.0 * t, 3600).is_candidate, "too slow");
    assert!(!judged(|_| 1e9, 3600).is_candidate, "it does not grow");
}

#[test]
fn a_candidate_that_stops_growing_is_none_any_more() {
    let filled = |t: f64| 20_000.0 * t.min(600.0);
    assert!(judged(filled, 600).is_candidate);
    let at = (605..1200)
        .step_by(5)
        .find(|&second| !judged(filled, second).is_candidate);
    assert!(at.is_some_and(|at| at <= 900), "{at:?}");
}

#[test]
fn a_probability_is_that_of_the_table() {
    for (z, probability) in [
        (0.0, 0.5),
        (1.0, 0.841_344_7),
        (-1.96, 0.024_997_9),
        (3.0, 0.998_650_1),
    ] {
        assert!((normal(z) - probability).abs() < 1e-6, "{z}: {}", normal(z));
    }
}

#[test]
fn a_long_life_is_kept_in_few_points_with_its_extremes() {
    let mut series = Series::begin(0);
    for second in (5..=30 * 24 * 3600u64).step_by(5) {
        let bytes = if second == 1_000_000 { 7 } else { 1000 };
        series.push(Point {
            time_ns: second * SECOND,
            bytes,
            low: bytes,
            high: bytes,
            variance: 0.0,
        });
    }
    let points = series.points();
    assert!(points.len() < 160, "{}", points.len());
    assert_eq!(points.iter().skip(1).map(|point| point.low).min(), Some(7));
    assert!(points.iter().rev().take(8).all(|point| point.low == 1000));
}
