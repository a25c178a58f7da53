//! memtrace's kernel-side programs: filter, stamp, reserve, submit.
//!
//! Every program begins with the filter ([`target::current`]): a process that is not traced pays for
//! the hook and one map look-up. Every helper's result is checked; what could not be recorded is
//! counted under a name ([`memtrace_common::counter::Counter`]).
//!
//! A file per topic, named as on the user side: `process`, `vma`, `fault`, `fault_stack`, `fault_window`, `growth`, `residency`, `heap`, `sample`,
//! `stack`, `unwind`, `mapped`, `python`; and `window`, which the latter read by, and `floor` and `run_time`, for measuring.
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unstable_features,
        reason = "inline assembly for BPF is not stable yet"
    ),
    feature(asm_experimental_arch)
)]
#![no_std]
#![no_main]

mod abi;
mod emit;
mod fault;
mod fault_stack;
mod fault_window;
mod floor;
mod growth;
mod heap;
mod mapped;
mod process;
mod python;
mod residency;
mod ring;
mod run_time;
mod sample;
mod slot;
mod stack;
mod target;
mod unwind;
mod vma;
mod vma_event;
mod window;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// What the kernel calls "Dual MIT/GPL": helpers that are for GPL programs only are allowed.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
