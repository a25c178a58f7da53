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

mod address_space;
mod block_table;
mod blocks;
mod calls;
mod coverage;
mod document;
mod estimate;
mod fault;
mod fault_site;
mod freed;
mod growth;
mod heap;
mod intervals;
mod lifecycle;
mod map;
mod pages;
mod process;
mod reconcile;
mod region;
mod site;
mod site_rows;
mod stacks;
mod tally;
mod timeline;
mod totals;
mod trend;

use std::collections::{BTreeMap, VecDeque};

use memtrace_common::frame::interrupted;
use rustc_hash::FxHashMap;

use crate::{
    event::{Event, EventKind, Machine, Pid, StackId, Symbol},
    report::document::Latency,
};

pub use fault::latency_of;
pub use trend::Thresholds;

use self::{
    blocks::Block,
    coverage::Coverage,
    fault::FaultStats,
    heap::Heap,
    process::{HeapSeen, Image, ImageId, Process, ProcessId, Space, SpaceId, replay},
    stacks::Stacks,
};

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
#[derive(Debug, Default)]
pub struct Model {
    limits: Limits,
    machine: Machine,
    now_ns: u64,
    ended: bool,
    next_id: u32,
    /// Ordered by age, since numbers rise.
    processes: BTreeMap<ProcessId, Process>,
    /// The latest process with a pid.
    current: FxHashMap<Pid, ProcessId>,
    /// The first process that tracing launched.
    command: Option<ProcessId>,
    spaces: FxHashMap<SpaceId, Space>,
    images: FxHashMap<ImageId, Image>,
    /// Ended, but late events may still tell about them; with the time of the end.
    ending: VecDeque<(u64, ProcessId)>,
    /// Summarised, oldest first.
    exited: VecDeque<ProcessId>,
    /// Allocation sites that the summaries hold.
    exited_sites: usize,
    stacks: Stacks,
    coverage: Coverage,
    /// Mean distance between sample points in bytes, where blocks are sampled.
    sample_bytes: Option<u64>,
    /// Events were lost that may have been anyone's.
    lossy: bool,
    /// Single faults are not told.
    sampled: bool,
}

impl Model {
    /// A model that has seen nothing.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// A model of a trace that tells no single faults: the kernel's counters, read again and again, are what is
    /// resident.
    pub fn sampled(limits: Limits) -> Self {
        Self {
            sampled: true,
            ..Self::new(limits)
        }
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: &Event) {
        self.coverage.events += 1;
        if !self.ended {
            self.now_ns = self.now_ns.max(event.time_ns);
        }
        match &event.kind {
            EventKind::Machine(machine) => self.machine = (**machine).clone(),
            EventKind::Sampling { bytes } => self.sample_bytes = Some(*bytes),
            EventKind::End => self.ended = true,
            EventKind::Probe {
                name,
                attached,
                reason,
            } => self.coverage.probe(name, *attached, reason.as_deref()),
            EventKind::Counted {
                reason,
                count,
                loss,
            } => self.count(event.pid, reason, *count, *loss),
            EventKind::Stack { id, frames, end } => {
                if self.stacks.is_full() && self.is_only_sampled(event.pid) {
                    self.coverage.count("stacks_not_kept", 1, false);
                } else {
                    self.stacks.define(*id, frames, *end);
                }
            }
            EventKind::Started(started) => self.start(event, started),
            EventKind::Fork {
                child,
                shares_memory,
                comm,
            } => self.fork(event, *child, *shares_memory, comm),
            EventKind::Exec { path, comm, .. } => self.exec(event, path, comm),
            EventKind::Exit { code, signal } => self.exit(event, *code, *signal),
            _ => self.apply_to_process(event),
        }
        self.settle();
    }

    /// Time passes without events: what ended a while ago is settled.
    pub fn advance(&mut self, now_ns: u64) {
        if !self.ended {
            self.now_ns = self.now_ns.max(now_ns);
        }
        self.settle();
    }

    /// The time of the latest event, or of the end of the trace, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// The processes that have not ended, in order of their first event.
    pub fn running(&self) -> Vec<Pid> {
        self.processes
            .values()
            .filter(|process| process.end_ns.is_none())
            .map(|process| process.pid)
            .collect()
    }

    /// The cgroup of the process that has this pid now, or had it last.
    pub fn cgroup(&self, pid: Pid) -> Option<&str> {
        self.latest(pid).map(|process| &*process.cgroup)
    }

    /// When the process that has this pid now, or had it last, started.
    pub fn start_of(&self, pid: Pid) -> Option<u64> {
        self.latest(pid).map(|process| process.start_ns)
    }

    /// Parent, program and arguments of the process that has this pid now.
    pub fn identity(&self, pid: Pid) -> Option<(Pid, String, Vec<String>)> {
        let process = self.latest(pid)?;
        Some((
            process.parent,
            process.exe.to_string(),
            process.command_line.clone(),
        ))
    }

