//! Page faults: start from the exception's tracepoint, end from the software event that the kernel emits
//! when a fault was handled (mm_account_fault(), mm/memory.c, since 5.9).

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{map, perf_event, raw_tracepoint},
    maps::Array,
    programs::{PerfEventContext, RawTracePointContext},
};
use memtrace_common::{
    counter::Counter,
    histogram::{BUCKETS, FaultHistogram, bucket},
    record::{
        FAULT_ACCESS_KNOWN, FAULT_INSTRUCTION, FAULT_KERNEL, FAULT_MAJOR, FAULT_PROTECTION,
        FAULT_WRITE, Fault, Kind,
    },
    target::{Target, UNFOLLOWED},
};

use crate::{
    emit::{Urgency, add, count, emit, header},
    fault_stack, fault_window, floor,
    target::{self, HISTOGRAMS},
    vma::SLOT_MASK,
};

/// A fault being handled.
#[repr(C)]
#[derive(Clone, Copy)]
struct FaultSlot {
    tid: u32,
    flags: u16,
    /// 1 once its end was seen.
    ended: u16,
    started_ns: u64,
    address: u64,
    ip: u64,
    /// Faults up to the next one whose stack is taken ([`fault_stack::takes`]).
    until_sample: u64,
}

#[map]
static FAULT_SLOTS: Array<FaultSlot> = Array::with_max_entries(65_536, 0);

/// 1 while the ends of faults are told of every process, on all CPUs: also of those that lost their own events.
#[map]
static ENDS_EVERYWHERE: Array<u32> = Array::with_max_entries(1, 0);

/// Whether each fault is sent; counts and latencies are kept in either case.
#[unsafe(no_mangle)]
static TELL_FAULTS: Global<u8> = Global::new(1);

/// Bits of the x86 error code (arch/x86/include/asm/trap_pf.h): protection, write, user, reserved, fetch.
const ERROR_PROTECTION: u64 = 1;
const ERROR_WRITE: u64 = 2;
const ERROR_INSTRUCTION: u64 = 16;

/// `exceptions:page_fault_user(address, regs, error_code)`.
#[raw_tracepoint]
pub fn fault_start_user(ctx: RawTracePointContext) -> i32 {
    start(&ctx, 0)
}

/// `exceptions:page_fault_kernel`: copy_to_user into fresh pages commits memory too.
#[raw_tracepoint]
pub fn fault_start_kernel(ctx: RawTracePointContext) -> i32 {
    start(&ctx, FAULT_KERNEL)
}

#[inline(always)]
fn slot(tid: u32) -> Option<&'static mut FaultSlot> {
    let slot = FAULT_SLOTS.get_ptr_mut(tid & SLOT_MASK.load())?;
    // SAFETY: an array map's element lives as long as the program; the tid in it says whose it is.
    Some(unsafe { &mut *slot })
}

/// Bits that the start told of the thread's fault at an address; 0 where it did not see that fault.
#[inline(always)]
pub fn told_at_start(tid: u32, address: u64) -> u16 {
    match slot(tid) {
        Some(slot) if slot.tid == tid && slot.address == address => slot.flags,
        _ => 0,
    }
}

#[inline(always)]
fn start(ctx: &RawTracePointContext, mode: u16) -> i32 {
    if floor::hooks_only() {
        return 0;
    }
    let Some((pid, target)) = target::current_or_met() else {
        return 0;
    };
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = slot(tid) else { return 0 };
    if slot.tid != 0 && slot.tid != tid && slot.ended == 0 {
        count(Counter::SlotCollision);
    }
    let error: u64 = ctx.arg(2);
    let mut flags = mode | FAULT_ACCESS_KNOWN;
    if error & ERROR_WRITE != 0 {
        flags |= FAULT_WRITE;
    }
    if error & ERROR_INSTRUCTION != 0 {
        flags |= FAULT_INSTRUCTION;
    }
    if error & ERROR_PROTECTION != 0 {
        flags |= FAULT_PROTECTION;
    }
    let regs: u64 = ctx.arg(1);
    // pt_regs.ip, arch/x86/include/asm/ptrace.h: the 17th register.
    let ip = crate::process::field(regs, 16 * 8).unwrap_or(0);
    slot.tid = tid;
    slot.flags = flags;
    if target.flags & UNFOLLOWED != 0 && ENDS_EVERYWHERE.get(0) != Some(&1) {
        // Its end is told all the same where the events of all CPUs come while it is handled.
        slot.ended = 1;
        return without_end(pid, target, flags, ctx.arg(0), ip);
    }
    slot.ended = 0;
    slot.address = ctx.arg(0);
    slot.ip = ip;
    // SAFETY: the helper takes no argument.
    slot.started_ns = unsafe { bpf_ktime_get_ns() };
    0
}

/// Counts a fault whose end will not be told: neither its latency nor whether it waits for I/O is known.
#[inline(always)]
fn without_end(pid: u32, target: Target, flags: u16, address: u64, ip: u64) -> i32 {
    let mut header = header(Kind::Fault);
    header.flags = flags;
    let record = Fault {
        header,
        address,
        ip,
        latency_ns: u64::MAX,
        stack: 0,
    };
    tally(pid, target, &record);
    tell(record);
    0
}

