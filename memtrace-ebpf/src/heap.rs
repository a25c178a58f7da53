//! Allocator functions: arguments at entry, one record at return; free at entry alone.
//!
//! What an allocator calls inside itself is not counted again. Two signs tell: the return address lies in
//! the allocator's own text, or the function was reached by a tail jump out of a probed one (same stack
//! pointer, and the return trampoline in place of the caller).

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{
        bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user,
    },
    macros::{map, uprobe, uretprobe},
    maps::Array,
    programs::{ProbeContext, RetProbeContext},
};
use memtrace_common::{
    counter::Counter,
    heap::{Function, GROUP_SIZE, MAX_GROUPS, Point},
    record::{Alloc, AllocFailed, Free, Header, Kind, Realloc},
    target::INHERITED_HEAP,
    unwind::{Registers, StackHash},
};

use crate::{
    emit::{Urgency, count, emit, header_of},
    floor,
    process::{current_mm, field, offsets},
    run_time::{Hook, measured},
    sample, slot, stack, target,
};

/// A thread of a traced process, and its call in flight.
#[repr(C)]
#[derive(Clone, Copy)]
struct CallSlot {
    /// 0 for none: the slot is free until a thread of a traced process takes it.
    tid: u32,
    /// [`Function`] as a number; 0 for none.
    function: u8,
    /// Whether a return probe will tell the return address.
    has_return_probe: bool,
    /// Whether the call's block is in the sample.
    sampled: bool,
    /// Whether blocks may have come from before a fork ([`INHERITED_HEAP`]).
    inherits: bool,
    /// [`target::generation`] when the thread's process was found to be traced.
    generation: u32,
    /// Records of the thread.
    records: u32,
    /// Bytes up to the next sample point ([`sample::takes`]).
    until_sample: u64,
    /// Where the return address lies.
    frame: u64,
    /// The return address, which the return trampoline takes the place of; 0 where it was not read.
    caller: u64,
    /// Where the allocator's own code lies: begin and length.
    own_code: [u64; 2],
    /// Where the return address of the last call lies that was the allocator's own: a tail jump out of it is internal too.
    internal_frame: u64,
    entered_ns: u64,
    /// Argument: block for realloc, place of the result for posix_memalign.
    pointer: u64,
    size: u64,
    stack: u64,
    /// The last stack that was sent before.
    last_stack: StackHash,
}

impl CallSlot {
    /// Whether the current thread's process is traced, and if so whether its heap is inherited. It is looked up
    /// once and remembered by the thread's slot, which its end clears.
    #[inline(always)]
    fn traced(&mut self, tid: u32) -> Option<bool> {
        let generation = target::generation();
        if self.tid == tid && self.generation == generation {
            return Some(self.inherits);
        }
        let (_, target) = target::current()?;
        let inherits = target.flags & INHERITED_HEAP != 0;
        if self.tid == 0 {
            self.function = 0;
            self.internal_frame = 0;
            self.tid = tid;
        }
        if self.tid == tid {
            self.generation = generation;
            self.inherits = inherits;
        }
        Some(inherits)
    }

    /// Takes the stack of the call that begins, if its block is in the sample. The return address is known from here on:
    /// a fault in the call may ask for it ([`call_in_flight`]).
    #[inline(always)]
    fn take_stack(&mut self, bp: u64) {
        if !self.sampled {
            if self.caller == 0 {
                self.caller = read_caller(self.frame);
            }
            return;
        }
        // At a function's entry the frame pointer is still the caller's.
        let mut caller = Registers {
            ip: self.caller,
            sp: self.frame + 8,
            bp,
        };
        self.stack = stack::intern(&mut caller, &mut self.last_stack);
        self.caller = caller.ip;
    }

    #[inline(always)]
    fn next_record(&mut self) -> Urgency {
        self.records = self.records.wrapping_add(1);
        Urgency::Frequent(self.records)
    }
}

#[map]
static CALL_SLOTS: Array<CallSlot> = Array::with_max_entries(65_536, 0);

#[map]
static POINTS: Array<Point> = Array::with_max_entries(MAX_GROUPS * GROUP_SIZE, 0);

/// The return trampoline is in the highest page of the address space: xol_add_vma(), kernel/events/uprobes.c,
/// asks for TASK_SIZE - PAGE_SIZE. It gets another one where the stack lies there, which is so without address
/// space randomisation.
const TRAMPOLINE: u64 = 0x7fff_ffff_e000;

