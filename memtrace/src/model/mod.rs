//! The model: what the events of a trace add up to.
//!
//! [`Model::apply`] takes one [`Event`] after the other and cannot fail: a free without an allocation,
//! a fault outside every mapping, an event of a process nobody announced are data, and are counted.
//! There is no I/O, no clock and no logging in here, so a recording gives the same numbers as the live
//! trace it was made of. Memory is bounded by [`Limits`] for what has ended and by what lives for the
//! rest; nothing is kept per event.
//!
//! A process is a pid and a start time. It lives in a [`process::Space`], an address space with its
//! heap: fork copies it, vfork shares it, exec makes a new one.
//!
//! What depends on the order of all events is decided by the [`Coordinator`]; what a process's own events do to it
//! is done by the [`Shard`] that has it. There may be several, so that several threads can do that; how many there
//! are changes nothing about what comes out.

mod address_space;
mod block_table;
mod blocks;
mod calls;
mod coordinator;
mod coverage;
mod document;
mod estimate;
mod exited_sites;
mod fault;
mod fault_site;
mod freed;
mod growth;
mod heap;
mod intervals;
mod lifecycle;
mod map;
mod orders;
mod pages;
mod process;
#[cfg(test)]
pub(crate) mod random_events;
mod reconcile;
mod region;
mod shard;
mod site;
mod site_rows;
mod stacks;
mod tally;
mod timeline;
mod totals;
mod trend;

use crate::{
    event::{Event, EventKind, Pid},
    report::document::Process as Row,
};

pub use coordinator::Coordinator;
pub use document::Place;
pub use exited_sites::MAX_UNDECIDED;
pub use fault::latency_of;
pub use lifecycle::Moved;
pub use orders::{Order, Settle, Settling, Shards, Summarised};
pub use process::ProcessId;
pub use shard::Shard;
pub use trend::Thresholds;

use self::process::{HeapSeen, Process};

/// Bounds on what the model keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Exited processes with a row of their own; beyond it the oldest are dropped and counted.
    pub exited_processes: usize,
    /// Points in the timeline of a running process.
    pub timeline_points: usize,
    /// Points in the timeline of an exited one.
    pub exited_timeline_points: usize,
    /// Allocation sites kept for an exited process; the others are kept as a sum.
    pub exited_sites: usize,
    /// Allocation sites kept for all exited processes together; beyond it a tenth of `exited_sites` each.
    pub all_exited_sites: usize,
    /// Past what a site that grows is called a leak candidate.
    pub growth: Thresholds,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            exited_processes: 10_000,
            timeline_points: 512,
            exited_timeline_points: 64,
            exited_sites: 5000,
            all_exited_sites: 250_000,
            growth: Thresholds::default(),
        }
    }
}

impl Limits {
    /// Sites kept for an exited process where there are too many together.
    fn few_exited_sites(&self) -> usize {
        self.exited_sites / 10
    }
}

/// One line about a process, for a live view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// Thread-group id.
    pub pid: Pid,
    /// When it started, `CLOCK_MONOTONIC` in nanoseconds.
    pub start_ns: u64,
    /// Whether it still runs.
    pub running: bool,
    /// Its program, by a number that each exec changes.
    pub image: u32,
    /// Name of the main thread.
    pub comm: String,
    /// cgroup path.
    pub cgroup: String,
    /// Bytes mapped.
    pub reserved_bytes: u64,
    /// Bytes resident.
    pub committed_bytes: u64,
    /// Bytes in live blocks; `None` where the heap is not seen.
    pub heap_live_bytes: Option<u64>,
    /// Calls of the allocator that were seen; `None` likewise.
    pub heap_calls: Option<u64>,
    /// Minor faults so far.
    pub minor: u64,
    /// Major faults so far.
    pub major: u64,
    /// Time spent in minor faults so far, in nanoseconds.
    pub minor_ns: u64,
    /// Time spent in major faults so far.
    pub major_ns: u64,
    /// Faults so far by [`memtrace_common::histogram::bucket`], as far as the kernel side told; empty otherwise.
    pub fault_buckets: Vec<u64>,
}

