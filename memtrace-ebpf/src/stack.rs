//! Stacks, interned by hash: the frames are sent once, records carry the id.

use core::arch::asm;

use aya_ebpf::{
    Global,
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC},
    helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, generated},
    macros::map,
    maps::{Array, HashMap},
};
use memtrace_common::{
    counter::Counter,
    frame::interrupted,
    record::{COPIED_STACK, COPY_OF_FAULT, Header, Kind, PythonCode, Stack, StackCopy},
    unwind::{End, Registers, SCRATCH_PER_CPU, StackHash},
};

use crate::{
    emit::{self, Urgency, count, emit, header, header_at},
    heap, mapped,
    process::{current_mm, field, offsets},
    python, target,
    unwind::Walk,
};

/// Stacks whose frames were sent, and a second hash of each.
#[map]
static STACKS: HashMap<u64, u32> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// 0 with `--no-stacks`.
#[unsafe(no_mangle)]
static TAKE_STACKS: Global<u8> = Global::new(1);

/// Frames are too many for the BPF stack, and a program may be preempted by one of another thread: each takes
/// a free one of its CPU. The size is set when it is loaded.
#[map]
static SCRATCH: Array<Scratch> = Array::with_max_entries(SCRATCH_PER_CPU, 0);

/// See [`SCRATCH`].
#[repr(C)]
pub struct Scratch {
    /// 1 while it is used.
    taken: u64,
    pub walk: Walk,
    pub code: PythonCode,
}

/// Where a stack is walked from. What is 0 for a call is apart, as in [`python::Frames`].
#[repr(C)]
pub struct Start {
    /// Bits of the first frame.
    bits: u64,
    /// A call's instruction is 0 where its return address was not read yet; that lies below the stack pointer.
    registers: Registers,
    /// Instruction of the kernel that took the fault, 0 for none.
    kernel_ip: u64,
    /// Of a [`StackCopy`].
    flags: u16,
}

impl Start {
    /// A fault. In kernel mode, the registers are those the thread entered the kernel with.
    #[inline(always)]
    pub fn fault(registers: Registers, bits: u64, kernel_ip: u64) -> Self {
        Self {
            registers,
            bits,
            kernel_ip,
            flags: COPY_OF_FAULT,
        }
    }

    /// Whether the return address of a call is not known yet.
    #[inline(always)]
    fn is_to_be_read(&self) -> bool {
        self.registers.ip == 0 && self.flags & COPY_OF_FAULT == 0
    }

    /// Whether there is somewhere to begin. A call that returns to the trampoline is within one that another tool
    /// probes.
    #[inline(always)]
    fn is_walked(&self) -> bool {
        let ip = self.registers.ip;
        ip != 0 && (self.flags & COPY_OF_FAULT != 0 || !heap::is_trampoline(ip))
    }
}

/// Whether stacks are taken.
#[inline(always)]
pub fn is_on() -> bool {
    TAKE_STACKS.load() != 0
}

/// Id of the stack of a call, whose caller's registers these are as it returns; 0 for none. Where their instruction is 0,
/// it is read with the stack. `last` is the thread's last stack: many a call is on the same one.
#[inline(always)]
pub fn intern(caller: &mut Registers, last: &mut StackHash) -> u64 {
    let mut start = Start {
        registers: *caller,
        bits: 0,
        kernel_ip: 0,
        flags: 0,
    };
    let id = intern_after(&mut start, last, |_| 0);
    caller.ip = start.registers.ip;
    id
}

/// The same from anywhere. `kernel_frames` puts the kernel's frames into the record, before those of the process, and
/// says how many.
#[inline(always)]
pub fn intern_from(start: &mut Start, kernel_frames: impl FnOnce(&mut Stack) -> u64) -> u64 {
    let mut none = StackHash::EMPTY;
    intern_after(start, &mut none, kernel_frames)
}

#[inline(always)]
fn intern_after(
    start: &mut Start,
    last: &mut StackHash,
    kernel_frames: impl FnOnce(&mut Stack) -> u64,
) -> u64 {
    if !is_on() {
        return 0;
    }
    let Some((pid, target)) = target::current() else {
        return 0;
    };
    let Some(scratch) = take_scratch() else {
        count(Counter::UnwindScratchBusy);
        if start.is_to_be_read() {
            start.registers.ip = heap::read_caller(start.registers.sp - 8);
        }
        return if start.is_walked() { single(start) } else { 0 };
    };
    // SAFETY: the record is this program's until it gives the scratch back.
    let walk = unsafe { &mut (*scratch).walk };
    if start.is_to_be_read() {
        let place = start.registers.sp - 8;
        walk.window.read(place);
        start.registers.ip = match walk.window.index(place, 1) {
            Some(index) => walk.window.at(index),
            None => heap::read_caller(place),
        };
    } else {
        walk.window.read(start.registers.sp);
    }
    if !start.is_walked() {
        give_back(scratch);
        return 0;
    }
    walk.begin(start.registers, start.bits, pid, &target);
    if start.kernel_ip != 0 {
        let count = kernel_frames(&mut walk.stack);
        walk.begin_with(count);
    }
    walk.run();
    python::add(walk);
    let id = if walk.end == End::NotKnown as u64 {
        None
    } else {
        if start.flags & COPY_OF_FAULT == 0 {
            count_end(walk.end);
        }
        Some(known(scratch, last))
    };
    give_back(scratch);
    id.unwrap_or_else(|| copy(start))
}

