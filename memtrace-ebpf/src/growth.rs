//! Which stacks touch pages first: a sample of the minor faults of processes that grow.
//!
//! It stands on perf events of those processes alone, beside the ends of faults that are counted and timed
//! ([`crate::fault`]), so nobody else pays for it. Of a process that faults much the event passes over most, by a prime
//! number that no rhythm of the program is likely to have; of those that are left each is drawn by itself.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::{bpf_get_current_pid_tgid, bpf_get_prandom_u32},
    macros::{map, perf_event},
    maps::HashMap,
    programs::PerfEventContext,
};
use memtrace_common::{
    counter::Counter,
    growth::Growing,
    record::{FAULT_PROTECTION, Kind, Touch},
};

use crate::{
    emit::{Urgency, emit, header_of},
    fault, fault_stack,
    run_time::{Hook, measured},
};

/// The processes that grow, and how they are sampled. Children inherit the events and are
/// not in here.
#[map]
static GROWING: HashMap<u32, Growing> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// PERF_COUNT_SW_PAGE_FAULTS_MIN: a fault that waits for I/O brings back what was touched before.
#[perf_event]
pub fn fault_touch(ctx: PerfEventContext) -> u32 {
    measured(Hook::Kernel, || touch(&ctx));
    0
}

#[inline(always)]
fn touch(ctx: &PerfEventContext) {
    let ids = bpf_get_current_pid_tgid();
    // SAFETY: the value is copied at once.
    let Some(&Growing { one_in, stands_for }) = (unsafe { GROWING.get(&((ids >> 32) as u32)) })
    else {
        return;
    };
    // SAFETY: the helper takes no argument.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    if (random * u64::from(one_in)) >> 32 != 0 {
        return;
    }
    // SAFETY: the context is valid while the program runs.
    let (address, cs) = unsafe { ((*ctx.ctx).addr, (*ctx.ctx).regs.cs) };
    // The page was there before: it is copied, or may be written now.
    if fault::told_at_start(ids as u32, address) & FAULT_PROTECTION != 0 {
        return;
    }
    let stack = fault_stack::take(ctx, cs & 3 == 0);
    let mut header = header_of(Kind::Touch, ids);
    header.extra = stands_for;
    let record = Touch {
        header,
        address,
        stack,
    };
    emit(record, Counter::LostTouch, Urgency::Usual);
}