/// The return address that lies at `frame`; 0, which is counted, where it cannot be read.
#[inline(always)]
pub fn read_caller(frame: u64) -> u64 {
    // SAFETY: the helper checks the user address.
    unsafe { bpf_probe_read_user(frame as *const u64) }.unwrap_or_else(|_| {
        count(Counter::CallerUnreadable);
        0
    })
}

#[inline(always)]
fn lies_in(code: [u64; 2], address: u64) -> bool {
    address.wrapping_sub(code[0]) < code[1]
}

/// Whether a return address is that of the trampoline where it usually is.
#[inline(always)]
pub fn is_trampoline(caller: u64) -> bool {
    caller & !0xfff == TRAMPOLINE
}

/// Whether an address is in the page of the return trampoline, wherever that is.
#[inline(always)]
fn in_trampoline(address: u64) -> bool {
    let page = address & !0xfff;
    page == TRAMPOLINE || Some(page) == trampoline()
}

#[inline(always)]
fn trampoline() -> Option<u64> {
    let area = field(current_mm()?, offsets().mm_xol_area)?;
    field(area, offsets().xol_area_address)
}

/// Entry of a function that allocates or frees.
#[uprobe]
pub fn heap_enter(ctx: ProbeContext) -> u32 {
    measured(Hook::User, || enter(&ctx));
    0
}

#[inline(always)]
fn enter(ctx: &ProbeContext) {
    let Some(call) = Call::enter(ctx.as_ptr()) else {
        return;
    };
    if call.point.function == Function::Free as u16 {
        call.free();
    } else {
        call.begin();
    }
}

/// Return of a function that allocates, through the return trampoline: the return address is off the stack.
#[uretprobe]
pub fn heap_return(ctx: RetProbeContext) -> u32 {
    measured(Hook::User, || finish(ctx.as_ptr(), 8));
    0
}

/// The `ret` instruction of a function that may throw: the return address is still on the stack.
#[uprobe]
pub fn heap_return_instruction(ctx: ProbeContext) -> u32 {
    measured(Hook::User, || finish(ctx.as_ptr(), 0));
    0
}

/// A call by the program, at its entry.
struct Call<'a> {
    regs: &'a pt_regs,
    point: &'static Point,
    slot: &'static mut CallSlot,
    ids: u64,
    inherits: bool,
    frame: u64,
    /// The return address; 0 where it was not read.
    caller: u64,
}

impl<'a> Call<'a> {
    /// The call at this probe, unless the process is not traced or the allocator is known to call itself.
    #[inline(always)]
    fn enter(ctx: *mut core::ffi::c_void) -> Option<Self> {
        if floor::hooks_only() {
            return None;
        }
        let ids = bpf_get_current_pid_tgid();
        let tid = ids as u32;
        let slot = slot(tid)?;
        let inherits = slot.traced(tid)?;
        // SAFETY: the context of a uprobe program is a pt_regs.
        let regs: &'a pt_regs = unsafe { &*ctx.cast::<pt_regs>() };
        // SAFETY: the context is this program's own.
        let group = unsafe { bpf_get_attach_cookie(ctx) } as u32;
        let point = POINTS.get(group * GROUP_SIZE + regs.rip as u32 % GROUP_SIZE)?;
        let frame = regs.rsp + u64::from(point.pushed);
        let mut call = Self {
            regs,
            point,
            slot,
            ids,
            inherits,
            frame,
            caller: 0,
        };
        if !call.is_told_by_return() {
            call.caller = read_caller(frame);
            if call.is_internal() {
                return None;
            }
        }
        Some(call)
    }

    /// Whether there is time to look at the return address when the stack is walked, or when a return probe tells it: to
    /// read it is a tenth of what this program takes. Within another call it may be the allocator's own, which is not to
    /// take the other's place.
    #[inline(always)]
    fn is_told_by_return(&self) -> bool {
        self.point.has_return_probe != 0
            && self.slot.tid == self.ids as u32
            && self.slot.function == 0
    }

    /// Whether the allocator calls itself, or jumped here from a function that is told.
    #[inline(always)]
    fn is_internal(&mut self) -> bool {
        let own = self.slot.tid == self.ids as u32;
        if lies_in(self.own_code(), self.caller) {
            if own {
                self.slot.internal_frame = self.frame;
            }
            return true;
        }
        // A call that a longjmp left has the same place without the trampoline.
        let may_be_tail_jump = own
            && ((self.slot.function != 0 && self.slot.frame == self.frame)
                || self.slot.internal_frame == self.frame);
        may_be_tail_jump && in_trampoline(self.caller)
    }

