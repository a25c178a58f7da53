//! Memory system calls by their own events (`syscalls:sys_exit_mmap` …), of x86-64 programs alone: the kernel has none
//! for calls by i386 numbers.
//!
//! A program runs for the calls that matter and for no other. Their entries are not hooked: where two calls on one
//! address space race, which of them came first may be taken for the other way round.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    macros::tracepoint,
    programs::TracePointContext,
};
use memtrace_common::record::MEMORY_FINAL;

use crate::{
    abi::{self, Abi, Meaning},
    residency,
    run_time::{Hook, measured},
    target, vma,
};

/// `struct syscall_tp_t`, kernel/trace/trace_syscalls.c: the number behind the eight bytes that all events begin with,
/// then the result.
const NUMBER: usize = 8;
const RESULT: usize = 16;

fn read<T>(ctx: &TracePointContext, place: usize) -> Option<T> {
    // SAFETY: the helper checks the address; integers have no invalid values.
    unsafe { ctx.read_at(place) }.ok()
}

/// The return of a call that changes an address space.
#[tracepoint]
pub fn memory_call_event(ctx: TracePointContext) -> u32 {
    measured(Hook::Kernel, || tell(&ctx));
    0
}

#[inline(always)]
fn tell(ctx: &TracePointContext) -> Option<()> {
    let (pid, _) = target::current_or_met()?;
    let number = u64::from(read::<u32>(ctx, NUMBER)?);
    let result: i64 = read(ctx, RESULT)?;
    let Some(Meaning::Memory(call)) = abi::native(number) else {
        return None;
    };
    // SAFETY: the helpers read the current task (5.15).
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf() as *mut _) } as u64;
    let values = abi::values(Abi::Native, call, number, regs, result);
    vma::tell(pid, call, None, values);
    Some(())
}

/// The entry of execve, execveat and exit_group: what the address space was, which may end here.
#[tracepoint]
pub fn address_space_event(ctx: TracePointContext) -> u32 {
    measured(Hook::Kernel, || tell_totals(&ctx));
    0
}

#[inline(always)]
fn tell_totals(ctx: &TracePointContext) {
    if target::current_or_met().is_none() {
        return;
    }
    let number = read::<u32>(ctx, NUMBER).map(u64::from);
    let flags = match number.and_then(abi::native) {
        Some(Meaning::ExitGroup) => MEMORY_FINAL,
        _ => 0,
    };
    residency::emit_totals(flags);
}
