//! Memory system calls: time and arguments at entry, one record at return, with the result.
//!
//! One raw tracepoint each for entry and return of all system calls, with the number as the first test. The
//! events of single calls (`syscalls:sys_enter_mmap` …) would cost others a little less, but each of them
//! takes the kernel tens of milliseconds to remove, one after the other.

use aya_ebpf::{
    Global,
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
    emit::{Urgency, count, emit, header},
    process::{field, live_threads},
    residency, target,
};

/// A call in flight. The slot of a thread is its id modulo the number of slots.
#[repr(C)]
#[derive(Clone, Copy)]
struct CallSlot {
    tid: u32,
    call: u32,
    entered_ns: u64,
}

#[map]
static SYSCALL_SLOTS: Array<CallSlot> = Array::with_max_entries(65_536, 0);

/// Slots minus one: a power of two minus one, set at load time like the size of every slot map.
#[unsafe(no_mangle)]
pub static SLOT_MASK: Global<u32> = Global::new(65_535);

/// Numbers of arch/x86/entry/syscalls/syscall_64.tbl.
const EXECVE: u64 = 59;
const EXECVEAT: u64 = 322;
const EXIT: u64 = 60;
const EXIT_GROUP: u64 = 231;

/// The call with this number, if it is one of those recorded.
#[inline(always)]
fn call(number: u64) -> Option<Call> {
    Some(match number {
        9 => Call::Mmap,
        10 => Call::Mprotect,
        11 => Call::Munmap,
        12 => Call::Brk,
        25 => Call::Mremap,
        28 => Call::Madvise,
        30 => Call::Shmat,
        67 => Call::Shmdt,
        _ => return None,
    })
}

#[inline(always)]
fn slot(tid: u32) -> Option<&'static mut CallSlot> {
    let slot = SYSCALL_SLOTS.get_ptr_mut(tid & SLOT_MASK.load())?;
    // SAFETY: an array map's element lives as long as the program; a slot is one thread's, and a second
    // thread on it is told by the tid.
    Some(unsafe { &mut *slot })
}

/// `raw_syscalls:sys_enter(regs, number)`.
#[raw_tracepoint]
pub fn syscall_enter(ctx: RawTracePointContext) -> i32 {
    let number: u64 = ctx.arg(1);
    let call = call(number);
    let ends = matches!(number, EXECVE | EXECVEAT | EXIT | EXIT_GROUP);
    if (call.is_none() && !ends) || target::current().is_none() {
        return 0;
    }
    let Some(call) = call else {
        // An execve may fail, and the address space goes on.
        let last = match number {
            EXIT_GROUP => true,
            EXIT => live_threads() == Some(1),
            _ => false,
        };
        if number != EXIT || last {
            residency::emit_totals(if last { MEMORY_FINAL } else { 0 });
        }
        return 0;
    };
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = slot(tid) else { return 0 };
    if slot.tid != 0 && slot.tid != tid {
        count(Counter::SlotCollision);
    }
    slot.tid = tid;
    slot.call = call as u32;
    // SAFETY: the helper takes no argument.
    slot.entered_ns = unsafe { bpf_ktime_get_ns() };
    0
}

/// Places of the six arguments in pt_regs (arch/x86/include/asm/ptrace.h): rdi, rsi, rdx, r10, r8, r9. They
/// still hold the arguments when the call returns.
const ARGUMENTS: [u32; 6] = [14 * 8, 13 * 8, 12 * 8, 7 * 8, 9 * 8, 8 * 8];

/// The call's number.
const ORIG_RAX: u32 = 15 * 8;

/// PROT_EXEC and MAP_ANONYMOUS, include/uapi/asm-generic/mman-common.h.
const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;

/// `raw_syscalls:sys_exit(regs, result)`.
#[raw_tracepoint]
pub fn syscall_exit(ctx: RawTracePointContext) -> i32 {
    let regs: u64 = ctx.arg(0);
    let Some(number) = field::<u64>(regs, ORIG_RAX) else {
        return 0;
    };
    let Some(call) = call(number) else { return 0 };
    if target::current().is_none() {
        return 0;
    }
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = slot(tid) else { return 0 };
    if slot.tid != tid || slot.call != call as u32 {
        return 0;
    }
    slot.tid = 0;
    let mut header = header(Kind::Syscall);
    header.extra = call as u32;
    let argument = |index: usize| field::<u64>(regs, ARGUMENTS[index]).unwrap_or(0);
    let record = Syscall {
        header,
        entered_ns: slot.entered_ns,
        result: ctx.arg(1),
        arguments: [
            argument(0),
            argument(1),
            argument(2),
            argument(3),
            argument(4),
        ],
        offset: if call == Call::Mmap { argument(5) } else { 0 },
    };
    // A new library may hold an allocator that is not probed yet.
    let library = call == Call::Mmap
        && record.arguments[2] & PROT_EXEC != 0
        && record.arguments[3] & MAP_ANONYMOUS == 0;
    let urgency = if library {
        Urgency::Now
    } else {
        Urgency::Usual
    };
    emit(record, Counter::LostSyscall, urgency);
    0
}