    fn latest(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(self.current.get(&pid)?)
    }

    /// Events known to be lost so far.
    pub fn lost(&self) -> u64 {
        self.coverage.lost()
    }

    /// A line per process, in order of their first event.
    pub fn overview(&self) -> Vec<Overview> {
        self.processes
            .values()
            .filter_map(|process| {
                let point = match &process.summary {
                    Some(summary) => summary.row.timeline.last().copied(),
                    None => self
                        .spaces
                        .get(&process.space)
                        .map(|space| process.point(self.now_ns, space)),
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
                    heap_calls: self.heap_calls(process),
                    minor: point.minor,
                    major: point.major,
                    minor_ns,
                    major_ns,
                    fault_buckets: process.faults.buckets(),
                })
            })
            .collect()
    }

    /// Whether the stacks of a process are those of a sample of growth alone.
    fn is_only_sampled(&self, pid: Pid) -> bool {
        let seen = self.latest(pid).map(|process| &process.heap_seen);
        self.sampled && !matches!(seen, Some(HeapSeen::Yes | HeapSeen::Late))
    }

    fn heap_calls(&self, process: &Process) -> Option<u64> {
        let heap = process.heap_of(self.spaces.get(&process.space)?).ok()?;
        let counts = heap.counts();
        let calls = counts.allocations.saturating_add(counts.reallocations);
        Some(calls.saturating_add(counts.frees))
    }

    /// Whether the model still has something to say of the last process with this pid.
    pub fn knows(&self, pid: Pid) -> bool {
        self.current.contains_key(&pid)
    }

    fn count(&mut self, pid: Pid, reason: &str, count: u64, loss: bool) {
        self.coverage.count(reason, count, loss);
        if !loss || count == 0 {
            return;
        }
        let space = self
            .current
            .get(&pid)
            .and_then(|id| self.processes.get(id))
            .and_then(|process| self.spaces.get_mut(&process.space));
        match space {
            Some(space) => space.lossy = true,
            None => self.lossy = true,
        }
    }

    fn apply_to_process(&mut self, event: &Event) {
        if event.pid == 0 {
            return;
        }
        let id = self.process_id(event);
        self.release_pending(id, event);
        let (Some(process), spaces) = (self.processes.get_mut(&id), &mut self.spaces) else {
            return;
        };
        if process.summary.is_some() {
            self.late(id, event);
            return;
        }
        let Some(space) = spaces.get_mut(&process.space) else {
            return;
        };
        if let Some(mean_bytes) = self.sample_bytes {
            space.heap.sample(mean_bytes);
        }
        match &event.kind {
            EventKind::Alloc {
                address,
                size,
                stack,
                ..
            } => {
                let block = block(&mut self.stacks, event, *size, *stack);
                space.heap.allocate(*address, block);
            }
            EventKind::Realloc {
                entered_ns,
                old_address,
                new_address,
                size,
                stack,
            } => {
                let block = block(&mut self.stacks, event, *size, *stack);
                space
                    .heap
                    .reallocate(*entered_ns, *old_address, *new_address, block);
            }
            EventKind::Free { address } => space.heap.free(event.time_ns, *address),
            EventKind::AllocFailed { .. } => space.heap.fail(),
            EventKind::Symbol(symbol) => self.name_address(id, symbol),
            EventKind::Touch {
                address,
                stack,
                faults,
            } => {
                // Of a parent and its child, whoever writes first takes a copy of a page that both have.
                let image = self.images.get(&process.image);
                let copies = image.is_some_and(|image| image.users > 1);
                if !copies || space.memory.is_younger_than_fork(*address) {
                    let known = self.stacks.find_sampled(*stack);
                    let of_caller = |stack| {
                        let frames = self.stacks.frames(stack);
                        space.memory.growth_site(stack, &frames)
                    };
                    let site = known.map(of_caller);
                    space.memory.touch(event.time_ns, *address, site, *faults);
                }
            }
            _ => {
                apply_to_memory(process, space, &mut self.stacks, event);
                if let EventKind::Memory(_) = event.kind {
                    space.memory.growth.tick(event.time_ns, &self.limits.growth);
                }
            }
        }
        self.sample(id, event.time_ns);
    }

    fn name_address(&mut self, id: ProcessId, symbol: &Symbol) {
        if let Some(process) = self.processes.get(&id) {
            self.images
                .entry(process.image)
                .or_default()
                .symbols
                .insert(symbol.frame, symbol.clone());
        }
    }

    /// Applies what was held back if `event` shows that it belongs to the present program.
    fn release_pending(&mut self, id: ProcessId, event: &Event) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        if !process.releases(event) {
            return;
        }
        if let EventKind::Fault { access, .. } = &event.kind
            && access.kernel
        {
            return;
        }
        let pending = std::mem::take(&mut process.pending);
        // A guest that dies with an exec under way leaves nothing in its host's memory.
        if process.guest_of.is_some() && matches!(event.kind, EventKind::Exit { .. }) {
            return;
        }
        if let Some(space) = self.spaces.get_mut(&process.space) {
            for held in &pending {
                replay(&mut space.memory, held);
            }
        }
    }

    /// Keeps a point of the timeline, if it is time for one.
    fn sample(&mut self, id: ProcessId, time_ns: u64) {
        if let Some(process) = self.processes.get_mut(&id)
            && process.end_ns.is_none()
            && process.timeline.is_due(time_ns)
            && let Some(space) = self.spaces.get(&process.space)
        {
            let point = process.point(time_ns, space);
            process.timeline.record(point);
        }
    }

    /// What is still told about a process after it was summarised.
    fn late(&mut self, id: ProcessId, event: &Event) {
        if let EventKind::Symbol(symbol) = &event.kind {
            return self.name_address(id, symbol);
        }
        let Some(summary) = self
            .processes
            .get_mut(&id)
            .and_then(|process| process.summary.as_mut())
        else {
            return;
        };
        match &event.kind {
            EventKind::FaultTotals(totals) => {
                let mut stats = FaultStats::default();
                stats.set_totals(totals);
                let mut faults = stats.document();
                let old = std::mem::take(&mut summary.row.faults);
                let same =
                    |latency: &Option<Latency>| latency.as_ref().map(|latency| latency.count);
                if same(&old.latency_ns) == same(&faults.latency_ns) {
                    faults.latency_ns = old.latency_ns;
                }
                faults.by_kind = old.by_kind;
                summary.row.faults = faults;
            }
            EventKind::CommandLine { arguments, .. } => {
                summary.row.command_line = arguments.to_vec();
            }
            EventKind::Cgroup { path } => summary.row.cgroup = path.to_string(),
            _ => self.coverage.count("event_after_exit", 1, false),
        }
    }
}

