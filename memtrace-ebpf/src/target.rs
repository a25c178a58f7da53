//! Which processes are traced.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::bpf_get_current_pid_tgid,
    macros::map,
    maps::HashMap,
};
use memtrace_common::{
    counter::Counter,
    histogram::{FaultHistogram, HistogramKey},
    target::Target,
};

use crate::emit::count;

/// Traced processes by thread-group id.
#[map]
pub static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);

/// Fault latencies of each traced process; read and removed by the user side.
#[map]
pub static HISTOGRAMS: HashMap<HistogramKey, FaultHistogram> =
    HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);

/// A histogram with no fault in it, to start from: too large for the BPF stack.
static EMPTY: FaultHistogram = FaultHistogram::EMPTY;

/// The current process, if it is traced.
#[inline(always)]
pub fn current() -> Option<(u32, Target)> {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the value is copied at once; a process's entry is only removed by its own exit.
    let target = unsafe { TARGETS.get(&pid) }?;
    Some((pid, *target))
}

/// Sets a flag of a traced process.
#[inline(always)]
pub fn mark(pid: u32, flag: u64) {
    if let Some(target) = TARGETS.get_ptr_mut(&pid) {
        // SAFETY: the pointer is to a live map value; only the process itself changes its flags.
        unsafe { (*target).flags |= flag };
    }
}

/// Traces a child from now on.
#[inline(always)]
pub fn follow(pid: u32, target: Target) -> bool {
    if TARGETS.insert(&pid, &target, 0).is_err() {
        count(Counter::TargetsFull);
        return false;
    }
    let key = HistogramKey {
        pid,
        start_low: target.start_ns as u32,
    };
    if HISTOGRAMS
        .insert(&key, &EMPTY, u64::from(BPF_NOEXIST))
        .is_err()
    {
        count(Counter::HistogramMissing);
    }
    true
}