/// Nothing uses the scratch any more.
#[inline(always)]
fn give_back(scratch: *mut Scratch) {
    // SAFETY: a word of a map value.
    unsafe { (&raw mut (*scratch).taken).write_volatile(0) };
}

/// A free scratch record of this CPU.
#[inline(always)]
fn take_scratch() -> Option<*mut Scratch> {
    // SAFETY: the helper takes no argument.
    let first = unsafe { bpf_get_smp_processor_id() } * SCRATCH_PER_CPU;
    for index in 0..SCRATCH_PER_CPU {
        let scratch = SCRATCH.get_ptr_mut(first + index)?;
        let mut taken = 1u64;
        // SAFETY: BPF_XCHG on an aligned word of a map value.
        unsafe {
            asm!("{taken} = xchg_64({place} + 0, {taken})", place = in(reg) &raw mut (*scratch).taken, taken = inout(reg) taken);
        }
        if taken == 0 {
            return Some(scratch);
        }
    }
    None
}

/// Id of a stack that was walked; its frames are sent the first time.
#[inline(always)]
fn known(scratch: *mut Scratch, last: &mut StackHash) -> u64 {
    // SAFETY: it is ours, see `intern_after`.
    let walk = unsafe { &mut (*scratch).walk };
    if *last == walk.hash {
        return walk.hash.id();
    }
    let check = walk.hash.check();
    let mut id = walk.hash.id();
    // SAFETY: the value is one word, copied at once.
    if let Some(&known) = unsafe { STACKS.get(&id) } {
        if known == check {
            *last = walk.hash;
            return id;
        }
        count(Counter::StackCollision);
        id = walk.hash.other_id();
        // SAFETY: as above.
        if unsafe { STACKS.get(&id) }.is_some() {
            return id;
        }
    }
    if walk.python.count > 0 {
        python::tell(scratch, walk.python.count);
    }
    let record = &mut walk.stack;
    record.header = Header {
        flags: walk.end as u16,
        extra: walk.count as u32,
        ..header(Kind::Stack)
    };
    record.id = id;
    if emit::emit_stack(record, walk.count)
        && STACKS.insert(&id, &check, u64::from(BPF_ANY)).is_err()
    {
        count(Counter::StacksFull);
    }
    id
}

/// Of allocations: a sampled fault stands for others, and its site says how its stack ended.
#[inline(always)]
fn count_end(end: u64) {
    const TRUNCATED: u64 = End::Truncated as u64;
    const NO_RULES: u64 = End::NoRules as u64;
    const UNREADABLE: u64 = End::Unreadable as u64;
    const UNSUPPORTED: u64 = End::Unsupported as u64;
    const NO_MAPPING: u64 = End::NoMapping as u64;
    const STACK_POINTER: u64 = End::StackPointer as u64;
    let counter = match end {
        TRUNCATED => Counter::StackTruncated,
        NO_RULES => Counter::UnwindNoRules,
        UNREADABLE => Counter::UnwindUnreadable,
        UNSUPPORTED => Counter::UnwindUnsupported,
        NO_MAPPING => Counter::UnwindNoMapping,
        STACK_POINTER => Counter::UnwindStackPointer,
        _ => return,
    };
    count(counter);
}

/// A stack of its first frame alone.
#[inline(always)]
fn single(start: &Start) -> u64 {
    #[repr(C)]
    struct Single {
        header: Header,
        id: u64,
        frame: u64,
    }
    let frame = if start.kernel_ip != 0 {
        interrupted(start.kernel_ip)
    } else {
        start.registers.ip | start.bits
    };
    let mut hash = StackHash::EMPTY;
    hash.add(frame);
    let id = hash.id();
    let header = Header {
        flags: End::NotKnown as u16,
        extra: 1,
        ..header(Kind::Stack)
    };
    let record = Single { header, id, frame };
    emit(record, Counter::LostStack, Urgency::Usual);
    id
}

