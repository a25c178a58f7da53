//! The kernel's own totals of an address space, read just before it is torn down.
//!
//! Nothing here runs per page: the totals correct, once, what page faults cannot tell (fault-around,
//! MAP_POPULATE, huge pages, reclaim).

use aya_ebpf::{
    Global, helpers::bpf_get_current_task, macros::raw_tracepoint, programs::RawTracePointContext,
};
use memtrace_common::{
    counter::Counter,
    record::{Kind, MEMORY_APPROXIMATE, MEMORY_FINAL, Memory},
    target::UNKNOWN,
};

use crate::{
    emit::{Urgency, emit, header},
    process::{current_mm, field, offsets},
    run_time::{Hook, measured},
    target,
};

/// Address of the kernel's `__per_cpu_offset`, 0 where kallsyms hides it.
#[unsafe(no_mangle)]
static PER_CPU_OFFSET: Global<u64> = Global::new(0);

/// Possible CPUs.
#[unsafe(no_mangle)]
static CPUS: Global<u32> = Global::new(0);

/// CPUs whose part of a counter is added at most; beyond, totals are marked approximate.
const MAX_CPUS: u32 = 256;

/// `signal:signal_deliver(signal, info, action)`: a signal without a handler that ends the process.
#[raw_tracepoint]
pub fn memory_before_signal(ctx: RawTracePointContext) -> i32 {
    measured(Hook::Kernel, || before_signal(&ctx));
    0
}

#[inline(always)]
fn before_signal(ctx: &RawTracePointContext) {
    if target::current().is_none() {
        return;
    }
    let signal: i32 = ctx.arg(0);
    // sa_handler is the first field of struct k_sigaction (include/linux/signal_types.h).
    let Some(handler) = field::<u64>(ctx.arg(2), 0) else {
        return;
    };
    // SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG and SIGWINCH end nothing: signal(7).
    let harmless = matches!(signal, 17..=23 | 28);
    if handler == 0 && !harmless {
        emit_totals(MEMORY_FINAL);
    }
}

/// Sends the totals of the current address space, if it has one and BTF tells where they are.
#[inline(never)]
pub fn emit_totals(flags: u16) {
    if let Some(record) = totals(flags) {
        emit(record, Counter::LostProcess, Urgency::Usual);
    }
}

#[inline(always)]
fn totals(flags: u16) -> Option<Memory> {
    let offsets = offsets();
    let mm = current_mm()?;
    let mut header = header(Kind::Memory);
    header.flags = flags;
    if !summable() && offsets.rss_percpu != UNKNOWN {
        header.flags |= MEMORY_APPROXIMATE;
    }
    Some(Memory {
        header,
        // include/linux/mm_types_task.h: the order of the members.
        file: counter(mm, 0)?,
        anonymous: counter(mm, 1)?,
        swap: counter(mm, 2)?,
        shared: counter(mm, 3)?,
        peak: field(mm, offsets.mm_hiwater_rss).unwrap_or(0),
        mapped: field(mm, offsets.mm_total_vm).unwrap_or(0),
        peak_mapped: field(mm, offsets.mm_hiwater_vm).unwrap_or(0),
        break_start: field(mm, offsets.mm_start_brk).unwrap_or(0),
        break_end: field(mm, offsets.mm_brk).unwrap_or(0),
        stack: field(mm, offsets.mm_start_stack).unwrap_or(0),
    })
}

/// Whether the per-CPU parts of a counter can be added.
#[inline(always)]
fn summable() -> bool {
    PER_CPU_OFFSET.load() != 0 && CPUS.load() <= MAX_CPUS
}

/// One member of `mm->rss_stat`, in pages.
#[inline(never)]
fn counter(mm: u64, member: u32) -> Option<i64> {
    let offsets = offsets();
    if offsets.mm_rss_stat == UNKNOWN {
        return None;
    }
    let base =
        mm + u64::from(offsets.mm_rss_stat) + u64::from(member) * u64::from(offsets.rss_stride);
    let mut sum: i64 = field(base, offsets.rss_count)?;
    if offsets.rss_percpu != UNKNOWN && summable() {
        let parts: u64 = field(base, offsets.rss_percpu)?;
        let per_cpu = PER_CPU_OFFSET.load();
        let cpus = CPUS.load();
        for cpu in 0..MAX_CPUS {
            if cpu >= cpus {
                break;
            }
            let shift: u64 = field(per_cpu, cpu * 8)?;
            sum += i64::from(field::<i32>(parts.wrapping_add(shift), 0)?);
        }
    }
    // A thread adds its part once in 64 faults, each of which may have mapped 16 pages of a file
    // (check_sync_rss_stat(), mm/memory.c, before 6.2). The parts of other threads are not added.
    // SAFETY: the helper takes no argument.
    let task = unsafe { bpf_get_current_task() };
    let own = offsets.task_rss_count;
    if own != UNKNOWN {
        sum += i64::from(field::<i32>(task, own + 4 * member)?);
    }
    Some(sum.max(0))
}
