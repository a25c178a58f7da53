//! Whether a site grows like a leak: a judgement on its level over time, by nothing but that level.
//!
//! A leak's level rises by about as much in each stretch of time, and what it gained stays. A cache that warms up
//! rises less and less; one that is emptied and filled again, or that breathes with the load, comes back down, and
//! then rises where it has been before. So a window of time tells a leak by three things:
//!
//! - its **floor** rises: the level below which it did not come again afterwards;
//! - it rises **steadily**: each third of the window brings its share, and the last one not much less than the first;
//! - it is **new ground**: all of it lies above whatever was reached before, and it rises by twice as much as it
//!   ever fell meanwhile.
//!
//! The windows all end now. The longest is the whole life of the site; the others are there for a leak that begins late
//! in it, or behind the warm-up of what else is allocated there.

use std::f64::consts::SQRT_2;

/// Past what a site is called a leak candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// How long it must have grown, in nanoseconds.
    pub after_ns: u64,
    /// Bytes that it must have grown by.
    pub bytes: u64,
    /// Bytes a second.
    pub bytes_per_second: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            after_ns: 180_000_000_000,
            bytes: 1 << 20,
            bytes_per_second: 4 << 10,
        }
    }
}

/// The level of a site at a time, and since the point before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// When.
    pub time_ns: u64,
    /// Bytes then.
    pub bytes: u64,
    /// Least bytes since the point before.
    pub low: u64,
    /// Most bytes since the point before.
    pub high: u64,
    /// Variance of all that was added and taken off so far, for want of counting each page, in bytes².
    pub variance: f64,
}

/// How a site grows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trend {
    /// The window that was judged, in nanoseconds: the longest in which it grows like a leak; the latest where there
    /// is none.
    pub over_ns: u64,
    /// Bytes a second, by least squares over the window.
    pub bytes_per_second: f64,
    /// Standard error of that: the scatter about the line, and the sampling.
    pub error: f64,
    /// Probability, by the two figures above, that it grows at all.
    pub confidence: f64,
    /// It grows like a leak, past the thresholds.
    pub is_candidate: bool,
}

/// A third must bring this share of an even one.
const EVEN_SHARE: f64 = 0.5;
/// The last third must bring this share of the first.
const LAST_SHARE: f64 = 0.8;
/// Growth must be this many standard errors of the sampling.
const SIGNIFICANT: f64 = 12.0;
/// Growth must be this many times what the level ever fell by meanwhile.
const FALLS: f64 = 2.0;
/// Part of the level reached before that does not count as lost ground.
const TOLERANCE: f64 = 0.02;
/// Points that a window needs.
const MIN_POINTS: usize = 8;

/// Judges a site by its points, oldest first.
pub fn judge(points: &[Point], thresholds: &Thresholds) -> Trend {
    let floor = floor(points);
    let [Some(first), Some(last)] = [points.first(), points.last()] else {
        return Trend::default();
    };
    let whole_ns = last.time_ns.saturating_sub(first.time_ns);
    let mut over_ns = whole_ns;
    loop {
        let from_ns = last.time_ns.saturating_sub(over_ns);
        let begin = points.partition_point(|point| point.time_ns < from_ns);
        let mut trend = trend(&points[begin..], &floor[begin..]);
        trend.is_candidate = trend.over_ns >= thresholds.after_ns / 20 * 19
            && is_new_ground(points, &floor, begin)
            && grows_like_a_leak(&points[begin..], &floor[begin..], &trend, thresholds);
        // Halves, down to the shortest that is long enough.
        if trend.is_candidate || over_ns <= thresholds.after_ns {
            return trend;
        }
        over_ns = (over_ns / 2).max(thresholds.after_ns);
    }
}

/// For each point, the least level from then on.
fn floor(points: &[Point]) -> Vec<f64> {
    let mut least = u64::MAX;
    let from_then_on = |point: &Point| {
        let floor = least.min(point.bytes);
        least = floor.min(point.low);
        floor as f64
    };
    let mut floor: Vec<f64> = points.iter().rev().map(from_then_on).collect();
    floor.reverse();
    floor
}

/// The line through a window's floor.
fn trend(points: &[Point], floor: &[f64]) -> Trend {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Trend::default();
    };
    let over_ns = last.time_ns.saturating_sub(first.time_ns);
    let seconds = |point: &Point| point.time_ns.saturating_sub(first.time_ns) as f64 / 1e9;
    let count = points.len() as f64;
    let mean_x = points.iter().map(seconds).sum::<f64>() / count;
    let mean_y = floor.iter().sum::<f64>() / count;
    let (mut xx, mut xy) = (0.0, 0.0);
    for (point, level) in points.iter().zip(floor) {
        let x = seconds(point) - mean_x;
        xx += x * x;
        xy += x * (level - mean_y);
    }
    if xx == 0.0 || points.len() < 3 {
        return Trend {
            over_ns,
            ..Trend::default()
        };
    }
    let slope = xy / xx;
    let off = |(point, level): (&Point, &f64)| {
        (level - mean_y - slope * (seconds(point) - mean_x)).powi(2)
    };
    let scatter = points.iter().zip(floor).map(off).sum::<f64>() / (count - 2.0) / xx;
    let sampling = (last.variance - first.variance).max(0.0) / (over_ns as f64 / 1e9).powi(2);
    let error = (scatter + sampling).sqrt();
    let confidence = match (error > 0.0, slope > 0.0) {
        (true, _) => normal(slope / error),
        (false, grows) => f64::from(u8::from(grows)),
    };
    Trend {
        over_ns,
        bytes_per_second: slope,
        error,
        confidence,
        is_candidate: false,
    }
}

