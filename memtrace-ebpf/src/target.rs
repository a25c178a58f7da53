//! Which processes are traced.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid,
        generated::bpf_get_current_ancestor_cgroup_id,
    },
    macros::map,
    maps::{Array, HashMap},
};
use memtrace_common::{
    counter::Counter,
    histogram::{FaultHistogram, HistogramKey},
    record::{Kind, Seen},
    target::{AREA_CGROUP, AREA_MACHINE, Area, FOLLOW, Target},
};

use crate::{
    emit::{Urgency, count, emit, header},
    fault_window, process,
};

/// Processes that are traced without being told.
#[unsafe(no_mangle)]
static AREA: Global<Area> = Global::new(Area::NONE);

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

/// The current process, if it is traced, or lies in the traced area and is traced from now on.
#[inline(always)]
pub fn current_or_met() -> Option<(u32, Target)> {
    current().or_else(|| if meet() { current() } else { None })
}

/// Whether whole parts of the machine are traced rather than single processes.
#[inline(always)]
pub fn has_area() -> bool {
    AREA.load().kind == AREA_CGROUP || AREA.load().kind == AREA_MACHINE
}

/// Begins to trace the current process if it lies in the area. Kernel threads have no memory of their own, and of
/// a process that has ended nothing would tell its end again.
#[inline(never)]
fn meet() -> bool {
    if !in_area() || process::current_mm().is_none() || process::live_threads() == Some(0) {
        return false;
    }
    let header = header(Kind::Seen);
    let target = Target {
        start_ns: header.time_ns,
        flags: FOLLOW,
        code_changes: 0,
    };
    // Of two threads that are met at once the first one tells.
    if !insert(header.pid, target, u64::from(BPF_NOEXIST)) {
        return current().is_some();
    }
    if fault_window::is_on()
        && let Some(histogram) = HISTOGRAMS.get_ptr_mut(&key(header.pid, target.start_ns))
    {
        // SAFETY: a field of a live map value; its thread's faults of before are counted by nobody else.
        unsafe { (*histogram).counted = fault_window::counts_of_met() };
    }
    let comm = bpf_get_current_comm().unwrap_or_default();
    emit(Seen { header, comm }, Counter::LostProcess, Urgency::Now);
    true
}

/// The key of a process's histogram.
#[inline(always)]
pub fn key(pid: u32, start_ns: u64) -> HistogramKey {
    HistogramKey {
        pid,
        start_low: start_ns as u32,
    }
}

#[inline(always)]
fn in_area() -> bool {
    let area = AREA.load();
    match area.kind {
        AREA_MACHINE => true,
        // SAFETY: the helper takes a number and reads the current task.
        AREA_CGROUP => unsafe {
            bpf_get_current_ancestor_cgroup_id(area.level as i32) == area.cgroup
        },
        _ => false,
    }
}

/// Counts how often the user side put processes into [`TARGETS`] or took them out.
#[map]
static GENERATION: Array<u32> = Array::with_max_entries(1, 0);

/// What was found in [`TARGETS`], or not, holds for a thread until it ends or this changes.
#[inline(always)]
pub fn generation() -> u32 {
    GENERATION.get(0).copied().unwrap_or(0)
}

/// Sets a flag of a traced process.
#[inline(always)]
pub fn mark(pid: u32, flag: u64) {
    if let Some(target) = TARGETS.get_ptr_mut(&pid) {
        // SAFETY: the pointer is to a live map value; only the process itself changes its flags.
        unsafe { (*target).flags |= flag };
    }
}

/// Clears a flag of a traced process.
#[inline(always)]
pub fn unmark(pid: u32, flag: u64) {
    if let Some(target) = TARGETS.get_ptr_mut(&pid) {
        // SAFETY: as above.
        unsafe { (*target).flags &= !flag };
    }
}

/// Traces a child from now on.
#[inline(always)]
pub fn follow(pid: u32, target: Target) -> bool {
    if !insert(pid, target, 0) {
        count(Counter::TargetsFull);
        return false;
    }
    true
}

#[inline(always)]
fn insert(pid: u32, target: Target, flags: u64) -> bool {
    if TARGETS.insert(&pid, &target, flags).is_err() {
        return false;
    }
    if HISTOGRAMS
        .insert(&key(pid, target.start_ns), &EMPTY, u64::from(BPF_NOEXIST))
        .is_err()
    {
        count(Counter::HistogramMissing);
    }
    true
}
