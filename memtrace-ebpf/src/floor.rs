//! What the hooks cost by themselves: loaded so, the programs on the paths that are hit most return at once.
//! `cargo xtask bench` measures memtrace against that.

use aya_ebpf::Global;

/// 1 to do nothing. It is constant once loaded, so the verifier drops the branch that is not taken.
#[unsafe(no_mangle)]
static HOOKS_ONLY: Global<u8> = Global::new(0);

/// Whether to return at once.
#[inline(always)]
pub fn hooks_only() -> bool {
    HOOKS_ONLY.load() != 0
}
