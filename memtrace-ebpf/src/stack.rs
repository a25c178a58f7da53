//! Stacks by frame pointers, interned by hash: the frames are sent once, records carry the id.

use aya_ebpf::{
    Global,
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, pt_regs},
    helpers::bpf_probe_read_user,
    macros::map,
    maps::HashMap,
};
use memtrace_common::{
    counter::Counter,
    record::{Kind, MAX_FRAMES, STACK_TRUNCATED, Stack},
};

use crate::emit::{Urgency, count, emit, header};

/// Stacks whose frames were sent.
#[map]
static STACKS: HashMap<u64, u8> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// 0 with `--no-stacks`.
#[unsafe(no_mangle)]
static TAKE_STACKS: Global<u8> = Global::new(1);

/// A frame is never larger than a main thread's default stack.
const MAX_FRAME_BYTES: u64 = 8 << 20;

/// Lowest address a program can map (vm.mmap_min_addr).
const LOWEST_CODE: u64 = 0x1_0000;

/// End of user addresses (4-level page tables).
const HIGHEST_CODE: u64 = 0x7fff_ffff_f000;

/// Id of the current stack at the entry of a function; 0 where stacks are off or none could be read.
///
/// At a function's first instruction the frame pointer is still the caller's: the direct caller is not in
/// the chain of frames but at the top of the stack, and the caller read there comes in as `caller`.
#[inline(always)]
pub fn intern(regs: &pt_regs, caller: u64) -> u64 {
    if TAKE_STACKS.load() == 0 || caller == 0 {
        return 0;
    }
    let mut frames = [0u64; MAX_FRAMES];
    frames[0] = caller;
    let (count_frames, truncated) = walk(&mut frames, regs.rsp, regs.rbp);
    let id = hash(&frames);
    // SAFETY: the value is a constant byte.
    if unsafe { STACKS.get(&id) }.is_some() {
        return id;
    }
    let mut header = header(Kind::Stack);
    header.extra = count_frames;
    if truncated {
        header.flags = STACK_TRUNCATED;
        count(Counter::StackTruncated);
    }
    if emit(
        Stack { header, id, frames },
        Counter::LostStack,
        Urgency::Usual,
    ) && STACKS.insert(&id, &1, u64::from(BPF_ANY)).is_err()
    {
        count(Counter::StacksFull);
    }
    id
}

/// Follows saved frame pointers. A register that holds something else ends the walk: frames rise, are
/// aligned and return into user code.
#[inline(always)]
fn walk(frames: &mut [u64; MAX_FRAMES], sp: u64, bp: u64) -> (u32, bool) {
    let mut below = sp;
    let mut frame = bp;
    for index in 1..MAX_FRAMES {
        if frame <= below || frame - below > MAX_FRAME_BYTES || frame & 7 != 0 {
            return (index as u32, false);
        }
        // SAFETY: the helper checks the user address.
        let Ok([next, back]) = (unsafe { bpf_probe_read_user(frame as *const [u64; 2]) }) else {
            return (index as u32, false);
        };
        if !(LOWEST_CODE..HIGHEST_CODE).contains(&back) {
            return (index as u32, false);
        }
        frames[index] = back;
        below = frame;
        frame = next;
    }
    (MAX_FRAMES as u32, frame > below)
}

/// 64 bits of multiply and xor over all frames; never 0. Two of a million stacks share an id with a
/// probability of about 3 in 100 million.
#[inline(always)]
fn hash(frames: &[u64; MAX_FRAMES]) -> u64 {
    let mut hash = 0x9e37_79b9_7f4a_7c15u64;
    for &frame in frames {
        if frame == 0 {
            break;
        }
        hash = (hash ^ frame).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 32;
    }
    hash | 1
}
