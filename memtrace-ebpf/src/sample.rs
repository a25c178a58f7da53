//! Which blocks are recorded, and whose frees: all, or with `--sample-bytes` a sample.

use aya_ebpf::{
    Global,
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC},
    helpers::bpf_get_prandom_u32,
    macros::map,
    maps::HashMap,
};
use memtrace_common::sampling::{distance, sampled_size};

/// Mean distance between sample points, in bytes; 0 records every block.
#[unsafe(no_mangle)]
static SAMPLE_BYTES: Global<u64> = Global::new(0);

/// A live block of the sample.
#[repr(C)]
#[derive(Clone, Copy)]
struct Key {
    address: u64,
    pid: u64,
}

impl Key {
    #[inline(always)]
    fn new(ids: u64, address: u64) -> Self {
        Self {
            address,
            pid: ids >> 32,
        }
    }
}

/// Live blocks of the sample: their frees are told.
#[map]
static SAMPLED: HashMap<Key, u8> = HashMap::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);

/// Whether only a sample is recorded. It is constant once loaded.
#[inline(always)]
pub fn is_on() -> bool {
    SAMPLE_BYTES.load() != 0
}

/// Whether a block of this size is in the sample. `until` are the thread's bytes up to the next sample point; 0 before
/// the first one was drawn.
#[inline(always)]
pub fn takes(until: &mut u64, size: u64) -> bool {
    if !is_on() {
        return true;
    }
    let size = sampled_size(size);
    if *until == 0 {
        *until = next();
    }
    if *until > size {
        *until -= size;
        return false;
    }
    // The rest of the block may hold further points: they make no difference, and the next one is as far from its
    // end as from anywhere.
    *until = next();
    true
}

#[inline(always)]
fn next() -> u64 {
    // SAFETY: the helper takes no argument.
    distance(SAMPLE_BYTES.load(), unsafe { bpf_get_prandom_u32() })
}

/// Remembers a block of the sample. False where there is no room: its free would not be told.
#[inline(always)]
pub fn remember(ids: u64, address: u64) -> bool {
    SAMPLED
        .insert(&Key::new(ids, address), &1, u64::from(BPF_ANY))
        .is_ok()
}

/// Forgets a block that is given back. False where it was not in the sample.
#[inline(always)]
pub fn forget(ids: u64, address: u64) -> bool {
    SAMPLED.remove(&Key::new(ids, address)).is_ok()
}
