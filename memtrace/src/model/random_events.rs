//! Events for tests: of many processes that share memory, stacks and pids, with losses and late ones.

use memtrace_common::{heap::Function, record::Call, unwind::End};

use super::{Limits, Thresholds};
use crate::event::{
    Access, Event, EventKind, FileMapped, Machine, MemoryTotals, Pid, Started, Symbol,
    SymbolFunction, Syscall,
};

const BASE: u64 = 0x7000_0000_0000;
const PAGE: u64 = 4096;
const MS: u64 = 1_000_000;

/// Little of everything, so that every limit is met.
pub const LIMITS: Limits = Limits {
    exited_processes: 12,
    timeline_points: 8,
    exited_timeline_points: 4,
    exited_sites: 20,
    all_exited_sites: 60,
    growth: Thresholds {
        after_ns: 1,
        bytes: 1,
        bytes_per_second: 0,
    },
};

/// xorshift64.
pub struct Random(pub u64);

impl Random {
    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
}

/// Events of many processes, most of which make sense: all of what is decided in their order.
pub fn events(seed: u64) -> Vec<Event> {
    let mut random = Random(seed);
    let mut events = vec![Event {
        time_ns: 1,
        pid: 0,
        tid: 0,
        kind: EventKind::Machine(Box::new(Machine {
            memtrace: "1".into(),
            kernel: "6".into(),
            arch: "x".into(),
            huge_pages: true,
        })),
    }];
    let mut time_ns = 10;
    for _ in 0..4000 {
        time_ns += random.below(3) * MS;
        if random.one_in(300) {
            time_ns += 600 * MS;
        }
        let pid = match random.below(40) {
            0 => 0,
            _ => 10 + random.below(24) as Pid,
        };
        let late = random.below(2) * random.below(2000) * MS;
        events.push(Event {
            time_ns: if random.one_in(20) {
                time_ns.saturating_sub(late)
            } else {
                time_ns
            },
            pid,
            tid: pid,
            kind: kind(&mut random, pid, time_ns),
        });
    }
    events
}

fn kind(random: &mut Random, pid: Pid, time_ns: u64) -> EventKind {
    let stack = random.below(40);
    let address = 16 * random.below(30);
    match random.below(100) {
        0..8 => EventKind::Fork {
            child: 10 + random.below(24) as Pid,
            shares_memory: random.one_in(3),
            comm: ["", "child"][random.below(2) as usize].into(),
        },
        8..14 => EventKind::Exec {
            path: format!("/bin/{}", random.below(5)).into(),
            comm: "new".into(),
            unfollowed: false,
        },
        14..19 => EventKind::Exit {
            code: Some(random.below(3) as i32),
            signal: None,
        },
        19..22 => EventKind::Started(Box::new(Started {
            parent: 1,
            start_ns: random.below(3) * time_ns,
            comm: "started".into(),
            exe: "/bin/started".into(),
            already_running: random.one_in(2),
        })),
        22..30 => EventKind::HeapProbes {
            allocator: "glibc".into(),
            unavailable: random.one_in(8).then(|| "none".into()),
            late: random.one_in(8),
        },
        30..36 => EventKind::Stack {
            id: stack,
            frames: (0..stack % 5)
                .map(|frame| BASE + stack * 256 + frame)
                .collect(),
            end: End::Start,
        },
        36..38 => EventKind::Counted {
            reason: ["ring_full_free", "frame_ambiguous"][random.below(2) as usize].into(),
            count: random.below(2),
            loss: random.one_in(4),
        },
        38..40 => EventKind::Rename {
            comm: ["", "renamed"][random.below(2) as usize].into(),
        },
        40..42 => EventKind::Cgroup {
            path: format!("/{}", random.below(9)).into(),
        },
        42..44 => EventKind::Symbol(Box::new(Symbol {
            frame: BASE + stack * 256,
            module: None,
            build_id: None,
            offset: None,
            functions: Box::new([SymbolFunction {
                name: format!("f{stack}").into(),
                file: None,
                line: None,
            }]),
        })),
        44..46 => EventKind::Touch {
            address: BASE + random.below(32) * PAGE,
            stack,
            faults: 1,
        },
        46..50 => EventKind::FileMapped(Box::new(FileMapped {
            start: BASE + random.below(8) * 16 * PAGE,
            length: 16 * PAGE,
            offset: 0,
            protection: 5,
            flags: 2,
            path: format!("/lib/{}", random.below(3)).into(),
            build_id: Box::new([]),
        })),
        50..58 => EventKind::Fault {
            address: BASE + random.below(64) * PAGE,
            ip: BASE + random.below(9),
            latency_ns: Some(500),
            stack: stack * random.below(2),
            access: Access {
                kernel: random.one_in(3),
                write: Some(true),
                ..Access::default()
            },
        },
        58..62 => {
            let totals = MemoryTotals {
                anonymous_bytes: random.below(100) * PAGE,
                mapped_bytes: 100 * PAGE,
                last: random.one_in(2),
                ..MemoryTotals::default()
            };
            EventKind::Memory(Box::new(totals))
        }
        62..64 => EventKind::Syscall(Box::new(Syscall {
            call: Call::Mmap,
            entered_ns: time_ns - 1,
            result: (BASE + random.below(8) * 64 * PAGE) as i64,
            arguments: [0, 64 * PAGE, 3, 0x22, u64::MAX],
            offset: 0,
        })),
        64 if pid.is_multiple_of(11) => EventKind::Sampling { bytes: 64 },
        65 => EventKind::Probe {
            name: format!("p{}", random.below(4)).into(),
            attached: random.one_in(2),
            reason: None,
        },
        66..74 => EventKind::Realloc {
            entered_ns: time_ns.saturating_sub(random.below(3) * MS),
            old_address: address,
            new_address: 16 * random.below(30),
            size: random.below(3) * 100,
            stack,
        },
        74..82 => EventKind::Free { address },
        _ => EventKind::Alloc {
            function: Function::Malloc,
            address,
            size: random.below(4) * 50,
            stack,
        },
    }
}