fn block(stacks: &mut Stacks, event: &Event, size: u64, stack: StackId) -> Block {
    Block {
        size,
        time_ns: event.time_ns,
        site: stacks.intern(stack),
    }
}

/// Everything but heap events and symbols.
fn apply_to_memory(process: &mut Process, space: &mut Space, stacks: &mut Stacks, event: &Event) {
    let (time_ns, memory) = (event.time_ns, &mut space.memory);
    let held = process.hold(event);
    match &event.kind {
        EventKind::Fault {
            address,
            ip,
            latency_ns,
            stack,
            access,
        } => {
            let kind = if held {
                memory
                    .kind_at(*address)
                    .unwrap_or_else(|| process.kind_of_pending(*address))
            } else {
                memory.fault(time_ns, *address, *access)
            };
            process.faults.record(kind, *latency_ns, *access);
            let site = (*stack != 0).then(|| stacks.intern(*stack));
            let latency_ns = latency_ns.unwrap_or(0);
            process
                .fault_sites
                .record(interrupted(*ip), latency_ns, access.major, site);
        }
        EventKind::TouchSampling { on } => memory.growth.switch(time_ns, *on),
        EventKind::FaultTotals(totals) => process.faults.set_totals(totals),
        EventKind::Syscall(call) => memory.call(time_ns, call),
        EventKind::FileMapped(mapped) if !held => memory.announce(time_ns, mapped),
        EventKind::SmapsBegin => memory.smaps_begin(time_ns),
        EventKind::Smaps(region) => memory.smaps_region(region),
        EventKind::SmapsEnd => memory.smaps_end(),
        EventKind::Memory(totals) => {
            let mut totals = **totals;
            // Another process goes on in this address space.
            totals.last &= space.users == 1;
            memory.counters(&totals);
        }
        EventKind::CommandLine { arguments, .. } => process.command_line = arguments.to_vec(),
        EventKind::Cgroup { path } => process.cgroup.clone_from(path),
        EventKind::Rename { comm } if event.tid == process.pid => process.comm.clone_from(comm),
        EventKind::HeapProbes {
            unavailable, late, ..
        } => {
            let seen = match unavailable {
                None if *late => HeapSeen::Late,
                // An allocator beside one that was seen late does not make that one whole.
                None if process.heap_seen == HeapSeen::Late => HeapSeen::Late,
                None => HeapSeen::Yes,
                Some(reason) => HeapSeen::No(reason.clone()),
            };
            if seen == HeapSeen::Late {
                // Blocks of before are live that nobody saw; and those that were known may be gone.
                space.complete = false;
                if let HeapSeen::No(_) = process.heap_seen {
                    space.heap = Heap::default();
                }
            }
            process.heap_seen = seen;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