/// A fault starts whose end will be told; how it accesses is not known.
#[inline(always)]
pub fn remember(address: u64, in_kernel: bool) {
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = slot(tid) else { return };
    if slot.tid != 0 && slot.tid != tid && slot.ended == 0 {
        count(Counter::SlotCollision);
    }
    slot.tid = tid;
    slot.flags = if in_kernel { FAULT_KERNEL } else { 0 };
    slot.ended = 0;
    slot.address = address;
    // SAFETY: the helper takes no argument.
    slot.started_ns = unsafe { bpf_ktime_get_ns() };
}

/// PERF_COUNT_SW_PAGE_FAULTS_MIN.
#[perf_event]
pub fn fault_end_minor(ctx: PerfEventContext) -> u32 {
    end(&ctx, 0)
}

/// PERF_COUNT_SW_PAGE_FAULTS_MAJ.
#[perf_event]
pub fn fault_end_major(ctx: PerfEventContext) -> u32 {
    end(&ctx, FAULT_MAJOR)
}

#[inline(always)]
fn end(ctx: &PerfEventContext, major: u16) -> u32 {
    if floor::hooks_only() {
        return 0;
    }
    let Some((pid, target)) = target::current() else {
        return 0;
    };
    let mut header = header(Kind::Fault);
    // SAFETY: the context is valid while the program runs.
    let (address, cs, ip) = unsafe { ((*ctx.ctx).addr, (*ctx.ctx).regs.cs, (*ctx.ctx).regs.rip) };
    let mut record = Fault {
        header,
        address,
        ip,
        latency_ns: u64::MAX,
        stack: 0,
    };
    if cs & 3 == 0 {
        header.flags |= FAULT_KERNEL;
    }
    match slot(header.tid) {
        // Of faults that are timed in windows alone, one that started outside is not; nor is it the end of an earlier one
        // that had none (a signal in place of a page).
        Some(slot)
            if fault_window::is_on()
                && (slot.tid != header.tid || slot.ended != 0 || slot.address != address) =>
        {
            return 0;
        }
        // A thread with two events (opened for it, inherited, or of the CPU) ends each fault twice.
        Some(slot) if slot.tid == header.tid && slot.ended != 0 => return 0,
        Some(slot) if slot.tid == header.tid => {
            header.flags = slot.flags;
            record.address = slot.address;
            if !fault_window::is_on() {
                record.ip = slot.ip;
            }
            record.latency_ns = header.time_ns.saturating_sub(slot.started_ns);
            if fault_stack::takes(&mut slot.until_sample, major != 0) {
                record.stack = fault_stack::take(ctx, cs & 3 == 0);
            }
            // Only now: a read of the stack that fails is a fault that has a start and no end.
            slot.ended = 1;
        }
        _ => {}
    }
    header.flags |= major;
    record.header = header;
    tally(pid, target, &record);
    tell(record);
    0
}

/// Sends the fault, where single faults are asked for.
#[inline(always)]
fn tell(record: Fault) {
    if TELL_FAULTS.load() != 0 {
        emit(record, Counter::LostFault, Urgency::Usual);
    }
}

/// Counts the fault where a full ring buffer cannot lose it.
#[inline(always)]
fn tally(pid: u32, target: Target, fault: &Fault) {
    let Some(histogram) = HISTOGRAMS.get_ptr_mut(&target::key(pid, target.start_ns)) else {
        count(Counter::HistogramMissing);
        return;
    };
    // SAFETY: map values are 8-byte aligned and every field is a u64; additions are atomic, so that
    // threads of a process on several CPUs do not lose one.
    unsafe {
        let FaultHistogramFields {
            mode,
            sum,
            untimed,
            buckets,
        } = fields(histogram, fault.header.flags);
        add(mode, 1);
        if fault.latency_ns == u64::MAX {
            add(untimed, 1);
            return;
        }
        add(sum, fault.latency_ns);
        let index = bucket(fault.latency_ns) & (BUCKETS - 1);
        add(buckets.add(index), 1);
    }
}

struct FaultHistogramFields {
    mode: *mut u64,
    sum: *mut u64,
    untimed: *mut u64,
    buckets: *mut u64,
}

/// The fields that a fault with these flags adds to.
///
/// # Safety
/// `histogram` points to a map value.
#[inline(always)]
unsafe fn fields(histogram: *mut FaultHistogram, flags: u16) -> FaultHistogramFields {
    // SAFETY: field addresses of a map value.
    unsafe {
        let mode = if flags & FAULT_KERNEL != 0 {
            &raw mut (*histogram).kernel
        } else {
            &raw mut (*histogram).user
        };
        if flags & FAULT_MAJOR != 0 {
            FaultHistogramFields {
                mode,
                sum: &raw mut (*histogram).major_sum_ns,
                untimed: &raw mut (*histogram).major_untimed,
                buckets: (&raw mut (*histogram).major).cast(),
            }
        } else {
            FaultHistogramFields {
                mode,
                sum: &raw mut (*histogram).minor_sum_ns,
                untimed: &raw mut (*histogram).minor_untimed,
                buckets: (&raw mut (*histogram).minor).cast(),
            }
        }
    }
}
