//! What is measured, and what must hold.

use super::{tool::Tool, workload::Workload};

/// A workload under tools.
pub struct Row {
    /// One word; the command line chooses by it.
    pub name: &'static str,
    /// What an operation is.
    pub operation: &'static str,
    /// What runs.
    pub workload: Workload,
    /// On what; the first is what the others are compared with.
    pub tools: &'static [Tool],
    /// How often.
    pub rounds: usize,
    /// What must hold.
    pub claims: &'static [Claim],
}

/// `of` takes at most `limit` times the time of `to`.
pub struct Claim {
    /// The tool that must be cheap.
    pub of: Tool,
    /// What it is measured by.
    pub to: Tool,
    /// The ratio.
    pub limit: f64,
    /// Whether the time of the first tool is taken off both before.
    pub added: bool,
}

const fn within(of: Tool, to: Tool, limit: f64) -> Claim {
    Claim {
        of,
        to,
        limit,
        added: false,
    }
}

const fn added_within(of: Tool, to: Tool, limit: f64) -> Claim {
    Claim {
        of,
        to,
        limit,
        added: true,
    }
}

const HEAP: &[Tool] = &[
    Tool::Untraced,
    Tool::HeapHooks,
    Tool::HeapNoStacks,
    Tool::Heap,
    Tool::BpftraceLeaks,
    Tool::BpftraceLeakStacks,
    Tool::Heaptrack,
    Tool::Memcheck,
];

const PROGRAM: &[Tool] = &[
    Tool::Untraced,
    Tool::Heap,
    Tool::Heaptrack,
    Tool::Memcheck,
    Tool::BpftraceLeakStacks,
];

/// Every row.
pub const ROWS: &[Row] = &[
    Row {
        name: "pair",
        operation: "malloc and free, 64 B",
        workload: Workload::Pairs {
            size: 64,
            threads: 1,
            idle: 0,
        },
        tools: HEAP,
        rounds: 10,
        claims: &[
            within(Tool::HeapNoStacks, Tool::HeapHooks, 1.25),
            within(Tool::HeapNoStacks, Tool::BpftraceLeaks, 1.0 / 5.0),
        ],
    },
    Row {
        name: "large",
        operation: "malloc and free, 64 KiB",
        workload: Workload::Pairs {
            size: 64 << 10,
            threads: 1,
            idle: 0,
        },
        tools: &[
            Tool::Untraced,
            Tool::HeapHooks,
            Tool::HeapNoStacks,
            Tool::Heap,
        ],
        rounds: 6,
        claims: &[],
    },
    Row {
        name: "threads",
        operation: "malloc and free, 64 B, 8 threads",
        workload: Workload::Pairs {
            size: 64,
            threads: 8,
            idle: 0,
        },
        tools: &[
            Tool::Untraced,
            Tool::HeapHooks,
            Tool::HeapNoStacks,
            Tool::Heap,
            Tool::BpftraceLeaks,
            Tool::Heaptrack,
        ],
        rounds: 10,
        claims: &[within(Tool::HeapNoStacks, Tool::HeapHooks, 1.25)],
    },
    Row {
        name: "deep",
        operation: "malloc and free on 10 frames",
        workload: Workload::Deep(10),
        tools: &[
            Tool::Untraced,
            Tool::HeapNoStacks,
            Tool::Heap,
            Tool::BpftraceLeakStacks,
            Tool::Heaptrack,
        ],
        rounds: 10,
        claims: &[within(Tool::Heap, Tool::BpftraceLeakStacks, 1.0 / 2.5)],
    },
    Row {
        name: "idle",
        operation: "malloc and free beside 1,000 idle threads",
        workload: Workload::Pairs {
            size: 64,
            threads: 1,
            idle: 1000,
        },
        tools: &[
            Tool::Untraced,
            Tool::HeapHooks,
            Tool::HeapNoStacks,
            Tool::Heap,
        ],
        rounds: 6,
        claims: &[],
    },
    Row {
        name: "live-10k",
        operation: "malloc and free",
        workload: Workload::Live(10_000),
        tools: &[Tool::Untraced, Tool::HeapNoStacks],
        rounds: 6,
        claims: &[],
    },
    Row {
        name: "live-10m",
        operation: "malloc and free",
        workload: Workload::Live(10_000_000),
        tools: &[Tool::Untraced, Tool::HeapNoStacks],
        rounds: 3,
        claims: &[],
    },
    Row {
        name: "faults",
        operation: "first touch of an anonymous page",
        workload: Workload::Faults,
        tools: &[
            Tool::Untraced,
            Tool::FaultHooks,
            Tool::Faults,
            Tool::BpftraceFaults,
            Tool::PerfTrace,
        ],
        rounds: 10,
        claims: &[within(Tool::Faults, Tool::FaultHooks, 1.25)],
    },
    Row {
        name: "maps",
        operation: "mmap and munmap",
        workload: Workload::Maps,
        tools: &[Tool::Untraced, Tool::Faults],
        rounds: 10,
        claims: &[],
    },
    Row {
        name: "compile",
        operation: "8 × gcc",
        workload: Workload::Compile,
        tools: &[Tool::Untraced, Tool::FaultHooks, Tool::Faults],
        rounds: 10,
        claims: &[added_within(Tool::Faults, Tool::FaultHooks, 4.0)],
    },
    Row {
        name: "python",
        operation: "python3, JSON",
        workload: Workload::Python,
        tools: PROGRAM,
        rounds: 6,
        claims: &[within(Tool::Heap, Tool::BpftraceLeakStacks, 1.0 / 3.0)],
    },
    Row {
        name: "sqlite",
        operation: "sqlite3, 60,000 rows",
        workload: Workload::Sqlite,
        tools: PROGRAM,
        rounds: 6,
        claims: &[],
    },
    Row {
        name: "beside-pair",
        operation: "malloc and free",
        workload: Workload::Pairs {
            size: 64,
            threads: 1,
            idle: 0,
        },
        tools: &[Tool::Untraced, Tool::Beside],
        rounds: 10,
        claims: &[within(Tool::Beside, Tool::Untraced, 1.01)],
    },
    Row {
        name: "beside-faults",
        operation: "first touch of an anonymous page",
        workload: Workload::Faults,
        tools: &[Tool::Untraced, Tool::Beside],
        rounds: 10,
        claims: &[within(Tool::Beside, Tool::Untraced, 1.01)],
    },
    Row {
        name: "beside-calls",
        operation: "getppid",
        workload: Workload::Calls,
        tools: &[Tool::Untraced, Tool::Beside],
        rounds: 10,
        claims: &[],
    },
    Row {
        name: "pace",
        operation: "malloc and free, 250,000 pairs a second asked for, 60 s",
        workload: Workload::Pace {
            rate: 250_000,
            seconds: 60,
        },
        tools: &[Tool::HeapNoStacks],
        rounds: 1,
        claims: &[],
    },
];
