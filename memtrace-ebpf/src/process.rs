//! Fork, exec, exit and thread names.

use aya_ebpf::{
    EbpfContext as _, Global,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel,
        bpf_probe_read_kernel_str_bytes, bpf_probe_read_user_buf,
    },
    macros::{map, raw_tracepoint},
    maps::PerCpuArray,
    programs::RawTracePointContext,
};
use aya_log_ebpf::warn;
use memtrace_common::{
    counter::Counter,
    record::{ARGUMENT_BYTES, Arguments, EXEC_UNFOLLOWED, Exec, Exit, Fork, Kind, Rename},
    target::{FOLLOW, INHERITED_HEAP, KernelOffsets, Target, UNFOLLOWED, UNKNOWN},
};

use crate::{
    emit::{Urgency, emit, emit_copy, header},
    fault, fault_window, heap, residency,
    run_time::{Hook, measured},
    target, unwind,
};

/// Offsets into the kernel's structures, from BTF.
#[unsafe(no_mangle)]
static OFFSETS: Global<KernelOffsets> = Global::new(KernelOffsets::NONE);

/// `include/linux/sched.h`: the new task shares the thread group.
const CLONE_THREAD: u64 = 0x0001_0000;

/// The kernel's structure offsets.
#[inline(always)]
pub fn offsets() -> KernelOffsets {
    OFFSETS.load()
}

/// Reads a field of a kernel structure whose offset BTF told; `None` where it did not.
#[inline(always)]
pub fn field<T>(base: u64, offset: u32) -> Option<T> {
    if base == 0 || offset == UNKNOWN {
        return None;
    }
    // SAFETY: bpf_probe_read_kernel checks the address itself and fails on a bad one.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}

/// `task:task_newtask(task, clone_flags)`, at the end of copy_process() in the parent, before the child runs.
#[raw_tracepoint]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    measured(Hook::Kernel, || fork(&ctx));
    0
}

#[inline(always)]
fn fork(ctx: &RawTracePointContext) {
    let Some((parent_pid, parent)) = target::current_or_met() else {
        return;
    };
    let (task, clone_flags): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let Some(child) = field::<u32>(task, offsets().task_pid) else {
        return;
    };
    // An earlier thread of this id may have been passed over.
    fault::forget(child);
    let comm = field(task, offsets().task_comm).unwrap_or_default();
    let mut header = header(Kind::Fork);
    header.extra = child;
    if clone_flags & CLONE_THREAD == 0 {
        // Nothing else would ever be told of a child that is not followed, its end neither.
        if parent.flags & FOLLOW == 0 {
            return;
        }
        let child_target = Target {
            start_ns: header.time_ns,
            flags: parent.flags | INHERITED_HEAP,
            ..parent
        };
        if !target::follow(child, child_target) {
            warn!(
                ctx,
                "process {} is not followed: the table of traced processes is full", child
            );
            return;
        }
        unwind::inherit(parent_pid, child);
    }
    emit(
        Fork {
            header,
            clone_flags,
            comm,
        },
        Counter::LostProcess,
        Urgency::Usual,
    );
}

/// `sched:sched_prepare_exec(task, bprm)`, since 6.10: an execve cannot fail any more, and the address space is still the
/// old one.
#[raw_tracepoint]
pub fn process_prepare_exec(_: RawTracePointContext) -> i32 {
    measured(Hook::Kernel, || {
        if target::current_or_met().is_some() {
            residency::emit_totals(0);
        }
    });
    0
}

/// `sched:sched_process_exec(task, old_pid, bprm)`: the program is loaded and about to run.
#[raw_tracepoint]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    measured(Hook::Kernel, || exec(&ctx));
    0
}

#[inline(always)]
fn exec(ctx: &RawTracePointContext) {
    // Where another thread than the leader called execve, it has the leader's id from here on (de_thread(), fs/exec.c).
    let before: u32 = ctx.arg(1);
    heap::forget(before);
    fault::forget(before);
    // It may be one that is not followed any more.
    fault::forget(bpf_get_current_pid_tgid() as u32);
    let Some((pid, _)) = target::current_or_met() else {
        return;
    };
    let Some(scratch) = EXECS.get_ptr_mut(0) else {
        return;
    };
    target::unmark(pid, INHERITED_HEAP);
    // SAFETY: raw tracepoint programs run with preemption disabled, so the scratch of this CPU is ours.
    let record = unsafe { &mut *scratch };
    unwind::replaced(pid);
    record.header = header(Kind::Exec);
    record.comm = ctx.command().unwrap_or_default();
    if let Some(name) = field::<u64>(ctx.arg(2), offsets().binprm_filename) {
        // SAFETY: the helper checks every byte it reads.
        let read = unsafe { bpf_probe_read_kernel_str_bytes(name as *const u8, &mut record.path) };
        if let Ok(path) = read {
            record.header.extra = path.len() as u32;
        }
    }
    // Events of a whole CPU stay.
    if !target::has_area() && unfollowed() {
        record.header.flags = EXEC_UNFOLLOWED;
        target::mark(pid, UNFOLLOWED);
    }
    emit_copy(record, Counter::LostProcess, Urgency::Awaited);
    residency::emit_totals(0);
    let Some(scratch) = ARGUMENTS.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: as above.
    let record = unsafe { &mut *scratch };
    if read_arguments(record).is_some() {
        emit_copy(record, Counter::LostProcess, Urgency::Usual);
    }
}

