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
    process::{HeapSeen, Process, Space, modules},
    region::Kind,
    site::SiteUses,
    site_rows::{self, Names},
};

impl Model {
    /// The whole report, as of now or of the end of the trace.
    pub fn document(&self) -> Document {
        let mut processes: Vec<_> = self.processes.iter().collect();
        processes.sort_by_key(|(id, process)| (self.command != Some(**id), process.start_ns, **id));
        let rows = processes.into_iter();
        self.document_with(
            rows.filter_map(|(_, process)| self.full_row(process))
                .collect(),
        )
    }

    /// The report of some processes alone, as of now; those that are not known are left out.
    pub fn document_of(&self, pids: &[Pid]) -> Document {
        let rows = pids.iter().filter_map(|pid| {
            let process = self.processes.get(self.current.get(pid)?)?;
            self.full_row(process)
        });
        self.document_with(rows.collect())
    }

    fn document_with(&self, processes: Vec<Row>) -> Document {
        Document {
            schema: SCHEMA,
            memtrace: self.machine.memtrace.to_string(),
            kernel: self.machine.kernel.to_string(),
            arch: self.machine.arch.to_string(),
            coverage: self.coverage_now(),
            processes,
        }
    }

    /// The latest process with each pid, in order of the pids.
    pub fn pids(&self) -> Vec<Pid> {
        let mut pids: Vec<Pid> = self.current.keys().copied().collect();
        pids.sort_unstable();
        pids
    }

    /// The frames in the sites of a process that no [`crate::event::Symbol`] has named yet, each once, as
    /// [`named_by`] has them.
    pub fn unnamed(&self, pid: Pid) -> Vec<u64> {
        let mut unnamed = Vec::new();
        let Some(process) = self.current.get(&pid).and_then(|id| self.processes.get(id)) else {
            return unnamed;
        };
        let (uses, faults, growth) = match (&process.summary, self.spaces.get(&process.space)) {
            (Some(summary), _) => (
                summary.sites.clone(),
                summary.fault_sites.clone(),
                summary.growth.clone(),
            ),
            (None, Some(space)) => (
                SiteUses::of(&space.heap),
                process.fault_sites.sorted(),
                self.growth_of(process),
            ),
            (None, None) => Default::default(),
        };
        let known = self.images.get(&process.image).map(|image| &image.symbols);
        let mut seen: FxHashSet<u64> = known
            .map(|known| known.keys().copied().collect())
            .unwrap_or_default();
        let mut add = |frames: &[u64]| {
            let names = frames.iter().map(|&word| named_by(word));
            unnamed.extend(names.filter(|name| seen.insert(*name)));
        };
        for one in &uses.sites {
            add(&self.stacks.frames(one.site));
        }
        for one in &faults {
            add(&one.place.frames(&self.stacks));
        }
        for site in growth.iter().flat_map(GrowthUses::stacks) {
            add(&self.stacks.frames(site));
        }
        unnamed.sort_unstable();
        unnamed
    }

    /// What was seen so far, and what was not.
    fn coverage_now(&self) -> Coverage {
        let spaces = self.spaces.values().map(|space| {
            let trusted = space.complete && !space.lossy && !self.lossy;
            (space.heap.counts(), trusted)
        });
        let summaries = self.processes.values().filter_map(|process| {
            let summary = process.summary.as_ref()?;
            Some((summary.counts?, summary.complete && !self.lossy))
        });
        let (unmatched, implied) = spaces.chain(summaries).fold(
            (0u64, 0u64),
            |(unmatched, implied), (counts, trusted)| {
                (
                    unmatched.saturating_add(counts.unmatched(trusted)),
                    implied.saturating_add(counts.implied_frees),
                )
            },
        );
        self.coverage.document(unmatched, implied)
    }

    /// Whether the growth of a process that runs was ever sampled.
    pub fn has_growth(&self, pid: Pid) -> bool {
        let process = self.latest(pid).filter(|process| process.end_ns.is_none());
        let space = process.and_then(|process| self.spaces.get(&process.space));
        space.is_some_and(|space| space.memory.growth.is_sampled())
    }

    /// How the memory of a process that runs grows, and the frames that the stacks are made of.
    pub fn growth(&self, pid: Pid) -> Option<(Growth, Vec<Frame>)> {
        let process = self.latest(pid)?;
        let uses = self.growth_of(process)?;
        let space = self.spaces.get(&process.space)?;
        let none = FxHashMap::default();
        let image = self.images.get(&process.image);
        let names = Names {
            symbols: image.map_or(&none, |image| &image.symbols),
            modules: &modules(&process.memory(space)),
        };
        Some(site_rows::growth(&uses, &self.stacks, &names, self.now_ns))
    }

    /// How the memory of a process grows; `None` where no sample of it was taken, or the memory is another's.
    pub(super) fn growth_of(&self, process: &Process) -> Option<GrowthUses> {
        if process.guest_of.is_some() {
            return None;
        }
        let space = self.spaces.get(&process.space)?;
        space.memory.growth.uses(&self.limits.growth)
    }

    pub(super) fn full_row(&self, process: &Process) -> Option<Row> {
        let none = FxHashMap::default();
        let symbols = self
            .images
            .get(&process.image)
            .map_or(&none, |image| &image.symbols);
        let now = process.end_ns.unwrap_or(self.now_ns);
        if let Some(summary) = &process.summary {
            let mut row = summary.row.clone();
            row.heap = summary
                .counts
                .map(|counts| heap(&counts, summary.complete && !self.lossy));
            let names = Names {
                symbols,
                modules: &summary.modules,
            };
            let uses = (&self.stacks, &summary.sites);
            let touched = (&summary.fault_sites[..], summary.growth.as_ref());
            site_rows::fill(&mut row, uses, touched, &names, now);
            return Some(row);
        }
        let space = self.spaces.get(&process.space)?;
        let mut row = self.row(process, space);
        let names = Names {
            symbols,
            modules: &modules(&process.memory(space)),
        };
        let uses = process.heap_of(space).map(SiteUses::of).unwrap_or_default();
        let faults = process.fault_sites.sorted();
        let growth = self.growth_of(process);
        let touched = (&faults[..], growth.as_ref());
        site_rows::fill(&mut row, (&self.stacks, &uses), touched, &names, now);
        Some(row)
    }

    /// The row of a process, without its sites.
    pub(super) fn row(&self, process: &Process, space: &Space) -> Row {
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
        let end = process.end_ns.unwrap_or(self.now_ns);
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
