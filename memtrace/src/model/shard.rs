//! Whole processes, and what events do to them.

use std::collections::BTreeMap;

use memtrace_common::frame::interrupted;
use rustc_hash::FxHashMap;

use crate::{
    event::{Event, EventKind, Symbol},
    report::document::Latency,
};

use super::{
    Limits,
    blocks::Block,
    fault::FaultStats,
    heap::Heap,
    orders::{Order, Settling, Summarised, Toucher},
    process::{HeapSeen, Image, ImageId, Process, ProcessId, Space, SpaceId, replay},
};

/// Some of the processes, whole: with their memory, their heaps and their names. It does what the coordinator tells it.
#[derive(Debug, Default)]
pub struct Shard {
    pub(super) limits: Limits,
    /// Single faults are not told.
    pub(super) sampled: bool,
    /// Of the spaces and images in here.
    pub(super) last_id: u32,
    /// Ordered by age, since numbers rise.
    pub(super) processes: BTreeMap<ProcessId, Process>,
    pub(super) spaces: FxHashMap<SpaceId, Space>,
    pub(super) images: FxHashMap<ImageId, Image>,
    /// The machine gives anonymous memory huge pages unasked.
    pub(super) huge_pages: bool,
    /// Mean distance between sample points in bytes, where blocks are sampled.
    pub(super) sample_bytes: Option<u64>,
    /// Events were lost that may have been anyone's.
    pub(super) lossy: bool,
    /// Events that came when a process had long ended.
    pub(super) after_exit: u64,
    /// Unmatched frees of heaps that are gone (exec, dropped processes).
    pub(super) unmatched_frees: u64,
    /// Blocks of such heaps whose address was handed out again without a free.
    pub(super) implied_frees: u64,
    /// Sites of those that were summarised, not yet told.
    summarised: Vec<Summarised>,
}

impl Shard {
    /// One that has nobody.
    pub fn new(limits: Limits, sampled: bool) -> Self {
        Self {
            limits,
            sampled,
            ..Self::default()
        }
    }

    /// Does what is to be done at an event.
    pub fn execute(&mut self, order: Order, event: &Event) {
        match (order, &event.kind) {
            (Order::Apply { id, site }, _) => self.apply_to_process(id, site, event),
            (Order::Touch { id, by }, _) => self.touch(id, by.as_deref(), event),
            (Order::Begin { id }, _) => {
                self.begin(id, event.pid, 0, event.time_ns, Space::default());
            }
            (Order::Start { id, fresh }, EventKind::Started(started)) => {
                self.start(id, fresh, event, started);
            }
            (
                Order::Fork { id, child: number },
                EventKind::Fork {
                    child,
                    shares_memory,
                    comm,
                },
            ) => {
                self.fork((id, number), event, (*child, *shares_memory), comm);
            }
            (Order::Exec { id }, EventKind::Exec { path, comm, .. }) => {
                self.exec(id, event, path, comm);
            }
            (Order::Exit { id }, EventKind::Exit { code, signal }) => {
                self.exit(id, event, *code, *signal);
            }
            (Order::End { id }, _) => self.end(id, event.time_ns, None),
            (Order::Lossy { id }, _) => self.lose(id),
            (Order::AllLossy, _) => self.lossy = true,
            (Order::Machine, EventKind::Machine(machine)) => self.huge_pages = machine.huge_pages,
            (Order::Sampling, EventKind::Sampling { bytes }) => self.sample_bytes = Some(*bytes),
            _ => {}
        }
    }

    /// Does what is to be done with one that has ended.
    pub fn settle(&mut self, settling: Settling) {
        match settling {
            Settling::Summarise(id) => self.tell_summary(id, self.limits.exited_sites),
            Settling::SummariseFew(id) => self.tell_summary(id, self.limits.few_exited_sites()),
            Settling::Trim(id) => self.trim(id),
            Settling::Forget(id) => self.forget(id),
        }
    }