/// A stack's bytes, at most so many of them.
#[repr(C)]
struct Copied<const BYTES: usize> {
    head: StackCopy,
    bytes: [u8; BYTES],
}

const PAGE: u64 = 4096;

/// Sends the stack's bytes for the user side to walk; the first frame alone where there is no room for them.
#[inline(always)]
fn copy(from: &Start) -> u64 {
    const SMALL: usize = 2 << 10;
    const MIDDLE: usize = 8 << 10;
    const LARGE: usize = 64 << 10;
    let used = used(from.registers.sp, LARGE as u64);
    let sent = if used < SMALL as u64 {
        emit::emit_with(|record: *mut Copied<SMALL>, at| _ = fill(record, from, used, at))
    } else if used < MIDDLE as u64 {
        emit::emit_with(|record: *mut Copied<MIDDLE>, at| fill_or_pages(record, from, used, at))
    } else if used < LARGE as u64 {
        emit::emit_with(|record: *mut Copied<LARGE>, at| fill_or_pages(record, from, used, at))
    } else {
        emit::emit_with(|record: *mut Copied<MIDDLE>, at| fill_pages(record, from, at))
    };
    if !sent {
        count(Counter::UnwindNotCopied);
        return single(from);
    }
    count(Counter::UnwindCopied);
    COPIED_STACK
}

/// How much of a stack lies above the stack pointer: a first thread's is known to its end, another's is at most what
/// is left of its mapping.
#[inline(always)]
fn used(sp: u64, most: u64) -> u64 {
    let start = current_mm().and_then(|mm| field::<u64>(mm, offsets().mm_start_stack));
    let used = start.unwrap_or(0).wrapping_sub(sp);
    if used < most {
        return used;
    }
    mapped::mapped_end(sp).wrapping_sub(sp)
}

/// Reads the first `length` bytes, fewer than BYTES, a power of two. Tells whether they could be read.
#[inline(always)]
fn fill<const BYTES: usize>(
    record: *mut Copied<BYTES>,
    start: &Start,
    length: u64,
    at: u64,
) -> bool {
    let mut length = length;
    // SAFETY: adds nothing to a register. The compiler, which knows the bound from the caller, is not to leave out what
    // tells the verifier of 6.1.
    unsafe { asm!("{0} += 0", inout(reg) length, options(pure, nomem, nostack)) };
    let length = length & (BYTES as u64 - 1);
    // SAFETY: the record is reserved, with room for BYTES.
    unsafe {
        let bytes = (&raw mut (*record).bytes).cast();
        let from = start.registers.sp as *const _;
        let read = generated::bpf_probe_read_user(bytes, length as u32, from) == 0;
        (&raw mut (*record).head).write(head(start, if read { length } else { 0 }, at));
        read
    }
}

/// The same; where a page on the way is not there, as above a handler's stack, what lies below.
#[inline(always)]
fn fill_or_pages<const BYTES: usize>(
    record: *mut Copied<BYTES>,
    start: &Start,
    length: u64,
    at: u64,
) {
    if !fill(record, start, length, at) {
        fill_pages(record, start, at);
    }
}

/// Reads up to the end of the stack pointer's page, and the page above.
#[inline(always)]
fn fill_pages<const BYTES: usize>(record: *mut Copied<BYTES>, start: &Start, at: u64) {
    const { assert!(BYTES as u64 >= 2 * PAGE) };
    let sp = start.registers.sp;
    let first = PAGE - (sp & (PAGE - 1));
    // SAFETY: the record is reserved, with room for two pages.
    unsafe {
        let bytes = (&raw mut (*record).bytes).cast::<u8>();
        let mut length = 0;
        if generated::bpf_probe_read_user(bytes.cast(), first as u32, sp as *const _) == 0 {
            length = first;
            let next = bytes.add(first as usize);
            let above = (sp + first) as *const _;
            if generated::bpf_probe_read_user(next.cast(), PAGE as u32, above) == 0 {
                length += PAGE;
            }
        }
        (&raw mut (*record).head).write(head(start, length, at));
    }
}

#[inline(always)]
fn head(start: &Start, length: u64, at: u64) -> StackCopy {
    let (trampoline_at, returns_to) = if start.flags & COPY_OF_FAULT != 0 {
        heap::call_in_flight().unwrap_or((0, 0))
    } else {
        (0, 0)
    };
    StackCopy {
        header: Header {
            flags: start.flags,
            extra: length as u32,
            ..header_at(Kind::StackCopy, bpf_get_current_pid_tgid(), at)
        },
        registers: start.registers,
        kernel_ip: start.kernel_ip,
        trampoline_at,
        returns_to,
    }
}
