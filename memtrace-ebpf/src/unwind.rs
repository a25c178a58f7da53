//! Walks a stack by the unwind rules of the modules it leads through.
//!
//! For each frame one look-up in a cache of rules by address; where that misses, the mapping is searched for
//! the address and the module's rows for the rule. The tables are the user side's. Where they are behind, the
//! kernel is asked for the mapping ([`mapped`]).

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    helpers::{bpf_loop, bpf_probe_read_user},
    macros::map,
    maps::{Array, HashMap},
};
use memtrace_common::{
    counter::Counter,
    record::{Call, Stack},
    target::Target,
    unwind::{
        ADDITION, BY_FRAME_POINTER, CodeSpace, End, FIRST_ROW, INTERRUPTED, MAX_CODE_MAPPINGS,
        MAX_FRAMES, Memory, REMOVAL, REMOVALS, Registers, Rule, StackHash, Step, search, step,
    },
};

use crate::{
    emit::{add, count},
    heap,
    mapped::{NOT_KNOWN, NOT_MAPPED, mapped_look_up},
    python,
    target::TARGETS,
    window::Window,
};

/// Rows of all modules. Its size is set when it is loaded; the user side maps and fills it.
#[map]
static UNWIND_ROWS: Array<u64> = Array::with_max_entries(1 << 21, BPF_F_MMAPABLE);

/// Executable mappings of each traced process.
#[map]
static CODE_SPACES: HashMap<u32, CodeSpace> = HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);

/// Lines of the cache: half of a key, and a rule below.
#[map]
static RULE_CACHE: Array<u64> = Array::with_max_entries(CACHE_LINES, 0);

const CACHE_LINES: u32 = 1 << 16;

/// The mappings of a process, if they may be relied on.
#[inline(always)]
fn space(pid: u32, code_changes: u64) -> Option<&'static CodeSpace> {
    // SAFETY: an entry is replaced as a whole and freed after a grace period, which outlasts the program.
    let space = unsafe { CODE_SPACES.get(&pid) }?;
    ((space.as_of ^ code_changes) & REMOVALS == 0).then_some(space)
}

/// A child starts with what its parent has mapped.
#[inline(always)]
pub fn inherit(parent: u32, child: u32) {
    // SAFETY: as above.
    if let Some(space) = unsafe { CODE_SPACES.get(&parent) }
        && CODE_SPACES.insert(&child, space, 0).is_err()
    {
        count(Counter::UnwindMappingsFull);
    }
}

/// The process has a new program.
#[inline(always)]
pub fn replaced(pid: u32) {
    forget(pid);
    change(pid, REMOVAL + ADDITION);
}

/// Nothing of the process is mapped any more.
#[inline(always)]
pub fn forget(pid: u32) {
    // It was not there where no code was ever seen; that is no loss.
    let _ = CODE_SPACES.remove(&pid);
}

/// A memory system call returned: if it changed what can be executed, the tables are behind until the user
/// side has caught up. To be called once the call's own record is sent.
#[inline(always)]
pub fn note(pid: u32, call: Call, address: u64, length: u64, protection: u64, result: i64) {
    const PROT_EXEC: u64 = 4;
    if result < 0 && result > -4096 {
        return;
    }
    let adds = match call {
        Call::Mmap | Call::Mprotect => protection & PROT_EXEC != 0,
        Call::Munmap | Call::Mremap => false,
        _ => return,
    };
    let start = if call as u32 == Call::Mmap as u32 {
        result as u64
    } else {
        address
    };
    // Whatever is mapped over code, executable or not, removes it.
    let end = start.wrapping_add(length);
    if call as u32 != Call::Mprotect as u32 && unwind_may_hold_code(pid, start, end) != 0 {
        change(pid, REMOVAL);
    }
    if adds {
        change(pid, ADDITION);
    }
}

#[inline(always)]
fn change(pid: u32, by: u64) {
    if let Some(target) = TARGETS.get_ptr_mut(&pid) {
        // SAFETY: the pointer is to a live, aligned map value.
        unsafe { add(&raw mut (*target).code_changes, by) };
    }
}

