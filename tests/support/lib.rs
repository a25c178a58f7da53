//! What the tests in `suite/` stand on: they run the real `memtrace` on the real kernel and read its JSON.
//!
//! Expected values never come from memtrace: a workload counts its own calls, or the kernel, heaptrack or redis does.
//! Every wait has a deadline; whatever a test started is killed by its pid, and whatever it wrote is removed, when the
//! test ends, by panic too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "this code runs only in tests, where a panic is the report"
)]

pub mod binary;
pub mod child;
pub mod daemon;
pub mod expect;
pub mod gdb;
pub mod heaptrack_sites;
pub mod oracle;
pub mod pprof;
pub mod scratch;
pub mod stacks;
pub mod steps;
pub mod vm;
pub mod workload;

pub use binary::{Traced, memtrace, trace, trace_with};
pub use child::{Finished, Running};
pub use scratch::Scratch;
