//! Stacks of faults: of a sample of the minor ones, and of all that wait for I/O, which cost more by far.
//!
//! They are taken when the fault was handled, so its latency is without them.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _, Global,
    helpers::{
        bpf_get_prandom_u32,
        generated::{bpf_get_current_task_btf, bpf_get_stack, bpf_task_pt_regs},
    },
    programs::PerfEventContext,
};
use memtrace_common::{
    frame::interrupted,
    record::Stack,
    sampling::distance,
    unwind::{INTERRUPTED, Registers},
};

use crate::{
    process::field,
    stack::{self, Start},
};

/// Mean distance between the faults whose stack is taken; 0 takes none.
#[unsafe(no_mangle)]
static FAULT_SAMPLE: Global<u64> = Global::new(0);

/// Frames of the kernel at most.
const KERNEL_FRAMES: usize = 16;

/// Whether a fault is in the sample. `until` are the thread's minor faults up to the next that is; 0 before the
/// first one was drawn.
#[inline(always)]
pub fn takes(until: &mut u64, major: bool) -> bool {
    let mean = FAULT_SAMPLE.load();
    if mean == 0 || major {
        return mean != 0;
    }
    // SAFETY: the helper takes no argument.
    let next = || distance(mean, unsafe { bpf_get_prandom_u32() });
    if *until == 0 {
        *until = next();
    }
    *until -= 1;
    *until == 0
}

/// Id of the stack of a fault, whose registers the context has.
#[inline(always)]
pub fn take(ctx: &PerfEventContext, in_kernel: bool) -> u64 {
    // SAFETY: the context is valid while the program runs.
    let regs = unsafe { &(*ctx.ctx).regs };
    let registers = Registers {
        ip: regs.rip,
        sp: regs.rsp,
        bp: regs.rbp,
    };
    let mut start = if in_kernel {
        let Some(caller) = entered() else { return 0 };
        Start::fault(caller, 0, registers.ip)
    } else {
        Start::fault(registers, INTERRUPTED, 0)
    };
    stack::intern_from(&mut start, |record| kernel_frames(ctx, record))
}

/// Registers with which the current thread entered the kernel.
#[inline(always)]
fn entered() -> Option<Registers> {
    // SAFETY: the helpers read the current task (5.15).
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf() as *mut _) } as u64;
    // struct pt_regs, arch/x86/include/asm/ptrace.h.
    Some(Registers {
        ip: field(regs, 16 * 8)?,
        sp: field(regs, 19 * 8)?,
        bp: field(regs, 4 * 8)?,
    })
}

/// Puts the kernel's frames into a record, innermost first, and says how many.
#[inline(always)]
fn kernel_frames(ctx: &PerfEventContext, record: &mut Stack) -> u64 {
    // SAFETY: the record has room for more frames.
    let bytes = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            record.frames.as_mut_ptr().cast::<c_void>(),
            (KERNEL_FRAMES * size_of::<u64>()) as u32,
            0,
        )
    };
    if bytes <= 0 {
        return 0;
    }
    record.frames[0] = interrupted(record.frames[0]);
    bytes as u64 / size_of::<u64>() as u64
}