/// 1 where a range holds code that has rules, or may: code that is not in the table yet would come into it after it is
/// gone. Global, as [`unwind_look_up`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unwind_may_hold_code(pid: u32, start: u64, end: u64) -> u64 {
    // SAFETY: as in `space`; the count is one word.
    let (Some(space), Some(target)) = (unsafe { (CODE_SPACES.get(&pid), TARGETS.get(&pid)) })
    else {
        return 1;
    };
    if (space.as_of ^ target.code_changes) & !REMOVALS != 0 {
        return 1;
    }
    let below = mappings_below(space, end.wrapping_sub(1));
    if below == 0 {
        return 0;
    }
    let last = &space.mappings[(below as usize - 1) & (MAX_CODE_MAPPINGS - 1)];
    u64::from(last.rows != 0 && last.start.wrapping_add(u64::from(last.length)) > start)
}

/// Mappings that start at an address or below, at most all but one of those there is room for.
///
/// Without a branch: an index into a map's value is tracked by the verifier with all that it came from, so that each
/// branch would double the paths that it walks.
#[inline(never)]
fn mappings_below(space: &CodeSpace, address: u64) -> u64 {
    let mut below = 0;
    let mut step = MAX_CODE_MAPPINGS / 2;
    while step > 0 {
        let start = space.mappings[within(below + step - 1)].start;
        below += step & all_ones_where_at_most(start, address) as usize;
        step /= 2;
    }
    below as u64
}

/// An index of a mapping. The compiler, which would else know that it is small enough, is not to leave out what tells
/// the verifier.
#[inline(always)]
fn within(mut index: usize) -> usize {
    // SAFETY: arithmetic on a register.
    unsafe { asm!("{0} &= 0xffff", inout(reg) index, options(pure, nomem, nostack)) };
    index & (MAX_CODE_MAPPINGS - 1)
}

/// `-1` where `a <= b` else 0, by the borrow of `b - a`.
#[inline(always)]
fn all_ones_where_at_most(a: u64, b: u64) -> u64 {
    let mut borrow = (!b & a) | ((!b | a) & b.wrapping_sub(a));
    // SAFETY: arithmetic on a register, which the compiler is not to make a comparison, and so a branch, of.
    unsafe { asm!("{0} s>>= 63", inout(reg) borrow, options(pure, nomem, nostack)) };
    !borrow
}

/// A walk that is under way, in scratch memory. What is read from there is any number to the verifier, so it walks
/// each path once, where it would tell apart what it knows of a record on the BPF stack.
#[repr(C)]
pub struct Walk {
    pub registers: Registers,
    pub pid: u32,
    /// There are no mappings beside those of the table.
    settled: u32,
    /// Of the table of mappings; 0 where it may not be relied on.
    generation: u64,
    /// What the keys of cached rules by the table are made of.
    by_table: Seed,
    /// The same for rules that are not by the table: they hold until code is added, which alone brings another rule
    /// to an address.
    by_kernel: Seed,
    /// The part of the stack that is being walked.
    pub window: Window,
    /// Bits of the next frame.
    bits: u64,
    /// Of the frames so far.
    pub hash: StackHash,
    /// [`End`]
    pub end: u64,
    /// Frames so far; not beside the hash, see [`python::Frames`].
    pub count: u64,
    /// The Python functions among them.
    pub python: python::Frames,
    /// The frames.
    pub stack: Stack,
}

impl Walk {
    /// Begins with the frame whose registers and bits these are.
    #[inline(always)]
    pub fn begin(&mut self, registers: Registers, bits: u64, pid: u32, target: &Target) {
        let code_changes = target.code_changes;
        let space = space(pid, code_changes);
        self.registers = registers;
        self.pid = pid;
        self.settled = u32::from(space.is_some_and(|space| space.as_of == code_changes));
        self.generation = space.map_or(0, |space| space.generation);
        self.by_table = Seed::new(self.generation);
        // Spread over the lower bits: a seed has 48.
        self.by_kernel = Seed::new(
            (code_changes & !REMOVALS)
                .wrapping_mul(0x9e37_79b1)
                .wrapping_add(target.start_ns),
        );
        let place = space.map_or(0, |space| space.python);
        python::begin(self, place);
        self.bits = bits;
        self.hash = StackHash::EMPTY;
        self.count = 0;
        self.end = End::Truncated as u64;
    }

