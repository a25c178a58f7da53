//! Small documents that tests render.

use std::collections::BTreeMap;

use super::document::*;

const MIB: u64 = 1 << 20;

/// Nothing was traced.
pub(crate) fn empty() -> Document {
    Document {
        schema: SCHEMA,
        memtrace: "0.1.0".into(),
        kernel: "6.12.0".into(),
        arch: "x86_64".into(),
        coverage: Coverage::default(),
        processes: Vec::new(),
    }
}

/// A frame with a name and a line.
pub(crate) fn frame(function: &str, file: &str, line: u32) -> Frame {
    Frame {
        function: Some(function.into()),
        file: Some(file.into()),
        line: Some(line),
        ..bare()
    }
}

/// A frame of which only the module is known.
pub(crate) fn nameless(module: &str, offset: u64) -> Frame {
    Frame {
        module: Some(module.into()),
        offset: Some(offset),
        ..bare()
    }
}

/// A frame of which only the address is known.
pub(crate) fn bare() -> Frame {
    Frame {
        address: 0x401136,
        module: None,
        build_id: None,
        offset: None,
        function: None,
        file: None,
        line: None,
        inlined: false,
        found_by: FoundBy::Rules,
    }
}

fn malloc() -> Frame {
    Frame {
        module: Some("/usr/lib/x86_64-linux-gnu/libc.so.6".into()),
        function: Some("malloc".into()),
        ..bare()
    }
}

/// A leak of that many bytes and blocks from `function`.
pub(crate) fn leak(function: &str, bytes: u64, blocks: u64) -> Leak {
    Leak {
        bytes_error: None,
        blocks_error: None,
        bytes,
        blocks,
        oldest_age_ns: 1_100_000_000,
        newest_age_ns: 900_000_000,
        stack_end: Some(StackEnd::Start),
        stack: vec![
            malloc(),
            frame(function, "/src/leaky.c", 12),
            frame("main", "/src/leaky.c", 40),
        ],
    }
}

/// A latency distribution.
pub(crate) fn latency() -> Latency {
    Latency {
        count: 130,
        minor_sum: 130_000,
        major_sum: 1_000_000,
        min: 250,
        mean: 1_500,
        p50: 1_200,
        p90: 3_000,
        p99: 34_000,
        p999: 34_000,
        max: 1_000_000,
        buckets: [
            (511, 20),
            (895, 30),
            (1023, 30),
            (2047, 46),
            (8191, 3),
            (1_048_575, 1),
        ]
        .into_iter()
        .map(|(le, count)| Bucket { le, count })
        .collect(),
    }
}

fn address_space() -> AddressSpace {
    let kind = |reserved_bytes, committed_bytes| KindBytes {
        reserved_bytes,
        committed_bytes,
    };
    AddressSpace {
        reserved_bytes: 10_250 * MIB,
        committed_bytes: 112 * MIB,
        lazy_bytes: 10_138 * MIB,
        peak_reserved_bytes: 10_260 * MIB,
        peak_committed_bytes: 120 * MIB,
        swapped_bytes: Some(0),
        by_kind: BTreeMap::from([
            ("anonymous".into(), kind(10_240 * MIB, 104 * MIB)),
            ("file".into(), kind(10 * MIB, 8 * MIB)),
        ]),
        committed_source: "kernel counters".into(),
        failed_calls: BTreeMap::new(),
    }
}

fn region(start: u64, size: u64, committed_bytes: u64, path: Option<&str>) -> Region {
    Region {
        start,
        end: start + size,
        permissions: if path.is_some() { "r-xp" } else { "rw-p" }.into(),
        kind: if path.is_some() { "file" } else { "anonymous" }.into(),
        path: path.map(Into::into),
        reserved_bytes: size,
        committed_bytes,
        faults: committed_bytes / 4096,
    }
}

