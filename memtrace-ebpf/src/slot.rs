//! Where a thread has its slot, in each of the maps that hold what is in flight.

use aya_ebpf::Global;

/// Slots minus one: a power of two minus one, set at load time like the size of every slot map.
#[unsafe(no_mangle)]
static SLOT_MASK: Global<u32> = Global::new(65_535);

/// Odd, so that ids which differ modulo the number of slots have different ones. Threads of one process have ids in
/// a row; side by side, their slots would share cache lines, which the CPUs would take from each other at each event.
const SPREAD: u32 = 0x9e37_79b1;

/// The index of a thread's slot, which it shares with threads whose ids are equal modulo the number of slots.
#[inline(always)]
pub fn index(tid: u32) -> u32 {
    tid.wrapping_mul(SPREAD) & SLOT_MASK.load()
}