    #[inline(always)]
    fn own_code(&self) -> [u64; 2] {
        let Point {
            internal_start: start,
            internal_end: end,
            ..
        } = *self.point;
        [
            self.regs.rip.wrapping_add(start as u64),
            end.wrapping_sub(start) as u64,
        ]
    }

    /// A block is given back: recorded before it can belong to another.
    #[inline(always)]
    fn free(self) {
        let address = self.regs.rdi;
        if address != 0 && tells_free(self.ids, self.inherits, address) {
            let record = Free {
                header: header_of(Kind::Free, self.ids),
                address,
            };
            emit(record, Counter::LostFree, self.slot.next_record());
        }
    }

    /// Remembers the arguments until the return.
    #[inline(always)]
    fn begin(self) {
        let own_code = self.own_code();
        let Self {
            regs,
            point,
            slot,
            ids,
            inherits,
            frame,
            caller,
        } = self;
        let tid = ids as u32;
        if slot.function != 0 {
            count(if slot.tid == tid {
                Counter::CallAbandoned
            } else {
                Counter::SlotCollision
            });
        }
        let function = u32::from(point.function);
        let (pointer, size) = arguments(regs, function);
        slot.tid = tid;
        slot.generation = target::generation();
        slot.inherits = inherits;
        slot.function = function as u8;
        slot.has_return_probe = point.has_return_probe != 0;
        slot.frame = frame;
        slot.own_code = own_code;
        slot.internal_frame = 0;
        slot.pointer = pointer;
        slot.size = size;
        // SAFETY: the helper takes no argument.
        slot.entered_ns =
            if function == Function::Realloc as u32 || function == Function::Reallocarray as u32 {
                unsafe { bpf_ktime_get_ns() }
            } else {
                0
            };
        slot.sampled = sample::takes(&mut slot.until_sample, size);
        slot.caller = caller;
        slot.stack = 0;
        if stack::is_on() {
            slot.take_stack(regs.rbp);
        }
    }
}

#[inline(always)]
fn slot(tid: u32) -> Option<&'static mut CallSlot> {
    let slot = CALL_SLOTS.get_ptr_mut(slot::index(tid))?;
    // SAFETY: an array map's element lives as long as the program; the tid in it says whose it is.
    Some(unsafe { &mut *slot })
}

/// Pointer and size among the arguments. An overflowing product is a call that fails.
#[inline(always)]
fn arguments(regs: &pt_regs, function: u32) -> (u64, u64) {
    const CALLOC: u32 = Function::Calloc as u32;
    const REALLOC: u32 = Function::Realloc as u32;
    const REALLOCARRAY: u32 = Function::Reallocarray as u32;
    const POSIX_MEMALIGN: u32 = Function::PosixMemalign as u32;
    const ALIGNED_ALLOC: u32 = Function::AlignedAlloc as u32;
    match function {
        CALLOC => (0, regs.rdi.wrapping_mul(regs.rsi)),
        REALLOC => (regs.rdi, regs.rsi),
        REALLOCARRAY => (regs.rdi, regs.rsi.wrapping_mul(regs.rdx)),
        POSIX_MEMALIGN => (regs.rdi, regs.rdx),
        ALIGNED_ALLOC => (0, regs.rsi),
        _ => (0, regs.rdi),
    }
}

/// The return of a call by the program: the one that began with this stack pointer. Where a tail jump led into
/// another probed function both return at once, with one result, and the first tells it.
#[inline(always)]
fn finish(ctx: *mut core::ffi::c_void, popped: u64) {
    if floor::hooks_only() {
        return;
    }
    let ids = bpf_get_current_pid_tgid();
    let tid = ids as u32;
    let Some(slot) = slot(tid) else { return };
    // SAFETY: the context of a uprobe program is a pt_regs.
    let regs = unsafe { &*ctx.cast::<pt_regs>() };
    if slot.tid != tid || slot.function == 0 || slot.frame != regs.rsp.wrapping_sub(popped) {
        return;
    }
    let mut caller = slot.caller;
    if caller == 0 && slot.has_return_probe {
        // The `ret` of a function that a tail jump led to: the return probe of the first one is next.
        if popped == 0 {
            return;
        }
        // The kernel has put the return address where the trampoline's would be (uprobe_handle_trampoline(),
        // kernel/events/uprobes.c): that of the first call, where a tail jump led from one to another.
        caller = regs.rip;
    }
    let function = u32::from(slot.function);
    slot.function = 0;
    if lies_in(slot.own_code, caller) {
        return;
    }
    let result = if function == Function::PosixMemalign as u32 {
        memalign_result(slot.pointer, regs.rax)
    } else {
        regs.rax
    };
    emit_result(slot, ids, function, result);
}

