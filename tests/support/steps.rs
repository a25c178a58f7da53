//! A process that waits for its orders: what it does between two of them is known exactly.

use std::process::Command;

use crate::binary::{Traced, heap};
use crate::child::Running;
use crate::workload::workload;

/// Allocations of one [`Steps::round`].
pub const ALLOCATIONS: u64 = 100;
/// Reallocations of one round.
pub const REALLOCATIONS: u64 = 50;
/// Frees of one round.
pub const FREES: u64 = 70;
/// Bytes that one round leaves.
pub const LIVE_BYTES: u64 = 30_000;
/// Blocks allocated before the first round.
pub const EARLY: u64 = 20;

/// The workload `steps.c`, waiting.
pub struct Steps {
    process: Running,
    lines: usize,
}

impl Steps {
    /// Starts one that will exit with `status`.
    pub fn start(status: i32) -> Steps {
        let program = workload("steps.c");
        Steps::of(Command::new(program).arg(status.to_string()))
    }

    /// Starts `command`, which is to run `steps`.
    pub fn of(command: &mut Command) -> Steps {
        let process = Running::start(command);
        process.stdout_lines(1);
        Steps { process, lines: 1 }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Running {
        &mut self.process
    }

    /// One round, done when this returns.
    pub fn round(&mut self) {
        self.order(b"r");
    }

    /// Frees the [`EARLY`] blocks.
    pub fn free_early(&mut self) {
        self.order(b"f");
    }

    /// Of a process that launches `steps` at any order: lets it, and waits for it to be ready.
    pub fn begin(&mut self) {
        self.order(b"\n");
    }

    /// How many bytes of libc's code are not those of its file: breakpoints in it.
    pub fn breakpoints(&mut self) -> u64 {
        self.order(b"c");
        let lines = self.process.stdout_lines(self.lines);
        let answer = lines.lines().nth(self.lines - 1).expect("an answer");
        answer.parse().expect("a number")
    }

    /// What follows is done by a child of it.
    pub fn fork(&mut self) {
        self.order(b"d");
    }

    fn order(&mut self, order: &[u8]) {
        self.process.send(order);
        self.lines += 1;
        self.process.stdout_lines(self.lines);
    }

    /// Ends it, and asserts its exit status.
    #[track_caller]
    pub fn end(mut self, status: i32) {
        self.process.send(b"q");
        self.process.finish().exited(status);
    }
}

/// Asserts that a trace of `steps` saw exactly these rounds.
#[track_caller]
pub fn assert_rounds(traced: &Traced, rounds: u64) {
    traced.nothing_lost();
    let heap = heap(traced.first());
    let seen = [
        heap.allocations,
        heap.reallocations,
        heap.frees,
        heap.live_bytes,
    ];
    assert_eq!(
        seen,
        [ALLOCATIONS, REALLOCATIONS, FREES, LIVE_BYTES].map(|each| each * rounds),
        "{heap:?}"
    );
    assert_eq!((heap.invalid_frees, heap.double_frees), (Some(0), Some(0)));
}
