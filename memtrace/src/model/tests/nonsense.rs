//! Events in no order that makes sense.

use super::*;

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
            growth: Thresholds::default(),
            all_exited_sites: 5,
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
                        huge_bytes: size * random(2),
                        advised_huge: [None, Some(false), Some(true)][random(3) as usize],
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
