//! Where a thread has its slot, in each of the maps that hold what is in flight.

use aya_ebpf::Global;

/// Slots minus one: a power of two minus one, set at load time like the size of every slot map.
#[unsafe(no_mangle)]
static SLOT_MASK: Global<u32> = Global::new(65_535);

/// The index of a thread's slot, which it shares with threads whose ids are equal modulo the number of slots.
///
/// Threads of one process have ids, and so slots, in a row, some of which share cache lines. Spread over the map by a
/// multiplication they cost the same, with 2 threads and with 8 on 2 processors.
#[inline(always)]
pub fn index(tid: u32) -> u32 {
    tid & SLOT_MASK.load()
}
