//! What the programs take, by a sample of their runs, for the daemon's budget.
//!
//! The kernel's own statistics (`BPF_ENABLE_STATS`) measure each run of every program on the machine, and add 73 ns to
//! each, which is more than most of these programs take (getppid under two empty-handed ones: 404 ns with, 258 without).

use aya_ebpf::{
    Global,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::map,
    maps::Array,
};
pub use memtrace_common::run_time::Hook;
use memtrace_common::run_time::{ONE_IN, RunTime};

use crate::{emit::add, floor};

/// 1 to measure. It is constant once loaded, so the verifier drops what is not done.
#[unsafe(no_mangle)]
static MEASURE_RUNS: Global<u8> = Global::new(0);

/// Longer than any run takes by itself: the rest is another thread's or an interrupt's, which came between.
const LONGEST_NS: u64 = 100_000;

/// The sample, by [`Hook`].
#[map]
static RUN_TIMES: Array<RunTime> = Array::with_max_entries(Hook::ALL.len() as u32, 0);

/// Does the work of one run, and measures it if that is in the sample.
#[inline(always)]
pub fn measured<R>(hook: Hook, work: impl FnOnce() -> R) -> R {
    let clock = Clock::start();
    let result = work();
    clock.stop(hook);
    result
}

/// When the work began; 0 where it is not measured. One number: the stacks of programs have little room.
struct Clock(u64);

impl Clock {
    #[inline(always)]
    fn start() -> Self {
        // SAFETY: the helper takes no argument.
        if !is_on() || unsafe { bpf_get_prandom_u32() } % ONE_IN != 0 {
            return Self(0);
        }
        let first_ns = now_ns();
        let second_ns = now_ns();
        // What it takes to read the clock is not the work's.
        Self(second_ns + (second_ns - first_ns))
    }

    #[inline(always)]
    fn stop(self, hook: Hook) {
        if !is_on() || self.0 == 0 {
            return;
        }
        let Some(sum) = RUN_TIMES.get_ptr_mut(hook as u32) else {
            return;
        };
        let took_ns = now_ns().saturating_sub(self.0).min(LONGEST_NS);
        // SAFETY: fields of a live map value, aligned; the additions are atomic, since other CPUs run programs too.
        unsafe {
            add(&raw mut (*sum).runs, 1);
            add(&raw mut (*sum).ns, took_ns);
        }
    }
}

#[inline(always)]
fn is_on() -> bool {
    MEASURE_RUNS.load() != 0 && !floor::hooks_only()
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_ktime_get_ns() }
}
