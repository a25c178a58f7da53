//! Events for tests: every kind, and a stream like a real program's.

use std::collections::HashMap;

use memtrace_common::{heap::Function, histogram::BUCKETS, record::Call, unwind::End};

use crate::event::{
    Access, Event, EventKind, FaultTotals, FileMapped, Machine, MemoryTotals, SmapsRegion, StackId,
    Started, Symbol, SymbolFunction, Syscall,
};

/// xorshift64*: the same numbers in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Every kind with values at their limits, absent and present.
pub(super) fn every_kind() -> Vec<Event> {
    let mut kinds = heap();
    kinds.extend(memory());
    kinds.extend(processes());
    kinds.extend(rest());
    let event = |(row, kind)| Event {
        time_ns: if row == 0 {
            u64::MAX
        } else {
            row as u64 * 1000
        },
        pid: row as u32 % 3,
        tid: u32::MAX - row as u32,
        kind,
    };
    let mut numbers = StackNumbers::default();
    let numbered = |event| numbers.apply(event);
    kinds
        .into_iter()
        .enumerate()
        .map(event)
        .map(numbered)
        .collect()
}

/// What a reader has in place of the ids of stacks: their numbers, in the order in which they come.
#[derive(Default)]
pub(super) struct StackNumbers(HashMap<StackId, StackId>);

impl StackNumbers {
    pub(super) fn apply(&mut self, mut event: Event) -> Event {
        if let EventKind::Alloc { stack: id, .. }
        | EventKind::Realloc { stack: id, .. }
        | EventKind::Fault { stack: id, .. }
        | EventKind::Touch { stack: id, .. }
        | EventKind::Stack { id, .. } = &mut event.kind
            && *id != 0
        {
            let next = self.0.len() as u64 + 1;
            *id = *self.0.entry(*id).or_insert(next);
        }
        event
    }
}

fn heap() -> Vec<EventKind> {
    let mut kinds: Vec<_> = super::schema::FUNCTIONS
        .iter()
        .map(|(function, _)| EventKind::Alloc {
            function: *function,
            address: u64::MAX,
            size: 0,
            stack: *function as u64,
        })
        .collect();
    kinds.extend([
        EventKind::AllocFailed {
            function: Function::Calloc,
            size: u64::MAX,
        },
        EventKind::Free {
            address: 0x7fff_0000_1000,
        },
        EventKind::Realloc {
            entered_ns: 1,
            old_address: 2,
            new_address: 3,
            size: 4,
            stack: 0,
        },
        EventKind::Stack {
            id: u64::MAX,
            frames: Box::new([1, u64::MAX, 3]),
            end: End::Truncated,
        },
        EventKind::Stack {
            id: 7,
            frames: Box::new([]),
            end: End::NotKnown,
        },
        EventKind::Sampling { bytes: 512 << 10 },
        EventKind::Touch {
            address: 1 << 40,
            stack: u64::MAX,
            faults: 9,
        },
        EventKind::TouchSampling {
            on: true,
            kept: true,
        },
        EventKind::HeapProbes {
            allocator: "jemalloc".into(),
            unavailable: None,
            late: true,
        },
        EventKind::HeapProbes {
            allocator: "".into(),
            unavailable: Some("stripped".into()),
            late: false,
        },
    ]);
    kinds
}

fn memory() -> Vec<EventKind> {
    let mut kinds = Vec::new();
    for bits in 0..32u8 {
        let access = Access {
            major: bits & 1 != 0,
            kernel: bits & 2 != 0,
            write: [None, Some(false), Some(true)][bits as usize % 3],
            protection: bits & 8 != 0,
            instruction: bits & 16 != 0,
        };
        let latency_ns = (bits % 5 != 0).then_some(u64::from(bits));
        kinds.push(EventKind::Fault {
            address: 4096,
            ip: u64::MAX,
            latency_ns,
            stack: u64::from(bits),
            access,
        });
    }
    for (call, _) in super::schema::CALLS {
        kinds.push(EventKind::Syscall(Box::new(Syscall {
            call,
            entered_ns: 5,
            result: if call == Call::Brk {
                i64::MIN
            } else {
                i64::MAX
            },
            arguments: [0, 1, u64::MAX, 3, 4],
            offset: 1 << 63,
        })));
    }
    let mut totals = FaultTotals {
        user: 1,
        kernel: u64::MAX,
        minor_sum_ns: 3,
        major_sum_ns: 4,
        minor_untimed: 5,
        major_untimed: 6,
        minor: [0; BUCKETS],
        major: [u64::MAX; BUCKETS],
    };
    totals.minor[BUCKETS - 1] = 9;
    kinds.push(EventKind::FaultTotals(Box::new(totals)));
    kinds.push(EventKind::FileMapped(Box::new(FileMapped {
        start: 1 << 47,
        length: 4096,
        offset: 8192,
        protection: 5,
        flags: 2,
        path: "/usr/lib/\"quoted\"\n\u{1F600}.so".into(),
        build_id: Box::new([0, 0xAB, 0xFF]),
    })));
    kinds.push(EventKind::SmapsBegin);
    for advised_huge in [None, Some(false), Some(true)] {
        kinds.push(EventKind::Smaps(Box::new(SmapsRegion {
            start: 4096,
            end: u64::MAX,
            protection: 3,
            shared: advised_huge.is_none(),
            offset: 1,
            path: "[heap]".into(),
            inode: 2,
            resident_bytes: 3,
            anonymous_bytes: 4,
            swapped_bytes: 5,
            huge_bytes: 6,
            advised_huge,
        })));
    }
    kinds.push(EventKind::SmapsEnd);
    kinds.push(EventKind::Memory(Box::new(MemoryTotals {
        file_bytes: 1,
        anonymous_bytes: 2,
        shared_bytes: 3,
        swapped_bytes: 4,
        peak_resident_bytes: 5,
        peak_mapped_bytes: 7,
        mapped_bytes: 6,
        break_start: 7,
        break_end: 8,
        stack: 9,
        approximate: true,
        last: false,
    })));
    kinds
}

