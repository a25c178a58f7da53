//! From the model to the report.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::{
    event::{Pid, Symbol},
    report::document::{
        AddressSpace, Coverage, Document, Frame, Heap, KindBytes, Leak, Process as Row, Region,
        SCHEMA,
    },
};

use super::{
    Model, address_space,
    heap::Counts,
    process::{HeapSeen, Module, Process, Space, modules},
    region::Kind,
    site::{Live, live_sites},
};

impl Model {
    /// The whole report, as of now or of the end of the trace.
    pub fn document(&self) -> Document {
        let mut processes: Vec<_> = self.processes.iter().collect();
        processes.sort_by_key(|(id, process)| (self.command != Some(**id), process.start_ns, **id));
        Document {
            schema: SCHEMA,
            memtrace: self.machine.memtrace.to_string(),
            kernel: self.machine.kernel.to_string(),
            arch: self.machine.arch.to_string(),
            coverage: self.coverage_now(),
            processes: processes
                .into_iter()
                .filter_map(|(_, process)| self.full_row(process))
                .collect(),
        }
    }

    /// Every process with addresses that want a name, as [`Model::stacks_to_symbolize`] tells them.
    pub fn addresses_to_symbolize(&self) -> Vec<(Pid, Vec<u64>)> {
        let mut pids: Vec<Pid> = self.current.keys().copied().collect();
        pids.sort_unstable();
        let wanted = pids
            .into_iter()
            .map(|pid| (pid, self.stacks_to_symbolize(pid)));
        wanted
            .filter(|(_, addresses)| !addresses.is_empty())
            .collect()
    }

    /// The addresses in stacks of live blocks of a process that no [`Symbol`] has named yet, each once.
    pub fn stacks_to_symbolize(&self, pid: Pid) -> Vec<u64> {
        let Some(process) = self.current.get(&pid).and_then(|id| self.processes.get(id)) else {
            return Vec::new();
        };
        let sites = match (&process.summary, self.spaces.get(&process.space)) {
            (Some(summary), _) => summary.leaks.clone(),
            (None, Some(space)) => live_sites(&space.heap),
            (None, None) => Vec::new(),
        };
        let known = self.images.get(&process.image).map(|image| &image.symbols);
        let mut addresses: Vec<u64> = sites
            .iter()
            .flat_map(|live| self.sites.frames(live.site))
            .copied()
            .filter(|address| known.is_none_or(|known| !known.contains_key(address)))
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
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

    fn full_row(&self, process: &Process) -> Option<Row> {
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
            row.leaks = self.leaks(&summary.leaks, &summary.modules, symbols, now);
            return Some(row);
        }
        let space = self.spaces.get(&process.space)?;
        let mut row = self.row(process, space);
        if let Ok(heap) = process.heap_of(space) {
            let modules = modules(&process.memory(space));
            row.leaks = self.leaks(&live_sites(heap), &modules, symbols, now);
        }
        Some(row)
    }

    /// The row of a process, without its leaks.
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
            regions: regions(&memory),
            timeline: process
                .timeline
                .with_last(process.point(end.max(process.start_ns), space)),
        }
    }

    fn leaks(
        &self,
        sites: &[Live],
        modules: &[Module],
        symbols: &FxHashMap<u64, Symbol>,
        now_ns: u64,
    ) -> Vec<Leak> {
        sites
            .iter()
            .map(|live| Leak {
                bytes: live.bytes,
                blocks: live.blocks,
                oldest_age_ns: now_ns.saturating_sub(live.oldest_ns),
                newest_age_ns: now_ns.saturating_sub(live.newest_ns),
                stack: self
                    .sites
                    .frames(live.site)
                    .iter()
                    .flat_map(|address| frames(*address, symbols.get(address), modules))
                    .collect(),
            })
            .collect()
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
        invalid_frees: invalid,
        double_frees: double,
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
            faults: region.faults,
        })
        .collect()
}

/// The frames that one address stands for: the functions inlined there, then the real one.
fn frames(address: u64, symbol: Option<&Symbol>, modules: &[Module]) -> Vec<Frame> {
    let module = modules[..modules.partition_point(|module| module.start <= address)]
        .last()
        .filter(|module| address < module.end);
    let bare = Frame {
        address,
        module: module.map(|module| module.mapped.path.to_string()),
        build_id: module
            .map(|module| hexadecimal(&module.mapped.build_id))
            .filter(|id| !id.is_empty()),
        offset: module.map(|module| (address - module.start).wrapping_add(module.offset)),
        function: None,
        file: None,
        line: None,
        inlined: false,
    };
    let Some(symbol) = symbol else {
        return vec![bare];
    };
    let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
    let named = Frame {
        module: text(&symbol.module).or(bare.module),
        build_id: text(&symbol.build_id).or(bare.build_id),
        offset: symbol.offset.or(bare.offset),
        ..bare
    };
    let last = symbol.functions.len().saturating_sub(1);
    let functions: Vec<Frame> = symbol
        .functions
        .iter()
        .enumerate()
        .map(|(index, function)| Frame {
            function: Some(function.name.to_string()),
            file: text(&function.file),
            line: function.line,
            inlined: index < last,
            ..named.clone()
        })
        .collect();
    if functions.is_empty() {
        vec![named]
    } else {
        functions
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
