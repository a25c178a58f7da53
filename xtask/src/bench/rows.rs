//! What is measured, and what must hold.

use std::time::Duration;

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
    /// Which clock tells.
    pub clock: Clock,
    /// How often.
    pub rounds: usize,
    /// When no further round begins.
    pub limit: Duration,
    /// What must hold.
    pub claims: &'static [Claim],
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// CPU time of the traced threads, which neighbours disturb less.
    Cpu,
    /// Elapsed time: what clients wait for.
    Wall,
}

/// What must hold.
#[derive(Clone, Copy)]
pub enum Claim {
    /// `of` takes at most `limit` times the time of `to`.
    Ratio {
        /// The tool that must be cheap.
        of: Tool,
        /// What it is measured by.
        to: Tool,
        /// The ratio.
        limit: f64,
        /// Whether the time of the first tool is taken off both before.
        added: bool,
        /// Whether the upper bound must hold it, and not the median.
        surely: bool,
    },
    /// What the first of a pair takes beyond the second is at most `limit` times the same of another pair.
    Beyond {
        /// The pair whose difference must be small.
        of: (Tool, Tool),
        /// The pair it is measured by.
        to: (Tool, Tool),
        /// The ratio.
        limit: f64,
    },
    /// `of` takes at most `limit` times what it took in an earlier row.
    Across {
        /// The tool.
        of: Tool,
        /// The row.
        row: &'static str,
        /// The ratio.
        limit: f64,
    },
    /// `of` lost no event, and took at least so many a second.
    Whole {
        /// The tool.
        of: Tool,
        /// Events a second.
        rate: f64,
    },
}

const fn within(of: Tool, to: Tool, limit: f64) -> Claim {
    Claim::Ratio {
        of,
        to,
        limit,
        added: false,
        surely: false,
    }
}

const fn surely_within(of: Tool, to: Tool, limit: f64) -> Claim {
    Claim::Ratio {
        of,
        to,
        limit,
        added: false,
        surely: true,
    }
}