    fn tell_summary(&mut self, id: ProcessId, limit: usize) {
        let sites = self.summarise(id, limit);
        self.summarised.push(Summarised { id, sites });
    }

    /// Its processes, by their numbers.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (ProcessId, &Self, &Process)> {
        let all = self.processes.iter();
        all.map(move |(&id, process)| (id, self, process))
    }

    pub(super) fn heap_calls(&self, process: &Process) -> Option<u64> {
        let heap = process.heap_of(self.spaces.get(&process.space)?).ok()?;
        let counts = heap.counts();
        let calls = counts.allocations.saturating_add(counts.reallocations);
        Some(calls.saturating_add(counts.frees))
    }

    /// How many sites those have that were summarised since this was asked last.
    pub fn take_summarised(&mut self) -> impl Iterator<Item = Summarised> + '_ {
        self.summarised.drain(..)
    }

    /// That concerns the memory that it lives in, or did, where others still do; and what is kept of it.
    fn lose(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        if let Some(space) = self.spaces.get_mut(&process.space) {
            space.lossy = true;
        }
        if let Some(summary) = &mut process.summary {
            summary.complete = false;
        }
    }

    fn apply_to_process(&mut self, id: ProcessId, site: u32, event: &Event) {
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
        space.note_sampling(self.sample_bytes);
        match &event.kind {
            EventKind::Alloc { address, size, .. } => {
                let block = block(event, *size, site);
                space.heap.allocate(*address, block);
            }
            EventKind::Realloc {
                entered_ns,
                old_address,
                new_address,
                size,
                ..
            } => {
                let block = block(event, *size, site);
                space
                    .heap
                    .reallocate(*entered_ns, *old_address, *new_address, block);
            }
            EventKind::Free { address } => space.heap.free(event.time_ns, *address),
            EventKind::AllocFailed { .. } => space.heap.fail(),
            EventKind::Symbol(symbol) => self.name_address(id, symbol),
            _ => {
                apply_to_memory(process, space, site, event);
                if let EventKind::Memory(_) = event.kind {
                    space.memory.growth.tick(event.time_ns, &self.limits.growth);
                }
            }
        }
        self.sample(id, event.time_ns);
    }

    /// A page of the sample was touched.
    fn touch(&mut self, id: ProcessId, by: Option<&Toucher>, event: &Event) {
        self.release_pending(id, event);
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        if process.summary.is_some() {
            return self.late(id, event);
        }
        if let EventKind::Touch {
            address, faults, ..
        } = &event.kind
            && let Some(space) = self.spaces.get_mut(&process.space)
        {
            space.note_sampling(self.sample_bytes);
            // Of a parent and its child, whoever writes first takes a copy of a page that both have.
            let image = self.images.get(&process.image);
            let copies = image.is_some_and(|image| image.users > 1);
            if !copies || space.memory.is_younger_than_fork(*address) {
                let site = by.map(|by| space.memory.growth_site(by.site, &by.frames));
                space.memory.touch(event.time_ns, *address, site, *faults);
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
    pub(super) fn release_pending(&mut self, id: ProcessId, event: &Event) {
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
    pub(super) fn sample(&mut self, id: ProcessId, time_ns: u64) {
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
            _ => self.after_exit += 1,
        }
    }
}

fn block(event: &Event, size: u64, site: u32) -> Block {
    Block {
        size,
        time_ns: event.time_ns,
        site,
    }
}

/// Everything but heap events and symbols.
fn apply_to_memory(process: &mut Process, space: &mut Space, site: u32, event: &Event) {
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
            let site = (*stack != 0).then_some(site);
            let latency_ns = latency_ns.unwrap_or(0);
            process
                .fault_sites
                .record(interrupted(*ip), latency_ns, access.major, site);
        }
        EventKind::TouchSampling { on, kept } => {
            if !kept {
                memory.growth.forget();
            }
            memory.growth.switch(time_ns, *on);
        }
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
