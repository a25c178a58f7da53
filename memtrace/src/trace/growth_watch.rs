//! Which processes of an area grow, by their resident bytes of each second: only their faults are worth a sample, and
//! only their files the unwind tables that a stack takes.
//!
//! A short life is not followed: what compiles or starts up grows too, and is over before growth means anything.

use rustc_hash::FxHashMap;

use crate::{event::Pid, model::Overview};

/// Growth that is worth a look, in bytes.
const GROWTH: u64 = 256 << 10;

/// Windows within the time after which a site may be a leak candidate.
const WINDOWS: u64 = 18;

/// Windows in a row that must each rise.
const RISING: usize = 3;

/// Windows whose floor is compared with that of as many before, where growth hides under what comes and goes.
const FLOOR: usize = 4;

/// Windows without growth after which a process is at rest: as many as it takes to be sure of a leak, and more.
const REST: u64 = 2 * WINDOWS;

/// A process by pid, start and program.
type Key = (Pid, u64, u32);

/// What is remembered of the processes that run.
pub struct GrowthWatch {
    window_ns: u64,
    began_ns: u64,
    tracks: FxHashMap<Key, Track>,
}

/// One process.
struct Track {
    /// Least resident bytes of the windows that are over, oldest first.
    floors: Vec<u64>,
    /// Least of the present window, until it is over.
    floor: u64,
    /// Windows since it grew last; `None` where it never did.
    at_rest: Option<u64>,
}

impl GrowthWatch {
    /// For sites that are judged after this time, in nanoseconds.
    pub fn new(after_ns: u64) -> Self {
        let window_ns = (after_ns / WINDOWS).max(1);
        Self {
            window_ns,
            began_ns: 0,
            tracks: FxHashMap::default(),
        }
    }

    /// Takes the rows of one moment. The processes that grow, or did a while ago, with what they grew by lately; `None`
    /// within a window.
    pub fn look(&mut self, now_ns: u64, rows: &[Overview]) -> Option<Vec<(Pid, u64)>> {
        for row in rows.iter().filter(|row| row.running) {
            let track = self.tracks.entry((row.pid, row.start_ns, row.image));
            let track = track.or_insert(Track {
                floors: Vec::new(),
                floor: u64::MAX,
                at_rest: None,
            });
            track.floor = track.floor.min(row.committed_bytes);
        }
        if now_ns.saturating_sub(self.began_ns) < self.window_ns {
            return None;
        }
        self.began_ns = now_ns;
        // Who has no row any more is gone.
        self.tracks.retain(|_, track| track.floor != u64::MAX);
        let growing = self.tracks.iter_mut().filter_map(|(key, track)| {
            let grown = track.close();
            (track.at_rest? <= REST).then_some((key.0, grown))
        });
        Some(growing.collect())
    }
}

impl Track {
    /// The window is over: what the process grew by.
    fn close(&mut self) -> u64 {
        self.floors
            .push(std::mem::replace(&mut self.floor, u64::MAX));
        let spare = self.floors.len().saturating_sub(2 * FLOOR);
        self.floors.drain(..spare);
        let grown = self.steadily().max(self.by_floor());
        self.at_rest = match (grown >= GROWTH, self.at_rest) {
            (true, _) => Some(0),
            (false, before) => before.map(|windows| windows + 1),
        };
        grown
    }

    fn steadily(&self) -> u64 {
        let lately = self
            .floors
            .len()
            .checked_sub(RISING + 1)
            .map(|from| &self.floors[from..]);
        match lately {
            Some(floors) if floors.windows(2).all(|pair| pair[0] < pair[1]) => {
                floors[RISING] - floors[0]
            }
            _ => 0,
        }
    }

    fn by_floor(&self) -> u64 {
        if self.floors.len() < 2 * FLOOR {
            return 0;
        }
        let (before, lately) = self.floors.split_at(FLOOR);
        let floor = |floors: &[u64]| floors.iter().min().copied().unwrap_or(0);
        floor(lately).saturating_sub(floor(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MIB: f64 = 1_048_576.0;

    fn row(pid: Pid, start_ns: u64, committed_bytes: f64) -> Overview {
        Overview {
            pid,
            start_ns,
            running: true,
            image: 1,
            comm: "x".into(),
            cgroup: String::new(),
            reserved_bytes: 0,
            committed_bytes: committed_bytes as u64,
            heap_live_bytes: None,
            heap_calls: None,
            minor: 0,
            major: 0,
            minor_ns: 0,
            major_ns: 0,
            fault_buckets: Vec::new(),
        }
    }

    /// When a process with these resident bytes is first followed, and when it is not any more.
    fn followed(bytes: impl Fn(f64) -> f64, seconds: u64) -> (Option<u64>, Option<u64>) {
        let mut watch = GrowthWatch::new(180 * SECOND);
        let (mut from, mut until) = (None, None);
        for second in 1..=seconds {
            let rows = [row(7, 1, bytes(second as f64)), row(8, 1, 50.0 * MIB)];
            let Some(growing) = watch.look(second * SECOND, &rows) else {
                continue;
            };
            assert!(
                growing.iter().all(|(pid, _)| *pid == 7),
                "one at rest is not followed"
            );
            match (growing.is_empty(), from, until) {
                (false, None, _) => from = Some(second),
                (true, Some(_), None) => until = Some(second),
                _ => {}
            }
        }
        (from, until)
    }

    #[test]
    fn a_slow_leak_is_followed_within_a_minute() {
        let (from, until) = followed(|t| 50.0 * MIB + t * MIB / 60.0, 3600);
        assert!(from.is_some_and(|from| from <= 60), "{from:?}");
        assert_eq!(until, None);
    }

    #[test]
    fn a_leak_under_a_cache_that_comes_and_goes_is_followed_later() {
        let cache = |t: f64| 40.0 * MIB * (t / 25.0).fract();
        let (from, until) = followed(|t| cache(t) + t * MIB / 60.0, 3600);
        assert!(from.is_some_and(|from| from <= 100), "{from:?}");
        assert_eq!(until, None);
    }

    #[test]
    fn who_comes_to_rest_is_left() {
        let (from, until) = followed(|t| 9.0 * MIB * t.min(120.0), 1200);
        assert!(from.is_some());
        assert!(
            until.is_some_and(|until| (120 + 360..120 + 600).contains(&until)),
            "{until:?}"
        );
        assert_eq!(followed(|t| 40.0 * MIB * (t / 25.0).fract(), 3600).0, None);
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let mut watch = GrowthWatch::new(180 * SECOND);
        for second in 1..=100 {
            watch.look(second * SECOND, &[row(second as Pid, second, MIB)]);
        }
        assert!(watch.tracks.len() <= 20, "{}", watch.tracks.len());
    }
}
