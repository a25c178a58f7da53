//! From the model to the report.

use std::collections::BTreeMap;

use memtrace_common::frame::named_by;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    event::Pid,
    report::document::{
        AddressSpace, Coverage, Document, Frame, Growth, Heap, KindBytes, Process as Row, Region,
        SCHEMA, Sampling,
    },
};

use super::{
    Model, address_space,
    growth::GrowthUses,
    heap::Counts,
    process::{HeapSeen, Process, ProcessId, Space, modules},
    region::Kind,
    shard::Shard,
    site::SiteUses,
    site_rows::{self, Names},
};

/// Where a row stands in a report: the command is first, the others come by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    after_command: bool,
    start_ns: u64,
    id: ProcessId,
}

impl Model {
    /// The whole report, as of now or of the end of the trace.
    pub fn document(&self) -> Document {
        let rows = (0..self.shards.len()).flat_map(|shard| self.rows_of(shard));
        self.document_of_rows(rows.collect())
    }

    /// The rows of the processes that one shard has, for [`Model::document_of_rows`].
    pub fn rows_of(&self, shard: usize) -> Vec<(Place, Row)> {
        let Some(shard) = self.shards.get(shard) else {
            return Vec::new();
        };
        let command = self.coordinator.command;
        let row = |(&id, process): (&ProcessId, &Process)| {
            let place = Place {
                after_command: command != Some(id),
                start_ns: process.start_ns,
                id,
            };
            Some((place, self.full_row(shard, process)?))
        };
        shard.processes.iter().filter_map(row).collect()
    }

    /// The whole report, of the rows of all shards.
    pub fn document_of_rows(&self, mut rows: Vec<(Place, Row)>) -> Document {
        rows.sort_by_key(|(place, _)| *place);
        self.document_with(rows.into_iter().map(|(_, row)| row).collect())
    }

    /// The report of some processes alone, as of now; those that are not known are left out.
    pub fn document_of(&self, pids: &[Pid]) -> Document {
        let rows = pids.iter().filter_map(|pid| {
            let (shard, process) = self.latest(*pid)?;
            self.full_row(shard, process)
        });
        self.document_with(rows.collect())
    }

    fn document_with(&self, processes: Vec<Row>) -> Document {
        let machine = &self.coordinator.machine;
        Document {
            schema: SCHEMA,
            memtrace: machine.memtrace.to_string(),
            kernel: machine.kernel.to_string(),
            arch: machine.arch.to_string(),
            coverage: self.coverage_now(),
            processes,
        }
    }

    /// The latest process with each pid, in order of the pids.
    pub fn pids(&self) -> Vec<Pid> {
        let mut pids: Vec<Pid> = self.coordinator.pids().collect();
        pids.sort_unstable();
        pids
    }

    /// The frames in the sites of a process that no [`crate::event::Symbol`] has named yet, each once, as
    /// [`named_by`] has them.
    pub fn unnamed(&self, pid: Pid) -> Vec<u64> {
        let mut unnamed = Vec::new();
        let Some((shard, process)) = self.latest(pid) else {
            return unnamed;
        };
        let stacks = &self.coordinator.stacks;
        let (uses, faults, growth) = match (&process.summary, shard.spaces.get(&process.space)) {
            (Some(summary), _) => (
                summary.sites.clone(),
                summary.fault_sites.clone(),
                summary.growth.clone(),
            ),
            (None, Some(space)) => (
                SiteUses::of(&space.heap),
                process.fault_sites.sorted(),
                shard.growth_of(process),
            ),
            (None, None) => Default::default(),
        };
        let known = shard.images.get(&process.image).map(|image| &image.symbols);
        let mut seen: FxHashSet<u64> = known
            .map(|known| known.keys().copied().collect())
            .unwrap_or_default();
        let mut add = |frames: &[u64]| {
            let names = frames.iter().map(|&word| named_by(word));
            unnamed.extend(names.filter(|name| seen.insert(*name)));
        };
        for one in &uses.sites {
            add(&stacks.frames(one.site));
        }
        for one in &faults {
            add(&one.place.frames(stacks));
        }
        for site in growth.iter().flat_map(GrowthUses::stacks) {
            add(&stacks.frames(site));
        }
        unnamed.sort_unstable();
        unnamed
    }