    /// So many frames are there already.
    #[inline(always)]
    pub fn begin_with(&mut self, count: u64) {
        let mut context: *mut Self = self;
        // SAFETY: the callback takes a pointer to a Walk, which outlives the loop.
        unsafe {
            bpf_loop(
                count as u32,
                known_frame as *mut c_void,
                (&raw mut context).cast(),
                0,
            )
        };
    }

    /// Walks to the end.
    #[inline(always)]
    pub fn run(&mut self) {
        let mut context: *mut Self = self;
        // SAFETY: as above.
        unsafe {
            bpf_loop(
                MAX_FRAMES as u32 / AT_ONCE,
                next_frames as *mut c_void,
                (&raw mut context).cast(),
                0,
            )
        };
    }
}

/// Counts a frame that is there already.
unsafe extern "C" fn known_frame(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `begin_with` passes its own.
    let walk = unsafe { &mut **context.cast::<*mut Walk>() };
    let frame = walk.stack.frames[walk.count as usize & (MAX_FRAMES - 1)];
    walk.hash.add(frame);
    walk.count += 1;
    0
}

/// Frames of one call of the loop's callback: the call costs as much as a third of a frame.
const AT_ONCE: u32 = 4;

const _: () = assert!((MAX_FRAMES as u32).is_multiple_of(AT_ONCE));

/// Walks some frames; 1 ends the loop.
unsafe extern "C" fn next_frames(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `run` passes its own.
    let walk = unsafe { &mut **context.cast::<*mut Walk>() };
    for _ in 0..AT_ONCE {
        if next_frame(walk) {
            return 1;
        }
    }
    0
}

/// Notes one frame and goes to its caller. Tells whether it was the last.
#[inline(always)]
fn next_frame(walk: &mut Walk) -> bool {
    if walk.count >= MAX_FRAMES as u64 {
        return true;
    }
    let ip = walk.registers.ip;
    // A return address points behind the call, perhaps into another function.
    let pc = if walk.bits & INTERRUPTED == 0 {
        ip.wrapping_sub(1)
    } else {
        ip
    };
    let rule = rule(walk, pc);
    if rule > u64::from(u32::MAX) {
        // A fault in an allocator that returns through a probe.
        let place = walk.registers.sp.wrapping_sub(8);
        if let Some(caller) = heap::behind_trampoline(ip, place) {
            walk.registers.ip = caller;
            return false;
        }
        let known = rule == NOT_MAPPED || (rule == NOT_KNOWN && walk.settled != 0);
        walk.end = if known { End::NoMapping } else { End::NotKnown } as u64;
        return true;
    }
    let rule = Rule(rule as u32);
    let (sp, bits) = (walk.registers.sp, walk.bits);
    let next = step(&mut walk.registers, rule, &mut walk.window);
    let frame = ip | bits | python::mark(&mut walk.python, sp, walk.registers.sp);
    walk.stack.frames[walk.count as usize & (MAX_FRAMES - 1)] = frame;
    walk.count += 1;
    walk.hash.add(frame);
    walk.bits = match next {
        Step::Caller => 0,
        Step::ByFramePointer => BY_FRAME_POINTER,
        Step::Interrupted => INTERRUPTED,
        Step::End(end) => {
            walk.end = end as u64;
            return true;
        }
    };
    false
}

/// Rows were written over while they were searched: perhaps those that the rule was looked up in.
const OVERWRITTEN: u64 = u64::MAX - 2;

/// The [`Rule`] for an address, [`NOT_MAPPED`], [`NOT_KNOWN`] or [`OVERWRITTEN`].
#[inline(always)]
fn rule(walk: &Walk, pc: u64) -> u64 {
    if walk.generation != 0 {
        let rule = cached(walk.by_table, pc, || {
            unwind_look_up(walk.pid, walk.generation, pc)
        });
        if rule <= u64::from(u32::MAX) || rule == OVERWRITTEN {
            return rule;
        }
    }
    cached(walk.by_kernel, pc, || mapped_look_up(pc))
}

