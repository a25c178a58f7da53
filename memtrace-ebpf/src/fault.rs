//! Page faults: start from the exception's tracepoint, end from the software event that the kernel emits
//! when a fault was handled (mm_account_fault(), mm/memory.c, since 5.9).

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_ns},
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
    emit::{Urgency, add, count, emit, header_of, now_ns},
    fault_stack, fault_window, floor,
    process::{field, offsets},
    run_time::{Hook, measured},
    slot,
    target::{self, HISTOGRAMS},
};

/// A thread of a traced process, and its fault being handled.
#[repr(C)]
#[derive(Clone, Copy)]
struct FaultSlot {
    tid: u32,
    flags: u16,
    /// 1 once its end was seen.
    ended: u16,
    /// 1 more than [`target::generation`] when the thread's process was found to be traced, so that it need not be
    /// looked up again; 0 where that does not hold until the thread ends.
    known: u32,
    /// Records of the thread.
    records: u32,
    /// Start of the process, a part of its histogram's key.
    process_ns: u64,
    started_ns: u64,
    address: u64,
    /// Faults up to the next one whose stack is taken ([`fault_stack::takes`]).
    until_sample: u64,
    /// A thread that is not traced, and beside it what `known` would be: another than the slot's, perhaps. One word, so
    /// it is never seen half written. Its look-ups are what other programs would pay for ours.
    passed_over: u64,
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
    measured(Hook::Kernel, || start(&ctx, 0))
}

/// `exceptions:page_fault_kernel`: copy_to_user into fresh pages commits memory too.
#[raw_tracepoint]
pub fn fault_start_kernel(ctx: RawTracePointContext) -> i32 {
    measured(Hook::Kernel, || start(&ctx, FAULT_KERNEL))
}

#[inline(always)]
fn slot(tid: u32) -> Option<&'static mut FaultSlot> {
    let slot = FAULT_SLOTS.get_ptr_mut(slot::index(tid))?;
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
    let ids = bpf_get_current_pid_tgid();
    let tid = ids as u32;
    let Some(slot) = slot(tid) else { return 0 };
    // Before the look-up: what is traced meanwhile is another generation's.
    let generation = target::generation().wrapping_add(1);
    let passed_over = u64::from(tid) << 32 | u64::from(generation);
    if slot.passed_over == passed_over {
        return 0;
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
    if slot.tid != tid || slot.known != generation {
        let Some((_, target)) = target::current_or_met() else {
            // What may trace it later makes it be looked up again: a fork by a traced process, or the user side, by the
            // generation. Into an area it may come at any time.
            if !target::has_area() {
                slot.passed_over = passed_over;
            }
            return 0;
        };
        take(slot, tid, &target, generation);
        if target.flags & UNFOLLOWED != 0 && ENDS_EVERYWHERE.get(0) != Some(&1) {
            // Its end is told all the same where the events of all CPUs come while it is handled.
            slot.ended = 1;
            slot.flags = flags;
            return without_end(ctx, ids, target.start_ns, flags);
        }
    }
    begin(slot, flags, ctx.arg(0));
    0
}

/// Makes a slot that of a thread of a traced process, which was looked up in a generation, one more than its number.
#[inline(always)]
fn take(slot: &mut FaultSlot, tid: u32, target: &Target, generation: u32) {
    if slot.tid != 0 && slot.tid != tid && slot.ended == 0 {
        count(Counter::SlotCollision);
    }
    // Nobody tells once more that a thread has ended which takes a fault while it does.
    let stays = target.flags & UNFOLLOWED == 0 && !is_exiting();
    slot.tid = tid;
    slot.process_ns = target.start_ns;
    slot.known = if stays { generation } else { 0 };
}

/// `PF_EXITING`, include/linux/sched.h; so it is taken to be where BTF does not tell.
#[inline(always)]
fn is_exiting() -> bool {
    const PF_EXITING: u32 = 4;
    // SAFETY: the helper takes no argument.
    let task = unsafe { bpf_get_current_task() };
    field::<u32>(task, offsets().task_flags).is_none_or(|flags| flags & PF_EXITING != 0)
}

#[inline(always)]
fn begin(slot: &mut FaultSlot, flags: u16, address: u64) {
    slot.flags = flags;
    slot.ended = 0;
    slot.address = address;
    // SAFETY: the helper takes no argument.
    slot.started_ns = unsafe { bpf_ktime_get_ns() };
}

/// A thread begins or ended, executed another program, or has another id from now on: what is known of its id may not
/// hold.
#[inline(always)]
pub fn forget(tid: u32) {
    let Some(slot) = slot(tid) else { return };
    if slot.tid == tid {
        slot.tid = 0;
        slot.known = 0;
    }
    if (slot.passed_over >> 32) as u32 == tid {
        slot.passed_over = 0;
    }
}