    /// What was seen so far, and what was not.
    fn coverage_now(&self) -> Coverage {
        let mut coverage = self.coordinator.coverage.clone();
        let (mut unmatched, mut implied) = (0u64, 0u64);
        for shard in &self.shards {
            if shard.after_exit > 0 {
                coverage.count("event_after_exit", shard.after_exit, false);
            }
            let (of_shard, implied_of_shard) = shard.unmatched();
            unmatched = unmatched.saturating_add(of_shard);
            implied = implied.saturating_add(implied_of_shard);
        }
        coverage.document(unmatched, implied)
    }

    /// Whether the growth of a process that runs was ever sampled.
    pub fn has_growth(&self, pid: Pid) -> bool {
        let running = self
            .latest(pid)
            .filter(|(_, process)| process.end_ns.is_none());
        let space = running.and_then(|(shard, process)| shard.spaces.get(&process.space));
        space.is_some_and(|space| space.memory.growth.is_sampled())
    }

    /// How the memory of a process that runs grows, and the frames that the stacks are made of.
    pub fn growth(&self, pid: Pid) -> Option<(Growth, Vec<Frame>)> {
        debug_assert!(!self.shards.is_empty(), "the shards are taken");
        let (shard, process) = self.latest(pid)?;
        let uses = shard.growth_of(process)?;
        let space = shard.spaces.get(&process.space)?;
        let none = FxHashMap::default();
        let image = shard.images.get(&process.image);
        let names = Names {
            symbols: image.map_or(&none, |image| &image.symbols),
            modules: &modules(&process.memory(space)),
        };
        Some(site_rows::growth(
            &uses,
            &self.coordinator.stacks,
            &names,
            self.now_ns(),
        ))
    }

    pub(super) fn full_row(&self, shard: &Shard, process: &Process) -> Option<Row> {
        let none = FxHashMap::default();
        let symbols = shard
            .images
            .get(&process.image)
            .map_or(&none, |image| &image.symbols);
        let now = process.end_ns.unwrap_or(self.now_ns());
        if let Some(summary) = &process.summary {
            let mut row = summary.row.clone();
            row.heap = summary
                .counts
                .map(|counts| heap(&counts, summary.complete && !shard.lossy));
            let names = Names {
                symbols,
                modules: &summary.modules,
            };
            let uses = (&self.coordinator.stacks, &summary.sites);
            let touched = (&summary.fault_sites[..], summary.growth.as_ref());
            site_rows::fill(&mut row, uses, touched, &names, now);
            return Some(row);
        }
        let space = shard.spaces.get(&process.space)?;
        let mut row = shard.row(process, space, self.now_ns());
        let names = Names {
            symbols,
            modules: &modules(&process.memory(space)),
        };
        let uses = process.heap_of(space).map(SiteUses::of).unwrap_or_default();
        let faults = process.fault_sites.sorted();
        let growth = shard.growth_of(process);
        let touched = (&faults[..], growth.as_ref());
        site_rows::fill(
            &mut row,
            (&self.coordinator.stacks, &uses),
            touched,
            &names,
            now,
        );
        Some(row)
    }
}

impl Shard {
    /// Releases of blocks that were not known, and blocks whose address was handed out again without one: of the heaps
    /// that are there or summarised, and of those that are gone.
    fn unmatched(&self) -> (u64, u64) {
        let spaces = self.spaces.values().map(|space| {
            let trusted = space.complete && !space.lossy && !self.lossy;
            (space.heap.counts(), trusted)
        });
        let summaries = self.processes.values().filter_map(|process| {
            let summary = process.summary.as_ref()?;
            Some((summary.counts?, summary.complete && !self.lossy))
        });
        let gone = (self.unmatched_frees, self.implied_frees);
        spaces
            .chain(summaries)
            .fold(gone, |(unmatched, implied), (counts, trusted)| {
                (
                    unmatched.saturating_add(counts.unmatched(trusted)),
                    implied.saturating_add(counts.implied_frees),
                )
            })
    }

    /// How the memory of a process grows; `None` where no sample of it was taken, or the memory is another's.
    pub(super) fn growth_of(&self, process: &Process) -> Option<GrowthUses> {
        if process.guest_of.is_some() {
            return None;
        }
        let space = self.spaces.get(&process.space)?;
        space.memory.growth.uses(&self.limits.growth)
    }

