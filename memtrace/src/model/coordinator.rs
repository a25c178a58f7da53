//! What is decided in the order of all events: who there is, which shard has it, and what is kept of those that ended.
//!
//! A shard has whole processes, and does what it is told with them; how many shards there are changes nothing about
//! what comes out. Whoever shares memory is in one shard: a child begins in its parent's. A process whose exec
//! succeeded is alone in a new address space, so it may go to another one. Which one depends on the events alone.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::event::{Event, EventKind, Machine, Pid, Started};

use super::{
    Limits,
    coverage::Coverage,
    exited_sites::ExitedSites,
    orders::{Order, Settle, Settling, Shards, Summarised, Toucher},
    process::ProcessId,
    stacks::Stacks,
};

/// How long after its end, in the time of events, a process still takes in events in full.
const GRACE_NS: u64 = 1_000_000_000;

/// Ended processes that wait for late events at most.
const GRACE_PROCESSES: usize = 64;

/// Events that a program is expected to bring, while nothing is known of it: so that many that begin at a time do
/// not all go to one shard.
const EXPECTED_EVENTS: u64 = 20_000;

/// The latest process with a pid.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Its number.
    pub id: ProcessId,
    /// Who has it.
    pub shard: usize,
    /// When it started, as it was told.
    start_ns: u64,
    /// Something told who it is; otherwise it was met by what it did.
    announced: bool,
    ended: bool,
    summarised: bool,
    /// It is to be launched, and begins with its exec.
    launching: bool,
}

/// One that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// When, in nanoseconds.
    time_ns: u64,
    pid: Pid,
    /// Its number.
    pub id: ProcessId,
    /// Who has it.
    pub shard: usize,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub struct Coordinator {
    pub(super) limits: Limits,
    /// Events of each shard, and those that are expected of it.
    loads: Vec<u64>,
    pub(super) machine: Machine,
    now_ns: u64,
    has_ended: bool,
    last_id: ProcessId,
    current: FxHashMap<Pid, Known>,
    /// The first process that tracing launched.
    pub(super) command: Option<ProcessId>,
    /// Ended, but late events may still tell about them.
    ending: VecDeque<Ended>,
    /// Summarised, oldest first.
    exited: VecDeque<Ended>,
    pub(super) exited_sites: ExitedSites,
    pub(super) stacks: Stacks,
    pub(super) coverage: Coverage,
}

impl Coordinator {
    /// Of so many shards.
    pub fn new(limits: Limits, shards: usize) -> Self {
        Self {
            limits,
            loads: vec![0; shards],
            ..Self::default()
        }
    }

    /// The time of the latest event, or of the end of the trace.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// The latest process with this pid.
    pub fn latest(&self, pid: Pid) -> Option<Known> {
        self.current.get(&pid).copied()
    }