/// Whether the kernel took away the events of the current process: it does so for a program that is not
/// dumpable as its user (begin_new_exec(), fs/exec.c), told by the low bits of mm->flags.
#[inline(always)]
fn unfollowed() -> bool {
    const DUMPABLE_MASK: u64 = 3;
    const DUMPABLE_BY_USER: u64 = 1;
    let flags = current_mm().and_then(|mm| field::<u64>(mm, offsets().mm_flags));
    flags.is_some_and(|flags| flags & DUMPABLE_MASK != DUMPABLE_BY_USER)
}

/// Copies the argument area of the current process.
#[inline(always)]
fn read_arguments(record: &mut Arguments) -> Option<()> {
    let offsets = offsets();
    let mm = current_mm()?;
    let start: u64 = field(mm, offsets.mm_arg_start)?;
    let end: u64 = field(mm, offsets.mm_arg_start.wrapping_add(8))?;
    let length = end.checked_sub(start)?;
    let kept = if length > ARGUMENT_BYTES as u64 {
        ARGUMENT_BYTES as u64
    } else {
        length
    };
    record.header = header(Kind::Arguments);
    record.header.extra = kept as u32;
    record.header.flags = u16::from(length > ARGUMENT_BYTES as u64);
    if kept == 0 {
        return None;
    }
    let kept = (kept as usize).min(ARGUMENT_BYTES);
    // SAFETY: the helper checks the user address; the destination is within the scratch record.
    unsafe { bpf_probe_read_user_buf(start as *const u8, record.bytes.get_unchecked_mut(..kept)) }
        .ok()
}

/// `mm_struct` of the current task; `None` for kernel threads and where BTF does not tell.
#[inline(always)]
pub fn current_mm() -> Option<u64> {
    // SAFETY: the helper takes no argument.
    let task = unsafe { bpf_get_current_task() };
    field::<u64>(task, offsets().task_mm).filter(|&mm| mm != 0)
}

/// Threads of the current process that have not begun to end.
#[inline(always)]
pub fn live_threads() -> Option<i32> {
    // SAFETY: the helper takes no argument.
    let task = unsafe { bpf_get_current_task() };
    let signal = field::<u64>(task, offsets().task_signal)?;
    field(signal, offsets().signal_live)
}

/// `sched:sched_process_exit`, in the thread that ends.
#[raw_tracepoint]
pub fn process_exit(ctx: RawTracePointContext) -> i32 {
    measured(Hook::Kernel, || exit(&ctx));
    0
}

#[inline(always)]
fn exit(ctx: &RawTracePointContext) {
    // Before the filter: of two last threads, one may find the process gone from the table.
    let tid = bpf_get_current_pid_tgid() as u32;
    heap::forget(tid);
    fault::forget(tid);
    let Some((pid, target)) = target::current() else {
        return;
    };
    fault_window::thread_ends(pid, target.start_ns);
    let offsets = offsets();
    // SAFETY: the helper takes no argument.
    let task = unsafe { bpf_get_current_task() };
    let live = live_threads();
    let mut header = header(Kind::Exit);
    // Without BTF the leader's end is taken for the process's.
    let last = live.map_or(header.pid == header.tid, |live| live == 0);
    header.extra = u32::from(last);
    header.flags = u16::from(live.is_none());
    if last {
        // Since 6.16 the address space is still there (kernel/exit.c); before, this finds none.
        residency::emit_totals(memtrace_common::record::MEMORY_FINAL);
        // The entry may be gone already where two last threads race; that is no loss.
        let _ = target::TARGETS.remove(&pid);
        unwind::forget(pid);
    }
    let status: i32 = field(task, offsets.task_exit_code).unwrap_or(0);
    let comm = ctx.command().unwrap_or_default();
    let urgency = if last {
        Urgency::Awaited
    } else {
        Urgency::Usual
    };
    emit(
        Exit {
            header,
            status: status as u32 as u64,
            comm,
        },
        Counter::LostProcess,
        urgency,
    );
}

/// `task:task_rename(task, comm)`.
#[raw_tracepoint]
pub fn process_rename(ctx: RawTracePointContext) -> i32 {
    measured(Hook::Kernel, || rename(&ctx));
    0
}

#[inline(always)]
fn rename(ctx: &RawTracePointContext) {
    if target::current().is_none() {
        return;
    }
    let Some(tid) = field::<u32>(ctx.arg(0), offsets().task_pid) else {
        return;
    };
    let mut comm = [0u8; 16];
    let name: u64 = ctx.arg(1);
    // SAFETY: the helper checks every byte it reads.
    if unsafe { bpf_probe_read_kernel_str_bytes(name as *const u8, &mut comm) }.is_err() {
        return;
    }
    let mut header = header(Kind::Rename);
    header.tid = tid;
    emit(
        Rename { header, comm },
        Counter::LostProcess,
        Urgency::Usual,
    );
}

/// Scratch: an [`Exec`] is too large for the BPF stack beside its copy.
#[map]
static EXECS: PerCpuArray<Exec> = PerCpuArray::with_max_entries(1, 0);

/// Scratch, for the same reason.
#[map]
static ARGUMENTS: PerCpuArray<Arguments> = PerCpuArray::with_max_entries(1, 0);
