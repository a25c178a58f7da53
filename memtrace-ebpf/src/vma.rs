//! Memory system calls: time and arguments at entry, one record at return, with the result.
//!
//! One raw tracepoint each for entry and return of all system calls, with the number as the first test. The
//! events of single calls (`syscalls:sys_exit_mmap` …) cost others less, but each of them takes the kernel tens of
//! milliseconds to remove, one after the other: they are for whom that does not matter (`vma_event.rs`).

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use memtrace_common::{
    counter::Counter,
    record::{Call, Kind, MEMORY_FINAL, Syscall},
};

use crate::{
    abi::{self, Meaning},
    emit::{Urgency, count, emit, header},
    floor,
    process::{field, live_threads},
    residency,
    run_time::{Hook, measured},
    slot, target, unwind,
};

/// A call in flight.
#[repr(C)]
#[derive(Clone, Copy)]
struct CallSlot {
    tid: u32,
    call: u32,
    entered_ns: u64,
}

#[map]
static SYSCALL_SLOTS: Array<CallSlot> = Array::with_max_entries(65_536, 0);

#[inline(always)]
fn slot(tid: u32) -> Option<&'static mut CallSlot> {
    let slot = SYSCALL_SLOTS.get_ptr_mut(slot::index(tid))?;
    // SAFETY: an array map's element lives as long as the program; a slot is one thread's, and a second
    // thread on it is told by the tid.
    Some(unsafe { &mut *slot })
}

/// `raw_syscalls:sys_enter(regs, number)`.
#[raw_tracepoint]
pub fn syscall_enter(ctx: RawTracePointContext) -> i32 {
    measured(Hook::Kernel, || enter(&ctx));
    0
}

#[inline(always)]
fn enter(ctx: &RawTracePointContext) {
    if floor::hooks_only() {
        return;
    }
    let number: u64 = ctx.arg(1);
    if !abi::may_matter(number) || target::current_or_met().is_none() {
        return;
    }
    let Some((meaning, _)) = abi::meaning(number, ctx.arg(0)) else {
        return;
    };
    let call = match meaning {
        Meaning::Memory(call) => call,
        // It may fail, and the address space goes on.
        Meaning::Execute => return residency::emit_totals(0),
        Meaning::Exit if live_threads() != Some(1) => return,
        Meaning::Exit | Meaning::ExitGroup => return residency::emit_totals(MEMORY_FINAL),
    };
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = slot(tid) else { return };
    if slot.tid != 0 && slot.tid != tid {
        count(Counter::SlotCollision);
    }
    slot.tid = tid;
    slot.call = call as u32;
    // SAFETY: the helper takes no argument.
    slot.entered_ns = unsafe { bpf_ktime_get_ns() };
}

/// The call's number in pt_regs (arch/x86/include/asm/ptrace.h).
const ORIG_RAX: u32 = 15 * 8;

/// PROT_EXEC and MAP_ANONYMOUS, include/uapi/asm-generic/mman-common.h.
const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;

/// `raw_syscalls:sys_exit(regs, result)`.
#[raw_tracepoint]
pub fn syscall_exit(ctx: RawTracePointContext) -> i32 {
    measured(Hook::Kernel, || exit(&ctx));
    0
}

#[inline(always)]
fn exit(ctx: &RawTracePointContext) {
    if floor::hooks_only() {
        return;
    }
    // Every system call of the machine comes here: to read its number would cost more than to see that none of this
    // thread is in flight.
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = slot(tid) else { return };
    if slot.tid != tid {
        return;
    }
    let regs: u64 = ctx.arg(0);
    let Some(number) = field::<u64>(regs, ORIG_RAX) else {
        return;
    };
    if !abi::may_matter(number) {
        return;
    }
    let Some((pid, _)) = target::current() else {
        return;
    };
    let Some((Meaning::Memory(call), abi)) = abi::meaning(number, regs) else {
        return;
    };
    if slot.call != call as u32 {
        return;
    }
    slot.tid = 0;
    let values = abi::values(abi, call, number, regs, ctx.arg(1));
    tell(pid, call, Some(slot.entered_ns), values);
}

/// Sends a call that returned: its six arguments and its result. Where its entry is not known, it is taken for short.
#[inline(always)]
pub fn tell(pid: u32, call: Call, entered_ns: Option<u64>, values: ([u64; 6], i64)) {
    let mut header = header(Kind::Syscall);
    header.extra = call as u32;
    let ([first, second, third, fourth, fifth, sixth], result) = values;
    let record = Syscall {
        header,
        entered_ns: entered_ns.unwrap_or(header.time_ns),
        result,
        arguments: [first, second, third, fourth, fifth],
        offset: if call == Call::Mmap { sixth } else { 0 },
    };
    // A new library may hold an allocator that is not probed yet.
    let library = call == Call::Mmap
        && record.arguments[2] & PROT_EXEC != 0
        && record.arguments[3] & MAP_ANONYMOUS == 0;
    let urgency = if library {
        Urgency::Awaited
    } else {
        Urgency::Usual
    };
    let [address, length, protection, ..] = record.arguments;
    emit(record, Counter::LostSyscall, urgency);
    unwind::note(pid, call, address, length, protection, result);
}