/// A rule from the cache, else what `find` says, which is cached if it is one.
#[inline(always)]
fn cached(seed: Seed, pc: u64, find: impl FnOnce() -> u64) -> u64 {
    let key = seed.key(pc);
    let Some(line) = RULE_CACHE.get_ptr_mut(key as u32 & (CACHE_LINES - 1)) else {
        return NOT_KNOWN;
    };
    // SAFETY: an element of an array map; one word, so it is never seen half written.
    let cached = unsafe { line.read_volatile() };
    if cached >> 32 == key >> 16 && cached != 0 {
        return u64::from(cached as u32);
    }
    let before = overwritten();
    let rule = find();
    if overwritten() != before {
        return OVERWRITTEN;
    }
    if rule <= u64::from(u32::MAX) {
        // SAFETY: as above.
        unsafe { line.write_volatile((key >> 16) << 32 | rule) };
    }
    rule
}

/// How often rows were about to be written over: see [`FIRST_ROW`].
#[inline(always)]
fn overwritten() -> u64 {
    const { assert!(FIRST_ROW == 1) };
    match UNWIND_ROWS.get_ptr(0) {
        // SAFETY: an element of an array map; one word, so it is never seen half written.
        Some(count) => unsafe { count.read_volatile() },
        None => 0,
    }
}

/// What keys of the cache are made of beside the address.
#[derive(Clone, Copy)]
struct Seed(u64);

impl Seed {
    const MASK: u64 = (1 << 48) - 1;

    #[inline(always)]
    const fn new(generation: u64) -> Self {
        Self(generation.wrapping_mul(0x9e37_79b9_7f4a_7c15) & Self::MASK)
    }

    /// 48 bits, of which the lower 16 are the line and the rest is kept in it. One to one for the addresses of a
    /// seed; a line of another passes for one's own once in 2^32 times.
    #[inline(always)]
    const fn key(self, pc: u64) -> u64 {
        let mixed = (pc & Self::MASK) ^ self.0;
        let mixed = mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) & Self::MASK;
        mixed ^ mixed >> 24
    }
}

/// Searches the table of mappings: a [`Rule`] or [`NOT_MAPPED`], also where the table has been replaced since the
/// walk began.
///
/// A global function takes numbers alone, and the verifier walks its loops once, not once for each path that leads
/// to it (Documentation/bpf/verifier.rst; since 5.6).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unwind_look_up(pid: u32, generation: u64, pc: u64) -> u64 {
    // SAFETY: as in `space`.
    let Some(space) = (unsafe { CODE_SPACES.get(&pid) }) else {
        return NOT_MAPPED;
    };
    if space.generation != generation {
        return NOT_MAPPED;
    }
    let below = mappings_below(space, pc);
    if below == 0 {
        return NOT_MAPPED;
    }
    let mapping = &space.mappings[(below as usize - 1) & (MAX_CODE_MAPPINGS - 1)];
    if !mapping.holds(pc) {
        return NOT_MAPPED;
    }
    let offset = (pc - mapping.start) as u32 + mapping.offset;
    unwind_search(mapping.first_row, mapping.rows, offset)
}

/// The [`Rule`] for an offset in a file, by the file's rows. Global, as above.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unwind_search(first_row: u32, rows: u32, offset: u32) -> u64 {
    let rule = search(first_row, rows, offset, |row| UNWIND_ROWS.get(row).copied());
    u64::from(rule.0)
}

/// What is read first of a frame is its return address; the registers that its function saved lie below.
const SAVED: u64 = 48;

impl Memory for Window {
    #[inline(always)]
    fn word(&self, address: u64) -> Option<u64> {
        Self::word(self, address)
    }

    /// The window goes along with the walk. Where it could not be read it is not tried again.
    #[inline(always)]
    fn pair(&mut self, address: u64) -> Option<[u64; 2]> {
        let mut index = self.index(address, 2);
        if index.is_none() && !self.is_empty() {
            self.read(address.wrapping_sub(SAVED));
            index = self.index(address, 2);
        }
        match index {
            Some(index) => Some([self.at(index), self.at(index + 1)]),
            // SAFETY: the helper checks the user address.
            None => unsafe { bpf_probe_read_user(address as *const [u64; 2]) }.ok(),
        }
    }
}