    /// The pids of all processes, in no order.
    pub fn pids(&self) -> impl Iterator<Item = Pid> + '_ {
        self.current.keys().copied()
    }

    /// Passes an event on to the shards that it concerns.
    pub fn plan(&mut self, event: &Event, shards: &mut impl Shards) {
        self.coverage.events += 1;
        self.advance(event.time_ns);
        match &event.kind {
            EventKind::Machine(machine) => {
                self.machine = (**machine).clone();
                self.tell_all(|| Order::Machine, shards);
            }
            EventKind::Sampling { .. } => self.tell_all(|| Order::Sampling, shards),
            EventKind::End => self.has_ended = true,
            EventKind::Probe {
                name,
                attached,
                reason,
            } => self.coverage.probe(name, *attached, reason.as_deref()),
            EventKind::Counted {
                reason,
                count,
                loss,
            } => {
                self.coverage.count(reason, *count, *loss);
                if *loss && *count > 0 {
                    self.lose(event.pid, shards);
                }
            }
            EventKind::Stack { id, frames, end } => self.stacks.define(*id, frames, *end),
            EventKind::Started(started) => self.start(event, started, shards),
            EventKind::Fork { child, comm, .. } => self.fork(event, *child, comm, shards),
            EventKind::Exec { comm, .. } => self.exec(event, comm, shards),
            EventKind::Exit { .. } => self.exit(event, shards),
            _ => self.pass_on(event, shards),
        }
        self.settle(shards);
    }

    /// There is no room for a stack of a sample.
    pub fn skip_stack(&mut self, time_ns: u64) {
        self.coverage.events += 1;
        self.coverage.count("stacks_not_kept", 1, false);
        self.advance(time_ns);
    }

    fn pass_on(&mut self, event: &Event, shards: &mut impl Shards) {
        if event.pid == 0 {
            return;
        }
        let known = self.process(event, shards);
        let Known { id, shard, .. } = known;
        self.loads[shard] += 1;
        let order = match &event.kind {
            // Of those no site is kept any more.
            EventKind::Alloc { .. } | EventKind::Realloc { .. } | EventKind::Fault { .. }
                if known.summarised =>
            {
                Order::Apply { id, site: 0 }
            }
            EventKind::Touch { .. } if known.summarised => Order::Touch { id, by: None },
            EventKind::Alloc { stack, .. } | EventKind::Realloc { stack, .. } => Order::Apply {
                id,
                site: self.stacks.intern(*stack),
            },
            EventKind::Fault { stack, .. } if *stack != 0 => Order::Apply {
                id,
                site: self.stacks.intern(*stack),
            },
            EventKind::Touch { stack, .. } => {
                let site = self.stacks.find_sampled(*stack);
                let by = |site| {
                    let frames = self.stacks.frames(site);
                    Box::new(Toucher { site, frames })
                };
                let by = site.map(by);
                Order::Touch { id, by }
            }
            EventKind::Rename { comm } if event.tid == event.pid => {
                self.announce(event.pid, comm);
                Order::Apply { id, site: 0 }
            }
            _ => Order::Apply { id, site: 0 },
        };
        shards.order(shard, order);
    }

    /// Time passes.
    pub fn advance(&mut self, now_ns: u64) {
        if !self.has_ended {
            self.now_ns = self.now_ns.max(now_ns);
        }
    }

    fn tell_all(&self, order: impl Fn() -> Order, shards: &mut impl Shards) {
        for shard in 0..self.loads.len() {
            shards.order(shard, order());
        }
    }

    /// Events of a process were lost; where it is not known, or they were no process's, they may have been anyone's.
    fn lose(&mut self, pid: Pid, shards: &mut impl Shards) {
        match self.current.get(&pid) {
            Some(&Known { id, shard, .. }) => shards.order(shard, Order::Lossy { id }),
            None => self.tell_all(|| Order::AllLossy, shards),
        }
    }

    /// The process that an event is about. One that nobody announced is taken to have been there before.
    fn process(&mut self, event: &Event, shards: &mut impl Shards) -> Known {
        match self.current.get(&event.pid) {
            Some(&known) => known,
            None => {
                let shard = self.least_loaded();
                let known = self.add(event.pid, shard, event.time_ns, false);
                shards.order(shard, Order::Begin { id: known.id });
                known
            }
        }
    }

    fn add(&mut self, pid: Pid, shard: usize, start_ns: u64, announced: bool) -> Known {
        self.last_id += 1;
        let known = Known {
            id: self.last_id,
            shard,
            start_ns,
            announced,
            ended: false,
            summarised: false,
            launching: false,
        };
        self.current.insert(pid, known);
        known
    }

    /// The shard that a program is to go to.
    fn least_loaded(&mut self) -> usize {
        let loads = self.loads.iter().enumerate();
        let least = loads.min_by_key(|(_, load)| **load);
        let shard = least.map_or(0, |(shard, _)| shard);
        self.loads[shard] += EXPECTED_EVENTS;
        shard
    }

    fn announce(&mut self, pid: Pid, comm: &str) {
        if let Some(known) = self.current.get_mut(&pid) {
            known.announced = !comm.is_empty();
        }
    }

    /// A pid is taken by a new process: whoever had it has ended, seen or not.
    fn vacate(&mut self, event: &Event, pid: Pid, shards: &mut impl Shards) {
        if let Some(known) = self.current.get(&pid).copied()
            && self.end(pid, event.time_ns)
        {
            shards.order(known.shard, Order::End { id: known.id });
        }
    }

    fn start(&mut self, event: &Event, started: &Started, shards: &mut impl Shards) {
        let is_same = |known: &Known| {
            !known.ended && (known.start_ns == started.start_ns || !known.announced)
        };
        let known = self.latest(event.pid).filter(is_same);
        let fresh = known.is_none();
        let known = known.unwrap_or_else(|| {
            self.vacate(event, event.pid, shards);
            let shard = self.least_loaded();
            self.add(event.pid, shard, started.start_ns, true)
        });
        if let Some(known) = self.current.get_mut(&event.pid) {
            known.start_ns = started.start_ns;
            known.launching = !started.already_running;
        }
        self.announce(event.pid, &started.comm);
        if !started.already_running {
            self.command.get_or_insert(known.id);
        }
        let id = known.id;
        shards.order(known.shard, Order::Start { id, fresh });
    }

    fn fork(&mut self, event: &Event, child: Pid, comm: &str, shards: &mut impl Shards) {
        if child == 0 || child == event.pid {
            return;
        }
        let Known { id, shard, .. } = self.process(event, shards);
        self.vacate(event, child, shards);
        let child = self.add(child, shard, event.time_ns, !comm.is_empty()).id;
        shards.order(shard, Order::Fork { id, child });
    }

    fn exec(&mut self, event: &Event, comm: &str, shards: &mut impl Shards) {
        if event.pid == 0 {
            return;
        }
        let Known {
            id, shard, ended, ..
        } = self.process(event, shards);
        self.announce(event.pid, comm);
        if let Some(known) = self.current.get_mut(&event.pid)
            && !known.summarised
            && std::mem::take(&mut known.launching)
        {
            known.start_ns = event.time_ns;
        }
        shards.order(shard, Order::Exec { id });
        if ended {
            return;
        }
        let next = self.least_loaded();
        if next != shard {
            if let Some(known) = self.current.get_mut(&event.pid) {
                known.shard = next;
            }
            shards.hand_over(id, shard, next);
        }
    }

    fn exit(&mut self, event: &Event, shards: &mut impl Shards) {
        if event.pid == 0 {
            return;
        }
        let Known { id, shard, .. } = self.process(event, shards);
        self.end(event.pid, event.time_ns);
        shards.order(shard, Order::Exit { id });
    }

    /// Whether that was not known before.
    fn end(&mut self, pid: Pid, time_ns: u64) -> bool {
        let Some(known) = self.current.get_mut(&pid).filter(|known| !known.ended) else {
            return false;
        };
        known.ended = true;
        self.ending.push_back(Ended {
            time_ns,
            pid,
            id: known.id,
            shard: known.shard,
        });
        true
    }

    /// Lets what ended a while ago be summarised, and what ended long ago be dropped.
    pub fn settle(&mut self, shards: &mut impl Settle) {
        if !self.ending.is_empty() {
            self.settle_until(self.now_ns.saturating_sub(GRACE_NS), shards);
        }
    }

    /// Lets what ended by then be summarised, for one who knows that everything about it has been told.
    pub fn settle_until(&mut self, end_ns: u64, shards: &mut impl Settle) {
        while let Some(&ended) = self.ending.front() {
            if ended.time_ns > end_ns && self.ending.len() <= GRACE_PROCESSES {
                break;
            }
            self.ending.pop_front();
            if let Some(known) = self.current.get_mut(&ended.pid)
                && known.id == ended.id
            {
                known.summarised = true;
            }
            let settling = (self.exited_sites).summarise(ended.id, ended.shard, &self.limits);
            shards.settle(ended.shard, settling);
            self.exited.push_back(ended);
        }
        while self.exited.len() > self.limits.exited_processes {
            let Some(oldest) = self.exited.pop_front() else {
                break;
            };
            self.coverage.processes_dropped += 1;
            self.forget(oldest, shards);
        }
    }

    /// The shard to wait for until no more than so many summaries have more sites than they may be able to keep.
    pub fn awaited(&self, undecided: usize) -> Option<usize> {
        let wait = self.exited_sites.undecided() > undecided;
        wait.then(|| self.exited_sites.awaited()).flatten()
    }

    /// Those that are summarised, oldest first: whoever takes them has to forget them.
    pub fn take_exited(&mut self) -> VecDeque<Ended> {
        std::mem::take(&mut self.exited)
    }

    /// Nothing is kept of one that ended.
    pub fn forget(&mut self, ended: Ended, shards: &mut impl Settle) {
        if (self.current.get(&ended.pid)).is_some_and(|known| known.id == ended.id) {
            self.current.remove(&ended.pid);
        }
        self.exited_sites.forget(ended.id);
        shards.settle(ended.shard, Settling::Forget(ended.id));
    }

    /// Summaries have so many sites: passes on which of them are to keep few, as far as that is known.
    pub fn trim(&mut self, summarised: impl Iterator<Item = Summarised>, shards: &mut impl Settle) {
        for told in summarised {
            self.exited_sites.tell(told);
        }
        while let Some((id, shard)) = self.exited_sites.next_to_trim(&self.limits) {
            shards.settle(shard, Settling::Trim(id));
        }
    }
}
