//! The wire between the kernel-side programs and the user side.
//!
//! Everything that crosses the kernel line is declared here and nowhere else: the records of the
//! ring buffer, the load-time configuration, the values kept in maps and the names of the counters.
//! All records are `repr(C)`, native-endian, without padding that a reader could see; their sizes are
//! asserted at compile time. Times are nanoseconds of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`).
#![no_std]

pub mod code_file;
pub mod counter;
pub mod frame;
pub mod growth;
pub mod heap;
pub mod histogram;
pub mod python;
pub mod record;
pub mod run_time;
pub mod sampling;
pub mod target;
pub mod unwind;

/// aya lets only plain data into maps; these are: `repr(C)`, integers throughout, no padding.
#[cfg(feature = "user")]
mod pod {
    use crate::{code_file, growth, heap, histogram, run_time, target, unwind};

    // SAFETY: repr(C), integer fields, no padding, every bit pattern valid.
    unsafe impl aya::Pod for target::Target {}
    // SAFETY: as above.
    unsafe impl aya::Pod for target::KernelOffsets {}
    // SAFETY: as above.
    unsafe impl aya::Pod for target::Area {}
    // SAFETY: as above.
    unsafe impl aya::Pod for histogram::HistogramKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for histogram::FaultHistogram {}
    // SAFETY: as above.
    unsafe impl aya::Pod for growth::Growing {}
    // SAFETY: as above.
    unsafe impl aya::Pod for heap::Point {}
    // SAFETY: as above.
    unsafe impl aya::Pod for run_time::RunTime {}
    // SAFETY: as above.
    unsafe impl aya::Pod for unwind::CodeSpace {}
    // SAFETY: as above.
    unsafe impl aya::Pod for code_file::FileKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for code_file::FileRules {}
    // SAFETY: as above.
    unsafe impl aya::Pod for code_file::ToldFile {}
}
