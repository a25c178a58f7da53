//! Processes of an area whose growth is sampled: those that grow have events on their own faults, and unwind tables.

use rustc_hash::FxHashMap;

use super::{Session, descriptors, followed::each_thread, growth_watch::GrowthWatch};
use crate::{
    event::{Event, EventKind, Pid},
    model::Overview,
    probe::{
        Error,
        growth::{self, Touches},
    },
    seed,
};

/// Processes that are sampled at a time at most: each takes tables, and a sample of its pages.
const MAX_SAMPLED: usize = 32;

/// Threads of one process that are followed at most: each takes two descriptors.
const MAX_THREADS: usize = 1024;

/// Faults a second that are sampled of one process: with more, one stands for several. Who faults less is known page
/// by page, a slow leak among them.
const PER_SECOND: u64 = 64;

/// The same where the sample is thinned.
const PER_SECOND_THINNED: u64 = 8;

/// Pages that one stands for until the first reading.
const FIRST_STANDS_FOR: u32 = 64;

/// Pages that one stands for at most.
const MAX_STANDS_FOR: u64 = 1 << 12;

/// How much of growth is sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thinning {
    /// As much as is of use.
    #[default]
    None,
    /// An eighth of it, of those that fault much.
    Eighth,
    /// Nothing.
    All,
}

/// Who grows, and who of them is sampled.
pub struct Growing {
    watch: GrowthWatch,
    sampled: FxHashMap<Pid, Sampled>,
    /// Found no room, and that was counted.
    without_room: Vec<Pid>,
    thinning: Thinning,
}

/// One process.
struct Sampled {
    /// Its events: closed when this goes.
    _touches: Vec<Touches>,
    stands_for: u32,
    /// Minor faults by the last reading, and when that was.
    faults: (u64, u64),
}

impl Growing {
    /// For sites that are judged after this time, in nanoseconds.
    pub fn new(after_ns: u64) -> Self {
        Self {
            watch: GrowthWatch::new(after_ns),
            sampled: FxHashMap::default(),
            without_room: Vec::new(),
            thinning: Thinning::None,
        }
    }
}

impl Session {
    /// Samples the growth of those that grow, and of no others; `rows` are of now.
    pub fn follow_growth(&mut self, now_ns: u64, rows: &[Overview]) {
        let growing = self.growing.watch.look(now_ns, rows);
        if let Some(mut growing) = growing
            && self.growing.thinning != Thinning::All
        {
            let still = |pid: Pid| growing.iter().any(|(one, _)| *one == pid);
            let rested: Vec<Pid> = self.sampled().filter(|&pid| !still(pid)).collect();
            for pid in rested {
                self.leave_growth(pid);
            }
            // Who grows most comes first.
            growing.sort_by_key(|&(pid, grown)| (std::cmp::Reverse(grown), pid));
            for (pid, _) in growing {
                self.begin_growth(pid);
            }
        }
        for row in rows {
            self.pace(now_ns, row);
        }
    }

    /// Samples less, or more again.
    pub fn thin_growth(&mut self, thinning: Thinning) {
        self.growing.thinning = thinning;
        if thinning == Thinning::All {
            for pid in self.sampled().collect::<Vec<Pid>>() {
                self.leave_growth(pid);
            }
        }
    }

    /// The processes that are sampled.
    pub fn sampled(&self) -> impl Iterator<Item = Pid> + '_ {
        self.growing.sampled.keys().copied()
    }

    fn begin_growth(&mut self, pid: Pid) {
        if self.growing.sampled.contains_key(&pid) || !self.traced.contains(&pid) {
            return;
        }
        if self.growing.sampled.len() >= MAX_SAMPLED || seed::threads(pid).len() > MAX_THREADS {
            return self.without_room(pid);
        }
        if let Err(error) = self.try_begin_growth(pid) {
            self.leave_growth(pid);
            self.heap.failures.push(error.to_string());
        }
    }

    fn try_begin_growth(&mut self, pid: Pid) -> Result<(), Error> {
        descriptors::allow();
        self.follow_stacks(pid);
        self.object.set_growing(pid, Some(FIRST_STANDS_FOR))?;
        let mut touches = Vec::new();
        each_thread(pid, |tid| {
            touches.extend(growth::follow(&self.object, tid)?);
            Ok(())
        })?;
        let sampled = Sampled {
            _touches: touches,
            stands_for: FIRST_STANDS_FOR,
            faults: (0, 0),
        };
        self.growing.sampled.insert(pid, sampled);
        self.growing.without_room.retain(|&one| one != pid);
        self.tell_sampling(pid, true);
        Ok(())
    }

    /// Unwind tables of the process, from what it is known to have mapped, or from /proc.
    fn follow_stacks(&mut self, pid: Pid) {
        let known = self.modules.of(pid);
        let is_known = !known.is_empty();
        self.stream.take_stacks_of_growth(pid, known);
        if !is_known {
            for event in seed::smaps(pid) {
                self.stream.push(event);
            }
        }
    }

    /// The process is not sampled any more: it is at rest, ended, or has another program.
    pub(super) fn leave_growth(&mut self, pid: Pid) {
        self.growing.without_room.retain(|&one| one != pid);
        let known = self.growing.sampled.remove(&pid).is_some();
        if let Err(error) = self.object.set_growing(pid, None) {
            log::debug!("{error}");
        }
        self.stream.leave_stacks_of_growth(pid);
        if known {
            self.tell_sampling(pid, false);
        }
    }

    fn without_room(&mut self, pid: Pid) {
        if !self.growing.without_room.contains(&pid) {
            self.growing.without_room.push(pid);
            self.consume(event(
                pid,
                EventKind::Counted {
                    reason: "growth_not_sampled".into(),
                    count: 1,
                    loss: false,
                },
            ));
        }
    }

    fn tell_sampling(&mut self, pid: Pid, on: bool) {
        self.consume(event(pid, EventKind::TouchSampling { on }));
    }

    /// Lets one fault stand for as many as it takes to have some [`PER_SECOND`] of them.
    fn pace(&mut self, now_ns: u64, row: &Overview) {
        let thinning = self.growing.thinning;
        let Some(sampled) = self.growing.sampled.get_mut(&row.pid) else {
            return;
        };
        let (faults, since_ns) = std::mem::replace(&mut sampled.faults, (row.minor, now_ns));
        let elapsed = now_ns.saturating_sub(since_ns).max(1);
        let new = row.minor.saturating_sub(faults);
        if since_ns == 0 {
            return;
        }
        let rate = new.saturating_mul(1_000_000_000) / elapsed;
        let per_second = match thinning {
            Thinning::None => PER_SECOND,
            Thinning::Eighth | Thinning::All => PER_SECOND_THINNED,
        };
        let stands_for = (rate / per_second).max(1).next_power_of_two();
        let stands_for = stands_for.min(MAX_STANDS_FOR) as u32;
        if stands_for != sampled.stands_for {
            sampled.stands_for = stands_for;
            if let Err(error) = self.object.set_growing(row.pid, Some(stands_for)) {
                log::debug!("{error}");
            }
        }
    }
}

fn event(pid: Pid, kind: EventKind) -> Event {
    Event {
        time_ns: seed::now_ns(),
        pid,
        tid: 0,
        kind,
    }
}