/// Whether a window lies above all that was reached before it.
fn is_new_ground(points: &[Point], floor: &[f64], begin: usize) -> bool {
    let before = points[..begin].iter().map(|point| point.high).max();
    let lowest = floor.get(begin).copied().unwrap_or(0.0);
    before.is_none_or(|before| lowest >= before as f64 * (1.0 - TOLERANCE))
}

fn grows_like_a_leak(
    points: &[Point],
    floor: &[f64],
    trend: &Trend,
    thresholds: &Thresholds,
) -> bool {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return false;
    };
    let at = |part: f64| {
        level_at(
            points,
            floor,
            first.time_ns as f64 + trend.over_ns as f64 * part,
        )
    };
    let levels = [at(0.0), at(1.0 / 3.0), at(2.0 / 3.0), at(1.0)];
    let [one, two, three] = [0, 1, 2].map(|index| levels[index + 1] - levels[index]);
    let growth = levels[3] - levels[0];
    let sampling = (last.variance - first.variance).max(0.0).sqrt();
    // By chance a third of the window may bring less.
    let slack = sampling / 3f64.sqrt();
    let even = growth / 3.0 * EVEN_SHARE;
    points.len() >= MIN_POINTS
        && growth >= thresholds.bytes as f64
        && growth >= SIGNIFICANT * sampling
        && growth >= FALLS * deepest_fall(points)
        && trend.bytes_per_second >= thresholds.bytes_per_second as f64
        && [one, two, three].iter().all(|part| part + slack >= even)
        && three >= one * LAST_SHARE
}

/// The most that the level came down from where it had been.
fn deepest_fall(points: &[Point]) -> f64 {
    let mut highest = 0u64;
    let fall = |point: &Point| {
        let fall = highest.saturating_sub(point.low);
        highest = highest.max(point.high);
        fall
    };
    points.iter().map(fall).max().unwrap_or(0) as f64
}

/// The floor at a time, between two points by proportion.
fn level_at(points: &[Point], floor: &[f64], time_ns: f64) -> f64 {
    let after = points.partition_point(|point| (point.time_ns as f64) < time_ns);
    let level = |index: usize| floor.get(index).copied().unwrap_or(0.0);
    let (Some(before), Some(next)) = (after.checked_sub(1), points.get(after)) else {
        return level(after.min(points.len().saturating_sub(1)));
    };
    let start = points[before].time_ns as f64;
    let part = (time_ns - start) / (next.time_ns as f64 - start).max(1.0);
    level(before) + (level(after) - level(before)) * part
}

/// The normal distribution function, to some 1e-7: Abramowitz and Stegun, 7.1.26.
fn normal(z: f64) -> f64 {
    let x = z.abs() / SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = t
        * (0.254_829_592
            + t * (-0.284_496_736
                + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let error_function = 1.0 - series * (-x * x).exp();
    if z < 0.0 {
        (1.0 - error_function) / 2.0
    } else {
        (1.0 + error_function) / 2.0
    }
}

/// Part of its age within which a point may stand for others: what was long ago is kept in fewer points.
const GAP: u64 = 8;

/// The level of a site over its life, in points that thin out with age.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    points: Vec<Point>,
}

impl Series {
    /// Begins with nothing at a time.
    pub fn begin(time_ns: u64) -> Self {
        let point = Point {
            time_ns,
            ..Point::default()
        };
        Self {
            points: vec![point],
        }
    }

    /// The points, oldest first.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// When the last point was added.
    pub fn last_ns(&self) -> u64 {
        self.points.last().map_or(0, |point| point.time_ns)
    }

    /// Adds a point, and joins old ones: there are some eight for each doubling of the age.
    pub fn push(&mut self, point: Point) {
        self.points.push(point);
        let now_ns = point.time_ns;
        let mut kept: Vec<Point> = Vec::with_capacity(self.points.len());
        for &point in &self.points {
            // What one point stands for reaches back to the one before it.
            let joins = kept.len() >= 2 && {
                let from_ns = kept[kept.len() - 2].time_ns;
                point.time_ns.saturating_sub(from_ns) <= now_ns.saturating_sub(point.time_ns) / GAP
            };
            match kept.last_mut() {
                Some(last) if joins => {
                    *last = Point {
                        low: last.low.min(point.low),
                        high: last.high.max(point.high),
                        ..point
                    }
                }
                _ => kept.push(point),
            }
        }
        self.points = kept;
    }
}

#[cfg(test)]
#[path = "trend_tests.rs"]
mod tests;
