//! The history of a process in a bounded number of points.

use crate::report::document::TimelinePoint;

/// Spacing of points at first, in nanoseconds.
const FINEST_NS: u64 = 1_000_000;

/// Points at least an interval apart. When they become too many the interval doubles and points that
/// are too close to their predecessor go; the first one stays.
#[derive(Clone, Debug)]
pub struct Timeline {
    points: Vec<TimelinePoint>,
    interval_ns: u64,
    limit: usize,
}

impl Timeline {
    /// An empty history of at most `limit` points, two at least.
    pub fn new(limit: usize) -> Self {
        Self {
            points: Vec::new(),
            interval_ns: FINEST_NS,
            limit: limit.max(2),
        }
    }

    /// Whether a point at this time would be kept.
    pub fn is_due(&self, time_ns: u64) -> bool {
        self.points
            .last()
            .is_none_or(|last| time_ns >= last.time_ns.saturating_add(self.interval_ns))
    }

    /// Keeps a point, if it is due.
    pub fn record(&mut self, point: TimelinePoint) {
        if !self.is_due(point.time_ns) {
            return;
        }
        self.points.push(point);
        // One place is left for the last state.
        self.thin(self.limit - 1);
    }

    fn thin(&mut self, limit: usize) {
        while self.points.len() > limit.max(1) {
            if self.interval_ns == u64::MAX {
                self.points.truncate(limit.max(1));
                return;
            }
            self.interval_ns = self.interval_ns.saturating_mul(2);
            let (interval, mut next) = (self.interval_ns, 0);
            self.points.retain(|point| {
                let keep = point.time_ns >= next;
                if keep {
                    next = point.time_ns.saturating_add(interval);
                }
                keep
            });
        }
    }

    /// The points kept, and `last` after them.
    pub fn with_last(&self, last: TimelinePoint) -> Vec<TimelinePoint> {
        let mut points = self.points.clone();
        if points.len() > 1
            && points
                .last()
                .is_some_and(|point| point.time_ns >= last.time_ns)
        {
            points.pop();
        }
        if points.last() != Some(&last) {
            points.push(last);
        }
        points
    }

    /// Lowers the number of points for good: what has ended needs less detail.
    pub fn shrink(&mut self, limit: usize) {
        self.limit = limit.clamp(2, self.limit);
        self.thin(self.limit - 1);
        self.points.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(time_ns: u64) -> TimelinePoint {
        TimelinePoint {
            time_ns,
            reserved_bytes: time_ns,
            committed_bytes: 0,
            heap_live_bytes: None,
            program_break_bytes: 0,
            minor: 0,
            major: 0,
        }
    }

    #[test]
    fn first_and_last_stay_whatever_comes_between() {
        let mut timeline = Timeline::new(16);
        for step in 0..100_000 {
            timeline.record(point(step * 700_000));
        }
        let points = timeline.with_last(point(99_999 * 700_000));
        assert!(points.len() <= 16 && points.len() >= 7, "{}", points.len());
        assert_eq!(points[0].time_ns, 0);
        assert_eq!(points[points.len() - 1].time_ns, 99_999 * 700_000);
        assert!(points.is_sorted_by_key(|point| point.time_ns));
        timeline.shrink(4);
        let points = timeline.with_last(point(99_999 * 700_000));
        assert!(points.len() <= 4);
        assert_eq!(points[0].time_ns, 0);
    }

    #[test]
    fn close_points_are_not_kept() {
        let mut timeline = Timeline::new(16);
        timeline.record(point(5));
        timeline.record(point(6));
        timeline.record(point(1_000_005));
        let times: Vec<u64> = timeline
            .with_last(point(1_000_007))
            .iter()
            .map(|point| point.time_ns)
            .collect();
        assert_eq!(times, [5, 1_000_005, 1_000_007]);
        let once = Timeline::new(16).with_last(point(3));
        assert_eq!(once, [point(3)]);
    }

    #[test]
    fn times_may_be_absurd() {
        let mut timeline = Timeline::new(2);
        for time in [u64::MAX, 0, u64::MAX, 1, u64::MAX - 1] {
            timeline.record(point(time));
        }
        assert!(timeline.with_last(point(0)).len() <= 2);
    }
}
