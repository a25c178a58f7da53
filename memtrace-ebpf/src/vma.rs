//! Memory system calls: arguments at entry, one record at return, with the result.

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{map, tracepoint},
    maps::Array,
    programs::TracePointContext,
};
use memtrace_common::{
    counter::Counter,
    record::{Call, Kind, Syscall},
};

use crate::{
    emit::{Urgency, count, emit, header},
    target,
};

/// A call in flight. The slot of a thread is its id modulo the number of slots.
#[repr(C)]
#[derive(Clone, Copy)]
struct CallSlot {
    tid: u32,
    call: u32,
    entered_ns: u64,
    arguments: [u64; 5],
    offset: u64,
}

#[map]
static SYSCALL_SLOTS: Array<CallSlot> = Array::with_max_entries(65_536, 0);

/// Slots minus one: a power of two minus one, set at load time like the size of every slot map.
#[unsafe(no_mangle)]
pub static SLOT_MASK: Global<u32> = Global::new(65_535);

#[inline(always)]
fn slot(tid: u32) -> Option<&'static mut CallSlot> {
    let slot = SYSCALL_SLOTS.get_ptr_mut(tid & SLOT_MASK.load())?;
    // SAFETY: an array map's element lives as long as the program; a slot is one thread's, and a second
    // thread on it is told by the tid.
    Some(unsafe { &mut *slot })
}

#[inline(always)]
fn enter(ctx: &TracePointContext, call: Call, arguments: usize) -> u32 {
    if target::current().is_none() {
        return 0;
    }
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = slot(tid) else { return 0 };
    if slot.tid != 0 && slot.tid != tid {
        count(Counter::SlotCollision);
    }
    slot.tid = tid;
    slot.call = call as u32;
    // SAFETY: the helper takes no argument.
    slot.entered_ns = unsafe { bpf_ktime_get_ns() };
    slot.offset = 0;
    for index in 0..6 {
        // SAFETY: sys_enter's arguments begin at 16, eight bytes each (include/trace/events/syscalls.h).
        let value = if index < arguments {
            unsafe { ctx.read_at::<u64>(16 + 8 * index) }.unwrap_or(0)
        } else {
            0
        };
        if index < 5 {
            slot.arguments[index] = value;
        } else {
            slot.offset = value;
        }
    }
    0
}

#[inline(always)]
fn leave(ctx: &TracePointContext, call: Call) -> u32 {
    if target::current().is_none() {
        return 0;
    }
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = slot(tid) else { return 0 };
    if slot.tid != tid || slot.call != call as u32 {
        return 0;
    }
    slot.tid = 0;
    // SAFETY: sys_exit's `ret`.
    let Ok(result) = (unsafe { ctx.read_at::<i64>(16) }) else { return 0 };
    let mut header = header(Kind::Syscall);
    header.extra = call as u32;
    let record = Syscall {
        header,
        entered_ns: slot.entered_ns,
        result,
        arguments: slot.arguments,
        offset: slot.offset,
    };
    emit(record, Counter::LostSyscall, Urgency::Usual);
    0
}

macro_rules! calls {
    ($($call:ident($arguments:literal): $enter:ident, $leave:ident;)*) => {$(
        #[tracepoint]
        pub fn $enter(ctx: TracePointContext) -> u32 {
            enter(&ctx, Call::$call, $arguments)
        }

        #[tracepoint]
        pub fn $leave(ctx: TracePointContext) -> u32 {
            leave(&ctx, Call::$call)
        }
    )*};
}

calls! {
    Brk(1): enter_brk, exit_brk;
    Mmap(6): enter_mmap, exit_mmap;
    Munmap(2): enter_munmap, exit_munmap;
    Mremap(5): enter_mremap, exit_mremap;
    Mprotect(3): enter_mprotect, exit_mprotect;
    Madvise(3): enter_madvise, exit_madvise;
    Shmat(3): enter_shmat, exit_shmat;
    Shmdt(1): enter_shmdt, exit_shmdt;
}