/// Everything known about the traced processes.
#[derive(Debug)]
pub struct Model {
    coordinator: Coordinator,
    /// None while they are [taken](Model::take_shards).
    shards: Vec<Shard>,
    /// Single faults are not told.
    sampled: bool,
}

/// Shards at hand, and the event that they are given.
struct Given<'a> {
    shards: &'a mut [Shard],
    event: &'a Event,
}

impl Settle for Given<'_> {
    fn settle(&mut self, shard: usize, settling: Settling) {
        self.shards[shard].settle(settling);
    }
}

impl Shards for Given<'_> {
    fn order(&mut self, shard: usize, order: Order) {
        self.shards[shard].execute(order, self.event);
    }

    fn hand_over(&mut self, id: ProcessId, from: usize, to: usize) {
        if let Some(moved) = self.shards[from].give(id) {
            self.shards[to].take(moved);
        }
    }
}

impl Model {
    /// A model that has seen nothing.
    pub fn new(limits: Limits) -> Self {
        Self::in_shards(limits, 1)
    }

    /// A model that has seen nothing, whose processes are in so many shards.
    pub fn in_shards(limits: Limits, shards: usize) -> Self {
        Self::with(limits, shards, false)
    }

    /// A model of a trace that tells no single faults: the kernel's counters, read again and again, are what is
    /// resident.
    pub fn sampled(limits: Limits) -> Self {
        Self::with(limits, 1, true)
    }

    fn with(limits: Limits, shards: usize, sampled: bool) -> Self {
        let shards = shards.max(1);
        Self {
            coordinator: Coordinator::new(limits, shards),
            shards: (0..shards).map(|_| Shard::new(limits, sampled)).collect(),
            sampled,
        }
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: &Event) {
        if let EventKind::Stack { .. } = event.kind
            && self.has_no_room_for_stacks_of(event.pid)
        {
            self.coordinator.skip_stack(event.time_ns);
            return self.settle();
        }
        let shards = &mut self.shards;
        self.coordinator.plan(event, &mut Given { shards, event });
        if self.coordinator.exited_sites.is_behind() {
            self.trim();
        }
    }

    /// Time passes without events: what ended a while ago is settled.
    pub fn advance(&mut self, now_ns: u64) {
        self.coordinator.advance(now_ns);
        self.settle();
    }

    fn settle(&mut self) {
        self.coordinator.settle(&mut self.shards);
        self.trim();
    }

    /// Keeps few sites of those that ended, where there are too many together.
    fn trim(&mut self) {
        let mut told = Vec::new();
        for shard in &mut self.shards {
            told.extend(shard.take_summarised());
        }
        self.coordinator.trim(told.into_iter(), &mut self.shards);
    }

    /// The processes that ended by `end_ns` and were not taken yet, oldest first: whoever takes them keeps them, and
    /// the model forgets them. Of those nothing more must be told.
    pub fn take_exited(&mut self, end_ns: u64) -> Vec<Row> {
        self.coordinator.settle_until(end_ns, &mut self.shards);
        self.trim();
        let mut rows = Vec::new();
        for ended in self.coordinator.take_exited() {
            let shard = &self.shards[ended.shard];
            let process = shard.processes.get(&ended.id);
            rows.extend(process.and_then(|process| self.full_row(shard, process)));
            self.coordinator.forget(ended, &mut self.shards);
        }
        self.trim();
        rows
    }

    /// The shards, for others to give them what the [coordinator](Model::coordinator) says. Until they are
    /// [back](Model::bring_back) the model knows who there is, and nothing else.
    pub fn take_shards(&mut self) -> Vec<Shard> {
        std::mem::take(&mut self.shards)
    }