    /// The row of a process, without its sites.
    pub(super) fn row(&self, process: &Process, space: &Space, now_ns: u64) -> Row {
        let memory = process.memory(space);
        let (heap, heap_reason) = match process.heap_of(space) {
            Ok(seen) => {
                let trusted = space.complete && !space.lossy && !self.lossy;
                let partial = match process.heap_seen {
                    HeapSeen::Late => "calls before the probes were placed are not counted",
                    _ => "blocks of before tracing began are not known",
                };
                (
                    Some(heap(&seen.counts(), trusted)),
                    (!space.complete).then(|| partial.to_owned()),
                )
            }
            Err(reason) => (None, Some(reason)),
        };
        let end = process.end_ns.unwrap_or(now_ns);
        Row {
            pid: process.pid,
            parent_pid: process.parent,
            start_time_ns: process.start_ns,
            end_time_ns: process.end_ns,
            comm: process.comm.to_string(),
            exe: process.exe.to_string(),
            command_line: process.command_line.clone(),
            cgroup: process.cgroup.to_string(),
            exit: process.exit,
            heap,
            heap_reason,
            address_space: mappings(&memory),
            faults: process.faults.document(),
            leaks: Vec::new(),
            sites: Vec::new(),
            other_sites: None,
            fault_sites: Vec::new(),
            growth: None,
            frames: Vec::new(),
            regions: regions(&memory),
            timeline: process
                .timeline
                .with_last(process.point(end.max(process.start_ns), space)),
        }
    }
}

fn heap(counts: &Counts, trusted: bool) -> Heap {
    let mistakes = |count| if trusted { count } else { 0 };
    let (invalid, double) = (
        mistakes(counts.unknown_frees),
        mistakes(counts.repeated_frees),
    );
    Heap {
        allocations: counts.allocations,
        frees: counts.frees.saturating_sub(invalid.saturating_add(double)),
        reallocations: counts.reallocations,
        failed: counts.failed,
        bytes_allocated: counts.bytes_allocated,
        live_blocks: counts.live_blocks,
        live_bytes: counts.live_bytes,
        peak_live_bytes: counts.peak_live_bytes,
        invalid_frees: counts.sampled.is_none().then_some(invalid),
        double_frees: counts.sampled.is_none().then_some(double),
        sampling: counts.sampled.map(|sampled| Sampling {
            mean_bytes: sampled.mean_bytes,
            samples: sampled.blocks,
            allocations_error: sampled.allocated.blocks,
            bytes_allocated_error: sampled.allocated.bytes,
            live_blocks_error: sampled.live.blocks,
            live_bytes_error: sampled.live.bytes,
        }),
    }
}

fn mappings(memory: &address_space::AddressSpace) -> AddressSpace {
    let (reserved, (committed, source)) = (memory.reserved(), memory.committed());
    let sums = memory.by_kind();
    let by_kind: BTreeMap<String, KindBytes> = Kind::ALL
        .iter()
        .map(|kind| {
            let bytes = KindBytes {
                reserved_bytes: sums.reserved[kind.index()],
                committed_bytes: sums.committed[kind.index()],
            };
            (kind.name().to_owned(), bytes)
        })
        .collect();
    AddressSpace {
        reserved_bytes: reserved,
        committed_bytes: committed,
        lazy_bytes: reserved.saturating_sub(committed),
        peak_reserved_bytes: memory.peak_reserved(),
        peak_committed_bytes: memory.peak_committed(),
        swapped_bytes: memory.swapped(),
        by_kind,
        committed_source: source.name().to_owned(),
        failed_calls: memory
            .failed_calls()
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect(),
    }
}

/// Mappings as /proc/PID/maps shows them: neighbours that differ in nothing are one.
fn regions(memory: &address_space::AddressSpace) -> Vec<Region> {
    let mut merged: Vec<(u64, super::region::Region)> = Vec::new();
    for (start, region) in memory.regions() {
        match merged.last_mut() {
            Some((first, last)) if last.end == start && last.continues_into(*first, region) => {
                last.end = region.end;
                last.faults = last.faults.saturating_add(region.faults);
            }
            _ => merged.push((start, region.clone())),
        }
    }
    merged
        .into_iter()
        .map(|(start, region)| Region {
            start,
            end: region.end,
            permissions: region.permissions(),
            kind: region.kind.name().to_owned(),
            path: region.path().map(str::to_owned),
            reserved_bytes: region.end - start,
            committed_bytes: memory.resident_bytes(start, &region),
            faults: region.faults.into(),
        })
        .collect()
}