const fn added_within(of: Tool, to: Tool, limit: f64) -> Claim {
    Claim::Ratio {
        of,
        to,
        limit,
        added: true,
        surely: false,
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

const STACKS: &[Tool] = &[
    Tool::Untraced,
    Tool::HeapNoStacks,
    Tool::Heap,
    Tool::BpftraceLeaks,
    Tool::BpftraceLeakStacks,
    Tool::Heaptrack,
];

/// What a stack costs is the difference to the same without.
const STACK_CLAIMS: &[Claim] = &[
    within(Tool::Heap, Tool::BpftraceLeakStacks, 1.0 / 2.5),
    Claim::Beyond {
        of: (Tool::Heap, Tool::HeapNoStacks),
        to: (Tool::BpftraceLeakStacks, Tool::BpftraceLeaks),
        limit: 1.0,
    },
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
        clock: Clock::Cpu,
        rounds: 8,
        limit: Duration::from_secs(75),
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
        clock: Clock::Cpu,
        rounds: 4,
        limit: Duration::from_secs(15),
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
        clock: Clock::Cpu,
        rounds: 6,
        limit: Duration::from_secs(50),
        claims: &[within(Tool::HeapNoStacks, Tool::HeapHooks, 1.25)],
    },
    Row {
        name: "deep",
        operation: "malloc and free on 10 frames",
        workload: Workload::Deep(10),
        tools: STACKS,
        clock: Clock::Cpu,
        rounds: 6,
        limit: Duration::from_secs(50),
        claims: STACK_CLAIMS,
    },
    Row {
        name: "deep-paths",
        operation: "malloc and free on 1,000 stacks of 10 frames in turn",
        workload: Workload::Paths {
            frames: 10,
            paths: 1000,
        },
        tools: STACKS,
        clock: Clock::Cpu,
        rounds: 6,
        limit: Duration::from_secs(40),
        claims: STACK_CLAIMS,
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
        clock: Clock::Cpu,
        rounds: 5,
        limit: Duration::from_secs(25),
        claims: &[Claim::Across {
            of: Tool::HeapNoStacks,
            row: "pair",
            limit: 1.3,
        }],
    },
    Row {
        name: "live-10k",
        operation: "malloc and free",
        workload: Workload::Live(10_000),
        tools: &[Tool::Untraced, Tool::HeapNoStacks],
        clock: Clock::Cpu,
        rounds: 5,
        limit: Duration::from_secs(15),
        claims: &[],
    },
    Row {
        name: "live-10m",
        operation: "malloc and free",
        workload: Workload::Live(10_000_000),
        tools: &[Tool::Untraced, Tool::HeapNoStacks],
        clock: Clock::Cpu,
        rounds: 3,
        limit: Duration::from_secs(90),
        claims: &[Claim::Across {
            of: Tool::HeapNoStacks,
            row: "live-10k",
            limit: 1.5,
        }],
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
        clock: Clock::Cpu,
        rounds: 8,
        limit: Duration::from_secs(50),
        claims: &[within(Tool::Faults, Tool::FaultHooks, 1.25)],
    },
    Row {
        name: "maps",
        operation: "mmap and munmap",
        workload: Workload::Maps,
        tools: &[Tool::Untraced, Tool::Faults],
        clock: Clock::Cpu,
        rounds: 6,
        limit: Duration::from_secs(10),
        claims: &[],
    },
    Row {
        name: "compile",
        operation: "8 × gcc",
        workload: Workload::Compile,
        tools: &[Tool::Untraced, Tool::FaultHooks, Tool::Faults, Tool::Daemon],
        clock: Clock::Cpu,
        rounds: 8,
        limit: Duration::from_secs(35),
        claims: &[
            added_within(Tool::Faults, Tool::FaultHooks, 4.0),
            added_within(Tool::Daemon, Tool::FaultHooks, 4.0),
        ],
    },
    // By itself, since the effect is small: the two take turns often.
    Row {
        name: "compile-sampled",
        operation: "8 × gcc, one fault in eight timed",
        workload: Workload::Compile,
        tools: &[
            Tool::Untraced,
            Tool::DaemonSampledHooks,
            Tool::DaemonSampled,
        ],
        clock: Clock::Cpu,
        rounds: 40,
        limit: Duration::from_secs(60),
        claims: &[within(Tool::DaemonSampled, Tool::Untraced, 1.03)],
    },
    Row {
        name: "python",
        operation: "python3, JSON",
        workload: Workload::Python,
        tools: PROGRAM,
        clock: Clock::Cpu,
        rounds: 4,
        limit: Duration::from_secs(75),
        claims: &[within(Tool::Heap, Tool::BpftraceLeakStacks, 1.0 / 3.0)],
    },
    Row {
        name: "sqlite",
        operation: "sqlite3, 60,000 rows",
        workload: Workload::Sqlite,
        tools: PROGRAM,
        clock: Clock::Cpu,
        rounds: 3,
        limit: Duration::from_secs(40),
        claims: &[],
    },
    Row {
        name: "redis",
        operation: "a request to redis, 200 B, elapsed",
        workload: Workload::Redis,
        tools: &[
            Tool::Untraced,
            Tool::Faults,
            Tool::Heap,
            Tool::BpftraceLeakStacks,
        ],
        clock: Clock::Wall,
        rounds: 6,
        limit: Duration::from_secs(70),
        claims: &[added_within(Tool::Heap, Tool::BpftraceLeakStacks, 0.5)],
    },
    Row {
        name: "redis-always",
        operation: "a request to redis, 200 B, elapsed",
        workload: Workload::Redis,
        tools: &[Tool::Untraced, Tool::DaemonHooks, Tool::Daemon],
        clock: Clock::Wall,
        rounds: 40,
        limit: Duration::from_secs(65),
        claims: &[surely_within(Tool::Daemon, Tool::Untraced, 1.04)],
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
        clock: Clock::Cpu,
        rounds: 8,
        limit: Duration::from_secs(20),
        claims: &[within(Tool::Beside, Tool::Untraced, 1.01)],
    },
    Row {
        name: "beside-faults",
        operation: "first touch of an anonymous page",
        workload: Workload::Faults,
        tools: &[
            Tool::Untraced,
            Tool::BesideHooks,
            Tool::Beside,
            Tool::BesideDaemon,
        ],
        clock: Clock::Cpu,
        rounds: 10,
        limit: Duration::from_secs(35),
        claims: &[
            within(Tool::Beside, Tool::Untraced, 1.01),
            within(Tool::BesideDaemon, Tool::Untraced, 1.01),
            within(Tool::Beside, Tool::BesideHooks, 1.05),
        ],
    },
    Row {
        name: "beside-calls",
        operation: "getppid",
        workload: Workload::Calls,
        tools: &[
            Tool::Untraced,
            Tool::BesideHooks,
            Tool::Beside,
            Tool::BesideDaemon,
        ],
        clock: Clock::Cpu,
        rounds: 6,
        limit: Duration::from_secs(20),
        claims: &[within(Tool::BesideDaemon, Tool::Untraced, 1.02)],
    },
    Row {
        name: "pace",
        operation: "malloc and free, 520,000 events a second asked for, 60 s",
        workload: Workload::Pace {
            rate: 520_000,
            seconds: 60,
        },
        tools: &[Tool::HeapNoStacks],
        clock: Clock::Cpu,
        rounds: 1,
        limit: Duration::from_secs(60),
        claims: &[Claim::Whole {
            of: Tool::HeapNoStacks,
            rate: 500_000.0,
        }],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rows_take_a_quarter_of_an_hour_at_most() {
        let limits: Duration = ROWS.iter().map(|row| row.limit).sum();
        assert!(limits <= Duration::from_secs(15 * 60), "{limits:?}");
    }

    #[test]
    fn claims_speak_of_what_is_measured() {
        for (at, row) in ROWS.iter().enumerate() {
            for claim in row.claims {
                let tools = match *claim {
                    Claim::Ratio { of, to, .. } => vec![of, to],
                    Claim::Beyond { of, to, .. } => vec![of.0, of.1, to.0, to.1],
                    Claim::Across { of, row, .. } => {
                        let earlier = ROWS[..at].iter().find(|one| one.name == row);
                        assert!(earlier.is_some_and(|row| row.tools.contains(&of)), "{row}");
                        vec![of]
                    }
                    Claim::Whole { of, .. } => vec![of],
                };
                let measured = tools.iter().all(|tool| row.tools.contains(tool));
                assert!(measured, "{}", row.name);
            }
        }
    }
}