    /// The shards are back, in their order, and the sites of what they [summarised](Shard::take_summarised).
    pub fn bring_back(&mut self, shards: Vec<Shard>, summarised: impl Iterator<Item = Summarised>) {
        self.shards = shards;
        self.coordinator.trim(summarised, &mut self.shards);
    }

    /// How many shards are here.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// What decides while the shards are taken.
    pub fn coordinator(&mut self) -> &mut Coordinator {
        &mut self.coordinator
    }

    /// The time of the latest event, or of the end of the trace, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.coordinator.now_ns()
    }

    /// All processes with their shards, in order of their first event.
    fn processes(&self) -> Vec<(ProcessId, &Shard, &Process)> {
        debug_assert!(!self.shards.is_empty(), "the shards are taken");
        let of_shard = |shard| Shard::numbered(shard);
        let mut all: Vec<_> = self.shards.iter().flat_map(of_shard).collect();
        all.sort_by_key(|(id, ..)| *id);
        all
    }

    /// The processes that have not ended, in order of their first event.
    pub fn running(&self) -> Vec<Pid> {
        let all = self.processes().into_iter();
        all.filter(|(_, _, process)| process.end_ns.is_none())
            .map(|(_, _, process)| process.pid)
            .collect()
    }

    /// The cgroup of the process that has this pid now, or had it last.
    pub fn cgroup(&self, pid: Pid) -> Option<&str> {
        self.latest(pid).map(|(_, process)| &*process.cgroup)
    }

    /// When the process that has this pid now, or had it last, started.
    pub fn start_of(&self, pid: Pid) -> Option<u64> {
        self.latest(pid).map(|(_, process)| process.start_ns)
    }

    /// Parent, program and arguments of the process that has this pid now.
    pub fn identity(&self, pid: Pid) -> Option<(Pid, String, Vec<String>)> {
        let (_, process) = self.latest(pid)?;
        Some((
            process.parent,
            process.exe.to_string(),
            process.command_line.clone(),
        ))
    }

    fn latest(&self, pid: Pid) -> Option<(&Shard, &Process)> {
        let known = self.coordinator.latest(pid)?;
        let shard = self.shards.get(known.shard)?;
        Some((shard, shard.processes.get(&known.id)?))
    }

    /// Events known to be lost so far.
    pub fn lost(&self) -> u64 {
        self.coordinator.coverage.lost()
    }

    /// A line per process, in order of their first event.
    pub fn overview(&self) -> Vec<Overview> {
        let all = self.processes().into_iter();
        all.filter_map(|(_, shard, process)| {
            let point = match &process.summary {
                Some(summary) => summary.row.timeline.last().copied(),
                None => (shard.spaces.get(&process.space))
                    .map(|space| process.point(self.now_ns(), space)),
            }?;
            let (minor_ns, major_ns) = process.faults.spent_ns();
            Some(Overview {
                pid: process.pid,
                start_ns: process.start_ns,
                running: process.end_ns.is_none(),
                image: process.image,
                comm: process.comm.to_string(),
                cgroup: process.cgroup.to_string(),
                reserved_bytes: point.reserved_bytes,
                committed_bytes: point.committed_bytes,
                heap_live_bytes: point.heap_live_bytes,
                heap_calls: shard.heap_calls(process),
                minor: point.minor,
                major: point.major,
                minor_ns,
                major_ns,
                fault_buckets: process.faults.buckets(),
            })
        })
        .collect()
    }

    /// Whether the stacks of a process are those of a sample of growth alone, and there are too many.
    fn has_no_room_for_stacks_of(&self, pid: Pid) -> bool {
        let seen = self.latest(pid).map(|(_, process)| &process.heap_seen);
        self.sampled
            && self.coordinator.stacks.is_full()
            && !matches!(seen, Some(HeapSeen::Yes | HeapSeen::Late))
    }

    /// Whether the model still has something to say of the last process with this pid.
    pub fn knows(&self, pid: Pid) -> bool {
        self.coordinator.latest(pid).is_some()
    }
}

#[cfg(test)]
mod tests;
