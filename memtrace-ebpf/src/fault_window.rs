//! Latencies of a sample of the faults, and counts of all of them that cost a fault nothing.
//!
//! The user side opens the software events of starts and ends for a while at random times. A fault that starts in such a
//! window is timed, whichever way it ends. What is counted are the kernel's own `min_flt` and `maj_flt`: here those of
//! threads that end, by the user side those of threads that run (/proc/PID/stat).

use aya_ebpf::{
    Global, helpers::bpf_get_current_task, macros::perf_event, programs::PerfEventContext,
};
use memtrace_common::histogram::{KernelCounts, Pair};

use crate::{
    emit::add,
    fault,
    process::{field, live_threads, offsets},
    run_time::{Hook, measured},
    target::{self, HISTOGRAMS},
};

/// Whether faults are timed in windows alone.
#[unsafe(no_mangle)]
static FAULT_WINDOWS: Global<u8> = Global::new(0);

/// See [`FAULT_WINDOWS`].
#[inline(always)]
pub fn is_on() -> bool {
    FAULT_WINDOWS.load() != 0
}

/// PERF_COUNT_SW_PAGE_FAULTS: before the fault is handled.
#[perf_event]
pub fn fault_window_start(ctx: PerfEventContext) -> u32 {
    measured(Hook::Kernel, || window_start(&ctx));
    0
}

#[inline(always)]
fn window_start(ctx: &PerfEventContext) {
    let Some((_, target)) = target::current_or_met() else {
        return;
    };
    // SAFETY: the context is valid while the program runs.
    let (address, cs) = unsafe { ((*ctx.ctx).addr, (*ctx.ctx).regs.cs) };
    fault::remember(&target, address, cs & 3 == 0);
}

/// What the current thread, and the threads of its process that have ended, had when tracing of it began. The other
/// threads of a process that is met are not known here.
#[inline(always)]
pub fn counts_of_met() -> KernelCounts {
    if !is_on() {
        return KernelCounts::NONE;
    }
    let offsets = offsets();
    // SAFETY: the helper takes no argument.
    let task = unsafe { bpf_get_current_task() };
    let signal = field(task, offsets.task_signal).unwrap_or(0);
    KernelCounts {
        before: own(task),
        ended_before: Pair {
            minor: field(signal, offsets.signal_min_flt).unwrap_or(0),
            major: field(signal, offsets.signal_maj_flt).unwrap_or(0),
        },
        others: live_threads()
            .map_or(0, |live| live as u64)
            .saturating_sub(1),
        ended: Pair::NONE,
    }
}

/// A thread of a traced process ends.
#[inline(always)]
pub fn thread_ends(pid: u32, start_ns: u64) {
    if !is_on() {
        return;
    }
    let Some(histogram) = HISTOGRAMS.get_ptr_mut(&target::key(pid, start_ns)) else {
        return;
    };
    // SAFETY: the helper takes no argument.
    let counts = own(unsafe { bpf_get_current_task() });
    // SAFETY: fields of a live map value, aligned; the additions are atomic, since other threads end too.
    unsafe {
        add(&raw mut (*histogram).counted.ended.minor, counts.minor);
        add(&raw mut (*histogram).counted.ended.major, counts.major);
    }
}

#[inline(always)]
fn own(task: u64) -> Pair {
    let offsets = offsets();
    Pair {
        minor: field(task, offsets.task_min_flt).unwrap_or(0),
        major: field(task, offsets.task_maj_flt).unwrap_or(0),
    }
}