/// Where the current thread's call in flight has its return address, and what that is: what is there may be the
/// trampoline.
#[inline(always)]
pub fn call_in_flight() -> Option<(u64, u64)> {
    let tid = bpf_get_current_pid_tgid() as u32;
    let slot = slot(tid)?;
    (slot.tid == tid && slot.function != 0).then_some((slot.frame, slot.caller))
}

/// What is behind the return address of the current thread's call in flight, if that is `ip` and lies at `frame`.
#[inline(always)]
pub fn behind_trampoline(ip: u64, frame: u64) -> Option<u64> {
    let (place, caller) = call_in_flight()?;
    // While the stack of the call itself is walked, it was not read yet.
    (place == frame && caller != 0 && ip != caller).then_some(caller)
}

/// A thread ended, or has another id from now on: its id may come back as another process's.
#[inline(always)]
pub fn forget(tid: u32) {
    if let Some(slot) = slot(tid)
        && slot.tid == tid
    {
        slot.tid = 0;
    }
}

/// posix_memalign stores the block's address and returns 0, or returns an error.
#[inline(always)]
fn memalign_result(place: u64, status: u64) -> u64 {
    if status as u32 != 0 {
        return 0;
    }
    // SAFETY: the helper checks the user address.
    unsafe { bpf_probe_read_user(place as *const u64) }.unwrap_or(0)
}

/// Whether the release of a block is told.
#[inline(always)]
fn tells_free(ids: u64, inherits: bool, address: u64) -> bool {
    // Both are to happen: a forked process may have its own block at an address that it inherited.
    !sample::is_on() || sample::forget(ids, address) | inherits
}

/// Whether a block that is in the sample is told.
#[inline(always)]
fn tells_block(ids: u64, address: u64) -> bool {
    if !sample::is_on() {
        return true;
    }
    let remembered = sample::remember(ids, address);
    if !remembered {
        count(Counter::SampledFull);
    }
    remembered
}

#[inline(always)]
fn emit_result(slot: &mut CallSlot, ids: u64, function: u32, result: u64) {
    let reallocates = (function == Function::Realloc as u32
        || function == Function::Reallocarray as u32)
        && slot.pointer != 0;
    let (size, stack) = (slot.size, slot.stack);
    // Both are to happen: the old block of a realloc leaves the sample, and the new one enters it or not.
    let old_told =
        reallocates && (result != 0 || size == 0) && tells_free(ids, slot.inherits, slot.pointer);
    let new_told = result != 0 && slot.sampled && tells_block(ids, result);
    if result == 0 && reallocates && size == 0 && !old_told {
        return;
    }
    if result != 0 && !old_told && !new_told {
        return;
    }
    let urgency = slot.next_record();
    if result == 0 {
        if reallocates && size == 0 {
            let header = Header {
                time_ns: slot.entered_ns,
                ..header_of(Kind::Free, ids)
            };
            emit(
                Free {
                    header,
                    address: slot.pointer,
                },
                Counter::LostFree,
                urgency,
            );
        } else {
            let header = Header {
                extra: function,
                ..header_of(Kind::AllocFailed, ids)
            };
            emit(
                AllocFailed { header, size },
                Counter::LostAllocation,
                urgency,
            );
        }
    } else if reallocates {
        let record = Realloc {
            header: header_of(Kind::Realloc, ids),
            entered_ns: slot.entered_ns,
            old_address: slot.pointer,
            // 0 where only the old block is in the sample.
            new_address: if new_told { result } else { 0 },
            size,
            stack,
        };
        emit(record, Counter::LostReallocation, urgency);
    } else {
        let header = Header {
            extra: function,
            ..header_of(Kind::Alloc, ids)
        };
        let record = Alloc {
            header,
            address: result,
            size,
            stack,
        };
        emit(record, Counter::LostAllocation, urgency);
    }
}
