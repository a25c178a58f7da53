//! Processes of an area whose growth is sampled: those that grow have events on their own faults, and unwind tables.

use memtrace_common::growth::Growing as How;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{Session, descriptors, followed::each_thread, growth_pace, growth_watch::GrowthWatch};
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

/// Nanoseconds that the events of a process stay as they are at least.
const KEPT_NS: u64 = 10_000_000_000;

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
    /// Were sampled, and what they touched and gave back is still told.
    left: FxHashSet<Pid>,
    /// Found no room, and that was counted.
    without_room: Vec<Pid>,
    thinning: Thinning,
}

/// One process.
struct Sampled {
    /// Its events.
    touches: Vec<Touches>,
    /// What they count up to.
    period: u64,
    opened_ns: u64,
    how: How,
    /// Minor faults by the last reading, and when that was.
    faults: (u64, u64),
}

impl Growing {
    /// For sites that are judged after this time, in nanoseconds.
    pub fn new(after_ns: u64) -> Self {
        Self {
            watch: GrowthWatch::new(after_ns),
            sampled: FxHashMap::default(),
            left: FxHashSet::default(),
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
                // To read the mappings of a large process takes a while.
                self.drain();
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
        self.tell_memory_calls()?;
        self.follow_stacks(pid);
        self.object.set_growing(pid, Some(growth_pace::AT_FIRST))?;
        let touches = self.open_touches(pid, 1)?;
        let sampled = Sampled {
            touches,
            period: 1,
            opened_ns: seed::now_ns(),
            how: growth_pace::AT_FIRST,
            faults: (0, 0),
        };
        self.growing.sampled.insert(pid, sampled);
        self.growing.without_room.retain(|&one| one != pid);
        self.growing.left.remove(&pid);
        self.tell_sampling(pid, true, true);
        Ok(())
    }

    fn open_touches(&self, pid: Pid, period: u64) -> Result<Vec<Touches>, Error> {
        let mut touches = Vec::new();
        each_thread(pid, |tid| {
            touches.extend(growth::follow(&self.object, tid, period)?);
            Ok(())
        })?;
        Ok(touches)
    }

    /// Unwind tables of the process, and what it has mapped by now: that was not told.
    fn follow_stacks(&mut self, pid: Pid) {
        self.stream.take_stacks_of_growth(pid, self.modules.of(pid));
        for event in seed::smaps(pid) {
            self.stream.push(event);
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
            self.tell_sampling(pid, false, true);
            if self.traced.contains(&pid) {
                self.growing.left.insert(pid);
            }
        }
    }

    /// Nobody tells what becomes of the pages of those that are not sampled any more.
    pub(super) fn forget_growth(&mut self) {
        for pid in std::mem::take(&mut self.growing.left) {
            if self.traced.contains(&pid) {
                self.tell_sampling(pid, false, false);
            }
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

    fn tell_sampling(&mut self, pid: Pid, on: bool, kept: bool) {
        self.consume(event(pid, EventKind::TouchSampling { on, kept }));
    }

    /// Lets one fault stand for as many as its process has.
    fn pace(&mut self, now_ns: u64, row: &Overview) {
        let per_second = match self.growing.thinning {
            Thinning::None => growth_pace::PER_SECOND,
            Thinning::Eighth | Thinning::All => growth_pace::PER_SECOND_THINNED,
        };
        let Some(sampled) = self.growing.sampled.get_mut(&row.pid) else {
            return;
        };
        let (faults, since_ns) = std::mem::replace(&mut sampled.faults, (row.minor, now_ns));
        if since_ns == 0 {
            return;
        }
        let elapsed = now_ns.saturating_sub(since_ns).max(1);
        let new = row.minor.saturating_sub(faults);
        let rate = new.saturating_mul(1_000_000_000) / elapsed;
        let period = growth_pace::period(rate);
        let kept = now_ns.saturating_sub(sampled.opened_ns) < KEPT_NS;
        if period != sampled.period && !kept {
            return self.reopen(now_ns, row.pid, period);
        }
        let how = growth_pace::sampled(rate, per_second, sampled.period);
        if how != sampled.how {
            sampled.how = how;
            if let Err(error) = self.object.set_growing(row.pid, Some(how)) {
                log::debug!("{error}");
            }
        }
    }

    /// Opens the events anew, to count up to another number. What the old ones told meanwhile would be misread, so
    /// nothing is taken until they are closed.
    fn reopen(&mut self, now_ns: u64, pid: Pid, period: u64) {
        if let Err(error) = self.object.set_growing(pid, None) {
            log::debug!("{error}");
        }
        if let Some(sampled) = self.growing.sampled.get_mut(&pid) {
            sampled.touches.clear();
        }
        let how = growth_pace::sampled(0, 1, period);
        let opened = self.open_touches(pid, period);
        let opened = opened.and_then(|touches| {
            self.object.set_growing(pid, Some(how))?;
            Ok(touches)
        });
        match (opened, self.growing.sampled.get_mut(&pid)) {
            (Ok(touches), Some(sampled)) => {
                (sampled.touches, sampled.how) = (touches, how);
                (sampled.period, sampled.opened_ns) = (period, now_ns);
            }
            (Ok(_), None) => {}
            (Err(error), _) => {
                self.heap.failures.push(error.to_string());
                self.leave_growth(pid);
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