fn processes() -> Vec<EventKind> {
    vec![
        EventKind::Started(Box::new(Started {
            parent: 1,
            start_ns: 2,
            comm: "bash".into(),
            exe: "/bin/bash".into(),
            already_running: true,
        })),
        EventKind::Fork {
            child: 77,
            shares_memory: true,
            comm: "a b".into(),
        },
        EventKind::ThreadStart { thread: 78 },
        EventKind::ThreadExit,
        EventKind::Exec {
            path: "/bin/true".into(),
            comm: "true".into(),
            unfollowed: true,
        },
        EventKind::CommandLine {
            arguments: Box::new(["true".into(), String::new(), "\\x\u{0}".into()]),
            truncated: true,
        },
        EventKind::Rename {
            comm: "worker".into(),
        },
        EventKind::Exit {
            code: Some(-1),
            signal: None,
        },
        EventKind::Exit {
            code: None,
            signal: Some(9),
        },
        EventKind::Cgroup {
            path: "/user.slice".into(),
        },
    ]
}

fn rest() -> Vec<EventKind> {
    let function = |name: &str, line: Option<u32>| SymbolFunction {
        name: name.into(),
        file: line.map(|_| "main.c".into()),
        line,
    };
    let symbol = |functions: Vec<SymbolFunction>| Symbol {
        frame: 0x5555_0000,
        module: (!functions.is_empty()).then(|| "/bin/x".into()),
        build_id: (!functions.is_empty()).then(|| "abcd".into()),
        offset: (!functions.is_empty()).then_some(0x1234),
        functions: functions.into(),
    };
    let functions = vec![
        function("inlined", Some(3)),
        function("std::vector<int>::push", None),
    ];
    vec![
        EventKind::Symbol(Box::new(symbol(functions))),
        EventKind::Symbol(Box::new(symbol(vec![]))),
        EventKind::Counted {
            reason: "ring_full_fault".into(),
            count: u64::MAX,
            loss: true,
        },
        EventKind::Probe {
            name: "malloc".into(),
            attached: true,
            reason: None,
        },
        EventKind::Probe {
            name: "free".into(),
            attached: false,
            reason: Some("EPERM".into()),
        },
        EventKind::Machine(Box::new(Machine {
            memtrace: "0.1.0".into(),
            kernel: "6.8.0".into(),
            arch: "x86_64".into(),
            huge_pages: true,
        })),
        EventKind::End,
    ]
}

/// A stream like that of a program with four threads: sites of uneven use, each with its few sizes,
/// blocks that mostly die young and are handed out again, now and then a fault or a system call.
pub(super) struct Realistic {
    random: Random,
    time_ns: u64,
    live: Vec<u64>,
    idle: Vec<Vec<u64>>,
    next_address: u64,
    numbers: StackNumbers,
}

const SITES: u64 = 400;
const SIZES: [u64; 8] = [24, 32, 48, 64, 120, 512, 1000, 4096];

impl Realistic {
    pub(super) fn new() -> Self {
        Self {
            random: Random(0x9E37_79B9_7F4A_7C15),
            time_ns: 1_000_000_000_000,
            live: Vec::new(),
            idle: vec![Vec::new(); SIZES.len()],
            next_address: 0x5555_5575_92a0,
            numbers: StackNumbers::default(),
        }
    }

    fn kind(&mut self) -> EventKind {
        let dice = self.random.below(1000);
        match dice {
            0..520 => self.alloc(),
            520..980 if !self.live.is_empty() => self.free(),
            980..998 => EventKind::Fault {
                address: self.next_address & !4095,
                ip: 0x5555_5555_0000 + self.random.below(200) * 4,
                latency_ns: Some(400 + self.random.below(1500)),
                stack: 0,
                access: Access {
                    write: Some(true),
                    ..Access::default()
                },
            },
            _ => EventKind::Syscall(Box::new(Syscall {
                call: Call::Brk,
                entered_ns: self.time_ns - 900,
                result: self.next_address as i64,
                arguments: [self.next_address, 0, 0, 0, 0],
                offset: 0,
            })),
        }
    }

    fn alloc(&mut self) -> EventKind {
        let site = self.random.below(SITES) * self.random.below(SITES) / SITES;
        let class = (site % SIZES.len() as u64) as usize;
        let address = self.idle[class].pop().unwrap_or_else(|| {
            let fresh = self.next_address;
            self.next_address += SIZES[class] + 16;
            fresh
        });
        self.live.push(address << 3 | class as u64);
        EventKind::Alloc {
            function: Function::Malloc,
            address,
            size: SIZES[class] - site % 3,
            stack: (site + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15),
        }
    }

    fn free(&mut self) -> EventKind {
        let young = self.live.len().min(16) as u64;
        let index = self.live.len() - 1 - self.random.below(young) as usize;
        let block = self.live.remove(index);
        self.idle[(block & 7) as usize].push(block >> 3);
        EventKind::Free {
            address: block >> 3,
        }
    }
}

impl Iterator for Realistic {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.time_ns += 150 + self.random.below(600);
        let thread = self.time_ns / 200_000 % 4;
        let event = Event {
            time_ns: self.time_ns,
            pid: 4242,
            tid: 4242 + thread as u32,
            kind: self.kind(),
        };
        Some(self.numbers.apply(event))
    }
}
