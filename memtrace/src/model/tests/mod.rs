//! The model by whole traces.

mod growth;
mod heap;
mod memory;
mod nonsense;
mod processes;
mod shards;

use memtrace_common::{frame::interrupted, heap::Function, record::Call, unwind::End};

use super::*;
use crate::{
    event::{
        Access, FaultTotals, FileMapped, MemoryTotals, SmapsRegion, StackId, Started, Symbol,
        SymbolFunction, Syscall,
    },
    report::document::{Document, Process as Row},
};

const BASE: u64 = 0x7000_0000_0000;
const PAGE: u64 = 4096;
const MS: u64 = 1_000_000;
const WRITE: Access = Access {
    major: false,
    kernel: false,
    write: Some(true),
    protection: false,
    instruction: false,
};

/// A model and the events that it is fed, in the shorthand of these tests.
struct Trace(Model);

impl Trace {
    /// Process 10 was launched and its heap is seen.
    fn new() -> Self {
        let mut trace = Self::bare();
        trace.start(10, false);
        trace.seen(10);
        trace
    }

    fn bare() -> Self {
        Self(Model::new(Limits::default()))
    }

    fn event(&mut self, time_ns: u64, pid: Pid, kind: EventKind) {
        let tid = pid;
        self.0.apply(&Event {
            time_ns,
            pid,
            tid,
            kind,
        });
    }

    fn start(&mut self, pid: Pid, already_running: bool) {
        let started = Started {
            parent: 1,
            start_ns: 5,
            comm: "launched".into(),
            exe: "/bin/launched".into(),
            already_running,
        };
        self.event(5, pid, EventKind::Started(Box::new(started)));
    }

    fn seen(&mut self, pid: Pid) {
        let allocator = "glibc".into();
        let unavailable = None;
        let kind = EventKind::HeapProbes {
            allocator,
            unavailable,
            late: false,
        };
        self.event(6, pid, kind);
    }

    fn alloc(&mut self, time: u64, pid: Pid, address: u64, size: u64, stack: StackId) {
        let function = Function::Malloc;
        let kind = EventKind::Alloc {
            function,
            address,
            size,
            stack,
        };
        self.event(time, pid, kind);
    }

    fn free(&mut self, time: u64, pid: Pid, address: u64) {
        self.event(time, pid, EventKind::Free { address });
    }

    fn fork(&mut self, time: u64, pid: Pid, child: Pid, shares_memory: bool) {
        let comm = "child".into();
        let kind = EventKind::Fork {
            child,
            shares_memory,
            comm,
        };
        self.event(time, pid, kind);
    }

    fn exec(&mut self, time: u64, pid: Pid) {
        let (path, comm) = ("/bin/new".into(), "new".into());
        self.event(
            time,
            pid,
            EventKind::Exec {
                path,
                comm,
                unfollowed: false,
            },
        );
    }

    fn exit(&mut self, time: u64, pid: Pid) {
        let (code, signal) = (Some(0), None);
        self.event(time, pid, EventKind::Exit { code, signal });
    }

    fn mapped(&mut self, time: u64, pid: Pid, start: u64, path: &str) {
        let mapped = FileMapped {
            start,
            length: 16 * PAGE,
            offset: 0x1000,
            protection: 5,
            flags: 2,
            path: path.into(),
            build_id: Box::new([0xab, 0x01]),
        };
        self.event(time, pid, EventKind::FileMapped(Box::new(mapped)));
    }

    fn mmap(&mut self, time: u64, pid: Pid, start: u64, pages: u64) {
        let call = Syscall {
            call: Call::Mmap,
            entered_ns: time - 1,
            result: start as i64,
            arguments: [0, pages * PAGE, 3, 0x22, u64::MAX],
            offset: 0,
        };
        self.event(time, pid, EventKind::Syscall(Box::new(call)));
    }

    /// What smaps says: mappings by start, pages and name.
    fn smaps(&mut self, time: u64, pid: Pid, mappings: &[(u64, u64, &str)]) {
        self.event(time, pid, EventKind::SmapsBegin);
        for &(start, pages, path) in mappings {
            let region = SmapsRegion {
                start,
                end: start + pages * PAGE,
                protection: 3,
                path: path.into(),
                ..SmapsRegion::default()
            };
            self.event(time, pid, EventKind::Smaps(Box::new(region)));
        }
        self.event(time, pid, EventKind::SmapsEnd);
    }

    fn fault(&mut self, time: u64, pid: Pid, address: u64, access: Access) {
        let kind = EventKind::Fault {
            address,
            ip: 0,
            latency_ns: Some(500),
            stack: 0,
            access,
        };
        self.event(time, pid, kind);
    }

    fn lose(&mut self, pid: Pid) {
        let reason = "ring_full_free".into();
        let kind = EventKind::Counted {
            reason,
            count: 1,
            loss: true,
        };
        self.event(7, pid, kind);
    }

    fn document(&self) -> Document {
        let document = self.0.document();
        for row in &document.processes {
            let space = &row.address_space;
            assert_eq!(space.by_kind.len(), 6);
            let sum = |bytes: fn(&crate::report::document::KindBytes) -> u64| {
                space.by_kind.values().map(bytes).sum::<u64>()
            };
            assert_eq!(sum(|kind| kind.reserved_bytes), space.reserved_bytes);
            assert_eq!(sum(|kind| kind.committed_bytes), space.committed_bytes);
            assert!(!row.timeline.is_empty());
        }
        document
    }

    fn row(&self, pid: Pid) -> Row {
        let rows = self.document().processes;
        rows.into_iter().rfind(|row| row.pid == pid).unwrap()
    }
}

fn live(row: &Row) -> (u64, u64) {
    let heap = row.heap.unwrap();
    (heap.live_blocks, heap.live_bytes)
}

fn totals(pages: u64) -> MemoryTotals {
    MemoryTotals {
        file_bytes: 0,
        anonymous_bytes: pages * PAGE,
        shared_bytes: 0,
        swapped_bytes: 0,
        peak_resident_bytes: 0,
        peak_mapped_bytes: 0,
        mapped_bytes: 100 * PAGE,
        break_start: 0,
        break_end: 0,
        stack: 0,
        approximate: false,
        last: false,
    }
}