/// A process that leaks at two sites.
pub(crate) fn process() -> Process {
    Process {
        pid: 123,
        parent_pid: 1,
        start_time_ns: 5_000_000_000,
        end_time_ns: Some(6_200_000_000),
        comm: "leaky".into(),
        exe: "/src/leaky".into(),
        command_line: vec!["./leaky".into(), "two words".into()],
        cgroup: "/user.slice".into(),
        exit: Some(Exit {
            code: Some(0),
            signal: None,
        }),
        heap: Some(Heap {
            allocations: 1_600_000,
            frees: 1_598_990,
            reallocations: 12,
            failed: 0,
            bytes_allocated: 3 << 30,
            live_blocks: 1_010,
            live_bytes: 10 * MIB + 64_000,
            peak_live_bytes: 15 * MIB,
            invalid_frees: Some(0),
            double_frees: Some(0),
            sampling: None,
        }),
        heap_reason: None,
        address_space: address_space(),
        faults: Faults {
            minor: 129,
            major: 1,
            user: 120,
            kernel: 10,
            latency_ns: Some(latency()),
            by_kind: BTreeMap::from([
                (
                    "anonymous".into(),
                    KindFaults {
                        minor: 100,
                        major: 0,
                        latency_ns: Some(latency()),
                    },
                ),
                (
                    "file".into(),
                    KindFaults {
                        minor: 29,
                        major: 1,
                        latency_ns: None,
                    },
                ),
            ]),
        },
        leaks: vec![
            leak("leak_big", 10 * MIB, 10),
            leak("leak_small", 64_000, 1_000),
        ],
        sites: Vec::new(),
        other_sites: None,
        fault_sites: Vec::new(),
        growth: None,
        frames: Vec::new(),
        regions: vec![
            region(0x7f00_0000_0000, 10_240 * MIB, 104 * MIB, None),
            region(
                0x5555_5555_4000,
                10 * MIB,
                8 * MIB,
                Some("/usr/lib/x86_64-linux-gnu/libc.so.6"),
            ),
        ],
        timeline: timeline(),
    }
}

/// As [`leaky`], with sites.
pub(crate) fn with_sites() -> Document {
    let mut document = leaky();
    let process = &mut document.processes[0];
    process.frames = vec![
        malloc(),
        frame("work", "/src/leaky.c", 20),
        frame("leak_big", "/src/leaky.c", 12),
        frame("main", "/src/leaky.c", 40),
    ];
    let site = |totals, stack: &[u32]| Site {
        totals,
        stack_end: Some(StackEnd::Start),
        stack: stack.into(),
    };
    process.sites = vec![
        site(
            SiteTotals {
                allocations: 10,
                bytes_allocated: 3000,
                live_blocks: 10,
                live_bytes: 10 * MIB,
                ..SiteTotals::default()
            },
            &[0, 2, 3],
        ),
        site(
            SiteTotals {
                allocations: 15,
                reallocations: 5,
                bytes_allocated: 2000,
                peak_blocks: 15,
                peak_bytes: 1500,
                ..SiteTotals::default()
            },
            &[0, 1, 3],
        ),
    ];
    process.other_sites = Some(OtherSites {
        sites: 3,
        totals: SiteTotals {
            allocations: 3,
            bytes_allocated: 100,
            live_blocks: 1,
            live_bytes: 7,
            peak_blocks: 2,
            peak_bytes: 50,
            ..SiteTotals::default()
        },
    });
    process.fault_sites = vec![FaultSite {
        minor: 120,
        major: 1,
        latency_ns: 500_000,
        stack_end: Some(StackEnd::Start),
        minor_error: Some(4),
        stack: vec![1],
    }];
    document
}

fn timeline() -> Vec<TimelinePoint> {
    (0..=12)
        .map(|step| TimelinePoint {
            time_ns: 5_000_000_000 + step * 100_000_000,
            reserved_bytes: if step < 6 { 10 * MIB } else { 10_250 * MIB },
            committed_bytes: step * 10 * MIB,
            heap_live_bytes: Some(step * MIB),
            program_break_bytes: 132 << 10,
            minor: step * 10,
            major: 0,
        })
        .collect()
}

/// One leaking process, everything seen.
pub(crate) fn leaky() -> Document {
    let probe = |name: &str| Probe {
        name: name.into(),
        attached: true,
        reason: None,
    };
    Document {
        coverage: Coverage {
            events: 3_198_000,
            probes: vec![probe("sys_exit_mmap"), probe("malloc")],
            ..Coverage::default()
        },
        processes: vec![process()],
        ..empty()
    }
}