/// Counts a fault whose end will not be told: neither its latency nor whether it waits for I/O is known.
#[inline(always)]
fn without_end(ctx: &RawTracePointContext, ids: u64, process_ns: u64, flags: u16) -> i32 {
    let mut header = header_of(Kind::Fault, ids);
    header.flags = flags;
    // pt_regs.ip, arch/x86/include/asm/ptrace.h: the 17th register.
    let ip = field(ctx.arg(1), 16 * 8).unwrap_or(0);
    let record = Fault {
        header,
        address: ctx.arg(0),
        ip,
        latency_ns: u64::MAX,
        stack: 0,
    };
    tally(process_ns, &record);
    tell(record, Urgency::Usual);
    0
}

/// A fault starts whose end will be told; how it accesses is not known.
#[inline(always)]
pub fn remember(target: &Target, address: u64, in_kernel: bool) {
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = slot(tid) else { return };
    take(slot, tid, target, target::generation().wrapping_add(1));
    begin(slot, if in_kernel { FAULT_KERNEL } else { 0 }, address);
}

/// PERF_COUNT_SW_PAGE_FAULTS_MIN.
#[perf_event]
pub fn fault_end_minor(ctx: PerfEventContext) -> u32 {
    measured(Hook::Kernel, || end(&ctx, 0))
}

/// PERF_COUNT_SW_PAGE_FAULTS_MAJ.
#[perf_event]
pub fn fault_end_major(ctx: PerfEventContext) -> u32 {
    measured(Hook::Kernel, || end(&ctx, FAULT_MAJOR))
}

#[inline(always)]
fn end(ctx: &PerfEventContext, major: u16) -> u32 {
    if floor::hooks_only() {
        return 0;
    }
    let ids = bpf_get_current_pid_tgid();
    let tid = ids as u32;
    let Some(slot) = slot(tid) else { return 0 };
    // SAFETY: the context is valid while the program runs.
    let (address, cs, ip) = unsafe { ((*ctx.ctx).addr, (*ctx.ctx).regs.cs, (*ctx.ctx).regs.rip) };
    // Another address is that of a fault that had no end, a signal in place of a page.
    if slot.tid != tid || slot.ended != 0 || slot.address != address {
        return end_alone(slot, ids, (address, cs, ip), major);
    }
    let mut header = header_of(Kind::Fault, ids);
    header.flags = slot.flags | major;
    let mut record = Fault {
        header,
        address,
        ip,
        latency_ns: header.time_ns.saturating_sub(slot.started_ns),
        stack: 0,
    };
    if fault_stack::takes(&mut slot.until_sample, major != 0) {
        record.stack = fault_stack::take(ctx, cs & 3 == 0);
        record.header.time_ns = now_ns();
    }
    // Only now: a read of the stack that fails is a fault that has a start and no end.
    slot.ended = 1;
    tally(slot.process_ns, &record);
    slot.records = slot.records.wrapping_add(1);
    tell(record, Urgency::Frequent(slot.records));
    0
}

/// The end of a fault whose start was not seen.
#[inline(always)]
fn end_alone(slot: &FaultSlot, ids: u64, at: (u64, u64, u64), major: u16) -> u32 {
    // A thread with two events (opened for it, inherited, or of the CPU) ends each fault twice. Of faults that are timed
    // in windows alone, one that started outside is not.
    let ended = slot.tid == ids as u32 && slot.ended != 0;
    if ended || fault_window::is_on() {
        return 0;
    }
    let Some((_, target)) = target::current() else {
        return 0;
    };
    let (address, cs, ip) = at;
    let mut header = header_of(Kind::Fault, ids);
    header.flags = if cs & 3 == 0 { FAULT_KERNEL } else { 0 } | major;
    let record = Fault {
        header,
        address,
        ip,
        latency_ns: u64::MAX,
        stack: 0,
    };
    tally(target.start_ns, &record);
    tell(record, Urgency::Usual);
    0
}

/// Sends the fault, where single faults are asked for.
#[inline(always)]
fn tell(record: Fault, urgency: Urgency) {
    if TELL_FAULTS.load() != 0 {
        emit(record, Counter::LostFault, urgency);
    }
}

/// Counts the fault where a full ring buffer cannot lose it.
#[inline(always)]
fn tally(process_ns: u64, fault: &Fault) {
    let key = target::key(fault.header.pid, process_ns);
    let Some(histogram) = HISTOGRAMS.get_ptr_mut(&key) else {
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
