use memtrace_common::{heap::Function, record::Call};

use super::*;
use crate::{
    event::{
        Access, FaultTotals, FileMapped, MemoryTotals, SmapsRegion, Started, SymbolFunction,
        Syscall,
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

    fn fault(&mut self, time: u64, pid: Pid, address: u64, access: Access) {
        let kind = EventKind::Fault {
            address,
            ip: 0,
            latency_ns: Some(500),
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

#[test]
fn a_leak_has_its_site_ages_and_names() {
    let mut trace = Trace::new();
    trace.mapped(8, 10, BASE, "/lib/leaky.so");
    let frames = Box::new([BASE + 0x10, 0x99]);
    let stack = EventKind::Stack {
        id: 7,
        frames,
        truncated: false,
    };
    trace.event(8, 10, stack);
    trace.alloc(10, 10, 0x100, 64, 7);
    trace.alloc(30, 10, 0x200, 64, 7);
    trace.alloc(40, 10, 0x300, 1000, 8);
    assert_eq!(trace.0.stacks_to_symbolize(10), [0x99, BASE + 0x10]);
    let function = |name: &str| SymbolFunction {
        name: name.into(),
        file: Some("leak.c".into()),
        line: Some(3),
    };
    let symbol = Symbol {
        address: 0x99,
        module: None,
        build_id: None,
        offset: Some(4),
        functions: Box::new([function("inner"), function("outer")]),
    };
    trace.event(45, 10, EventKind::Symbol(Box::new(symbol)));
    trace.event(50, 0, EventKind::End);
    trace.event(90, 10, EventKind::ThreadExit);
    assert_eq!(trace.0.stacks_to_symbolize(10), [BASE + 0x10]);
    let row = trace.row(10);
    assert_eq!((row.leaks[0].bytes, row.leaks[0].stack.len()), (1000, 0));
    let leak = &row.leaks[1];
    assert_eq!((leak.bytes, leak.blocks), (128, 2));
    assert_eq!(
        (leak.oldest_age_ns, leak.newest_age_ns),
        (40, 20),
        "as of End"
    );
    let told: Vec<_> = leak
        .stack
        .iter()
        .map(|frame| (frame.function.as_deref(), frame.inlined))
        .collect();
    let expected = [(None, false), (Some("inner"), true), (Some("outer"), false)];
    assert_eq!(told, expected);
    assert_eq!(leak.stack[0].module.as_deref(), Some("/lib/leaky.so"));
    assert_eq!(leak.stack[0].offset, Some(0x1010));
    assert_eq!(leak.stack[0].build_id.as_deref(), Some("ab01"));
}

#[test]
fn fork_inherits_blocks_mappings_and_names() {
    let mut trace = Trace::new();
    trace.mmap(8, 10, BASE, 4);
    trace.fault(9, 10, BASE, WRITE);
    trace.alloc(10, 10, 0x100, 64, 0);
    trace.fork(20, 10, 11, false);
    trace.free(21, 11, 0x100);
    trace.alloc(22, 11, 0x200, 10, 0);
    trace.fault(23, 11, BASE + PAGE, WRITE);
    let (parent, child) = (trace.row(10), trace.row(11));
    assert_eq!((live(&parent), live(&child)), ((1, 64), (1, 10)));
    let heap = child.heap.unwrap();
    assert_eq!(
        (heap.allocations, heap.frees, heap.peak_live_bytes),
        (1, 1, 64)
    );
    assert_eq!(parent.address_space.committed_bytes, PAGE);
    assert_eq!(child.address_space.committed_bytes, 2 * PAGE);
    assert_eq!((child.faults.minor, parent.faults.minor), (1, 1));
    assert_eq!(
        (child.parent_pid, child.exe.as_str()),
        (10, "/bin/launched")
    );
}

#[test]
fn a_vfork_child_lives_in_its_parent_until_it_execs() {
    let mut trace = Trace::new();
    trace.mmap(8, 10, BASE, 4);
    trace.alloc(10, 10, 0x100, 64, 0);
    trace.fork(20, 10, 11, true);
    trace.alloc(21, 11, 0x200, 10, 0);
    trace.free(22, 11, 0x100);
    assert_eq!(live(&trace.row(10)), (1, 10));
    assert_eq!(trace.row(11).heap, None);
    let kernel = Access {
        kernel: true,
        ..WRITE
    };
    trace.mapped(23, 11, BASE, "/bin/new");
    trace.fault(24, 11, BASE + PAGE, kernel);
    let mut last = totals(9);
    last.last = true;
    trace.event(24, 11, EventKind::Memory(Box::new(last)));
    trace.exec(25, 11);
    trace.alloc(26, 11, 0x100, 7, 0);
    let (parent, child) = (trace.row(10), trace.row(11));
    assert_eq!((live(&parent), live(&child)), ((1, 10), (1, 7)));
    assert_eq!(parent.regions.len(), 1);
    assert_eq!(
        parent.regions[0].path, None,
        "the new program is not in the parent"
    );
    assert_eq!(child.regions[0].path.as_deref(), Some("/bin/new"));
    assert_eq!(child.address_space.committed_bytes, PAGE);
    assert_eq!(
        (child.comm.as_str(), child.exe.as_str()),
        ("new", "/bin/new")
    );
    assert_eq!(parent.address_space.reserved_bytes, 4 * PAGE);
}

fn totals(pages: u64) -> MemoryTotals {
    MemoryTotals {
        file_bytes: 0,
        anonymous_bytes: pages * PAGE,
        shared_bytes: 0,
        swapped_bytes: 0,
        peak_resident_bytes: 0,
        mapped_bytes: 100 * PAGE,
        break_start: 0,
        break_end: 0,
        stack: 0,
        approximate: false,
        last: false,
    }
}

#[test]
fn exec_begins_anew_but_faults_go_on() {
    let mut trace = Trace::new();
    trace.mmap(8, 10, BASE, 4);
    trace.fault(9, 10, BASE, WRITE);
    trace.alloc(10, 10, 0x100, 64, 0);
    trace.exec(20, 10);
    let row = trace.row(10);
    assert_eq!((live(&row), row.heap.unwrap().allocations), ((0, 0), 0));
    assert_eq!(row.address_space.reserved_bytes, 0);
    assert_eq!(row.faults.minor, 1);
    assert_eq!(
        (row.start_time_ns, row.timeline[0].time_ns),
        (20, 20),
        "the launcher's copy is not the command's history"
    );
    trace.mmap(28, 10, BASE, 4);
    trace.fault(29, 10, BASE, WRITE);
    trace.exec(30, 10);
    let row = trace.row(10);
    assert_eq!(row.address_space.reserved_bytes, 0);
    assert_eq!(row.faults.minor, 2);
    assert_eq!((row.start_time_ns, row.timeline[0].time_ns), (20, 20));
}

#[test]
fn a_pid_that_comes_back_is_another_process() {
    let mut trace = Trace::new();
    trace.fork(20, 10, 11, false);
    trace.alloc(21, 11, 0x100, 64, 0);
    trace.exit(22, 11);
    trace.fork(30, 10, 11, false);
    let rows: Vec<_> = trace
        .document()
        .processes
        .iter()
        .map(|row| (row.pid, row.start_time_ns, row.end_time_ns, live(row).0))
        .collect();
    assert_eq!(
        rows,
        [(10, 5, None, 0), (11, 20, Some(22), 1), (11, 30, None, 0)]
    );
}

#[test]
fn a_wrong_free_is_the_programs_only_if_all_was_seen() {
    let run = |trace: &mut Trace| {
        trace.alloc(10, 10, 0x100, 64, 0);
        for address in [0x100, 0x100, 0x500] {
            trace.free(11, 10, address);
        }
        let document = trace.document();
        let heap = document.processes[0].heap.unwrap();
        (
            heap.invalid_frees,
            heap.double_frees,
            document.coverage.unmatched_frees,
        )
    };
    assert_eq!(run(&mut Trace::new()), (1, 1, 0));
    for pid in [0, 10] {
        let mut lossy = Trace::new();
        lossy.lose(pid);
        assert_eq!(run(&mut lossy), (0, 0, 2));
    }
    let mut attached = Trace::bare();
    attached.start(10, true);
    attached.seen(10);
    assert_eq!(run(&mut attached), (0, 0, 2));
    assert!(attached.row(10).heap_reason.is_some());
}

#[test]
fn a_heap_that_is_not_seen_is_null_with_a_reason() {
    let mut trace = Trace::bare();
    trace.start(10, false);
    assert_eq!(trace.row(10).heap, None);
    assert!(trace.row(10).heap_reason.is_some());
    trace.seen(10);
    assert!(trace.row(10).heap.is_some());
    let stripped = EventKind::HeapProbes {
        allocator: "unknown".into(),
        unavailable: Some("stripped".into()),
        late: false,
    };
    trace.event(20, 10, stripped);
    let row = trace.row(10);
    assert_eq!(
        (row.heap, row.heap_reason.as_deref()),
        (None, Some("stripped"))
    );
    assert_eq!(row.timeline.last().unwrap().heap_live_bytes, None);
}

#[test]
fn the_summary_of_an_exited_process_equals_its_last_row() {
    let mut trace = Trace::new();
    trace.fork(20, 10, 11, false);
    trace.mmap(21, 11, BASE, 8);
    trace.fault(22, 11, BASE, WRITE);
    trace.alloc(23, 11, 0x100, 64, 7);
    let mut last = totals(3);
    last.last = true;
    trace.event(24, 11, EventKind::Memory(Box::new(last)));
    trace.exit(25, 11);
    let before = trace.row(11);
    assert_eq!(before.address_space.committed_bytes, 3 * PAGE);
    assert_eq!(before.address_space.reserved_bytes, 100 * PAGE);
    assert_eq!(before.exit.unwrap().code, Some(0));
    trace.fault(5_000 * MS, 10, BASE, WRITE);
    assert!(trace.0.spaces.len() == 1, "its maps are gone");
    assert_eq!(trace.row(11), before);
    let mut exact = FaultTotals {
        user: 3,
        kernel: 0,
        minor_sum_ns: 900,
        major_sum_ns: 0,
        minor_untimed: 2,
        major_untimed: 0,
        minor: [0; memtrace_common::histogram::BUCKETS],
        major: [0; memtrace_common::histogram::BUCKETS],
    };
    exact.minor[3] = 1;
    trace.event(5_001 * MS, 11, EventKind::FaultTotals(Box::new(exact)));
    assert_eq!(trace.row(11).faults.minor, 3);
    assert_eq!(trace.0.stacks_to_symbolize(11), [0u64; 0]);
}

#[test]
fn exited_processes_are_capped() {
    let limits = Limits {
        exited_processes: 3,
        ..Limits::default()
    };
    let mut trace = Trace(Model::new(limits));
    trace.start(10, false);
    for child in 100..600 {
        trace.fork(u64::from(child) * MS, 10, child, false);
        trace.exit(u64::from(child) * MS + 1, child);
    }
    trace.fault(10_000 * MS, 10, BASE, WRITE);
    let document = trace.document();
    let pids: Vec<Pid> = document.processes.iter().map(|row| row.pid).collect();
    assert_eq!(pids, [10, 597, 598, 599]);
    assert_eq!(document.coverage.processes_dropped, 497);
    assert_eq!(trace.0.spaces.len(), 1);
    assert_eq!(trace.0.current.len(), 4);
    assert_eq!(trace.0.images.len(), 1);
    assert_eq!(trace.0.running(), [10]);
    assert_eq!(trace.0.overview().len(), 4);
}

#[test]
fn a_mapping_announced_last_is_in_the_report() {
    let mut trace = Trace::new();
    trace.mapped(8, 10, BASE, "/lib/a");
    assert_eq!(trace.row(10).regions.len(), 1);
    assert_eq!(trace.row(10).address_space.reserved_bytes, 16 * PAGE);
}

#[test]
fn smaps_seeds_a_running_process() {
    let mut trace = Trace::bare();
    trace.start(10, true);
    trace.event(6, 10, EventKind::SmapsBegin);
    let region = SmapsRegion {
        start: BASE,
        end: BASE + 8 * PAGE,
        protection: 3,
        shared: false,
        offset: 0,
        path: "".into(),
        inode: 0,
        resident_bytes: 2 * PAGE,
        anonymous_bytes: 2 * PAGE,
        swapped_bytes: 0,
        resident_pages: Some(Box::new([(BASE / PAGE, BASE / PAGE + 2)])),
    };
    trace.event(6, 10, EventKind::Smaps(Box::new(region)));
    trace.event(6, 10, EventKind::SmapsEnd);
    let space = trace.row(10).address_space;
    assert_eq!(
        (space.reserved_bytes, space.committed_bytes),
        (8 * PAGE, 2 * PAGE)
    );
    assert_eq!((space.lazy_bytes, space.swapped_bytes), (6 * PAGE, Some(0)));
    assert_eq!(space.committed_source, "smaps");
    trace.fault(7, 10, BASE + 5 * PAGE, WRITE);
    let space = trace.row(10).address_space;
    assert_eq!(space.committed_bytes, 3 * PAGE);
    assert_eq!(space.committed_source, "faults");
}

#[test]
fn strangers_are_taken_in() {
    let mut trace = Trace::bare();
    trace.fault(7, 77, BASE, WRITE);
    trace.free(8, 77, 0x100);
    trace.exit(9, 78);
    trace.fork(9, 79, 79, false);
    let document = trace.document();
    assert_eq!(document.processes.len(), 2);
    assert_eq!(document.processes[0].faults.by_kind["other"].minor, 1);
    assert_eq!(document.coverage.events, 4);
    assert_eq!(document.coverage.unmatched_frees, 1);
}

/// Any order of any events, most of them nonsense: nothing panics and the sums hold.
#[test]
fn nonsense_cannot_break_it() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    for round in 0..20 {
        let limits = Limits {
            exited_processes: 4,
            timeline_points: 8,
            exited_timeline_points: 4,
            exited_sites: 2,
        };
        let mut trace = Trace(Model::new(limits));
        let mut time = 0;
        for _ in 0..1000 {
            time += random(3) * MS;
            let (pid, other) = (random(6) as Pid, random(6) as Pid);
            let wild = [0, 1, PAGE, BASE, u64::MAX, 1 << 63, u64::MAX - PAGE];
            let mut address = || match random(4) {
                0 => wild[random(7) as usize],
                _ => BASE + random(32) * PAGE,
            };
            let (first, second) = (address(), address());
            let size = match random(8) {
                0 => wild[random(7) as usize],
                _ => random(16) * PAGE,
            };
            let access = Access {
                major: random(8) == 0,
                kernel: random(4) == 0,
                write: [None, Some(true), Some(false)][random(3) as usize],
                protection: random(4) == 0,
                instruction: false,
            };
            match random(16) {
                0 => trace.fork(time, pid, other, random(2) == 0),
                1 => trace.exec(time, pid),
                2 if round % 2 == 0 => trace.exit(time, pid),
                3 => trace.mapped(
                    time,
                    pid,
                    first,
                    ["/a", "//anon", "[heap]", "[stack]"][random(4) as usize],
                ),
                4..=6 => trace.fault(time, pid, first, access),
                7 => trace.alloc(time, pid, random(20), size, random(4)),
                8 => trace.free(time, pid, random(20)),
                9 => {
                    let kind = EventKind::Realloc {
                        entered_ns: time.saturating_sub(random(4) * MS),
                        old_address: random(20),
                        new_address: random(20),
                        size,
                        stack: random(4),
                    };
                    trace.event(time, pid, kind);
                }
                10 => trace.start(pid, random(2) == 0),
                11 => {
                    let mut totals = totals(random(100));
                    totals.mapped_bytes = size;
                    totals.last = random(2) == 0;
                    totals.break_end = second;
                    trace.event(time, pid, EventKind::Memory(Box::new(totals)));
                }
                12 => trace.event(time, pid, EventKind::SmapsBegin),
                13 => {
                    let region = SmapsRegion {
                        start: first,
                        end: second,
                        protection: 3,
                        shared: random(2) == 0,
                        offset: 0,
                        path: ["", "[heap]", "/a"][random(3) as usize].into(),
                        inode: 0,
                        resident_bytes: size,
                        anonymous_bytes: size,
                        swapped_bytes: size,
                        resident_pages: (random(2) == 0)
                            .then(|| Box::from([(first / PAGE, second / PAGE)])),
                    };
                    trace.event(time, pid, EventKind::Smaps(Box::new(region)));
                    if random(4) == 0 {
                        trace.event(time, pid, EventKind::SmapsEnd);
                    }
                }
                _ => {
                    let calls = [
                        Call::Brk,
                        Call::Mmap,
                        Call::Munmap,
                        Call::Mremap,
                        Call::Mprotect,
                        Call::Madvise,
                        Call::Shmat,
                        Call::Shmdt,
                    ];
                    let call = Syscall {
                        call: calls[random(8) as usize],
                        entered_ns: time.saturating_sub(random(3) * MS),
                        result: [0, first as i64, -12][random(3) as usize],
                        arguments: [
                            first,
                            size,
                            random(26),
                            [0x22, 0x8022, 2, 1, 0x40022][random(5) as usize],
                            second,
                        ],
                        offset: random(4) * PAGE,
                    };
                    trace.event(time, pid, EventKind::Syscall(Box::new(call)));
                }
            }
        }
        for row in trace.document().processes {
            if let Some(heap) = row.heap
                && row.end_time_ns.is_none()
            {
                let blocks: u64 = row.leaks.iter().map(|leak| leak.blocks).sum();
                assert_eq!(blocks, heap.live_blocks);
            }
            for pair in row.regions.windows(2) {
                assert!(pair[0].end <= pair[1].start);
            }
        }
    }
}
