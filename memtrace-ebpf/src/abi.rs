//! System calls as x86-64 and i386 number them and pass their arguments.
//!
//! The kernel decides call by call: a 32-bit program makes i386 calls, and so does `int $0x80` in a 64-bit one.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_user};
use memtrace_common::record::Call;

use crate::process::{field, offsets};

/// What a call is to memtrace.
#[derive(Clone, Copy)]
pub enum Meaning {
    /// It changes an address space.
    Memory(Call),
    /// execve and execveat.
    Execute,
    /// The end of a thread.
    Exit,
    /// The end of a process.
    ExitGroup,
}

/// Whose numbers and registers a call uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Abi {
    /// x86-64.
    Native,
    /// i386.
    Compat,
}

/// arch/x86/entry/syscalls/syscall_64.tbl.
#[inline(always)]
pub const fn native(number: u64) -> Option<Meaning> {
    Some(match number {
        9 => Meaning::Memory(Call::Mmap),
        10 => Meaning::Memory(Call::Mprotect),
        11 => Meaning::Memory(Call::Munmap),
        12 => Meaning::Memory(Call::Brk),
        25 => Meaning::Memory(Call::Mremap),
        28 => Meaning::Memory(Call::Madvise),
        30 => Meaning::Memory(Call::Shmat),
        67 => Meaning::Memory(Call::Shmdt),
        59 | 322 => Meaning::Execute,
        60 => Meaning::Exit,
        231 => Meaning::ExitGroup,
        _ => return None,
    })
}

/// mmap with its arguments in memory.
const OLD_MMAP: u64 = 90;
/// System V calls by a number in the first argument.
const IPC: u64 = 117;
/// Those numbers, include/uapi/linux/ipc.h.
const IPC_SHMAT: u32 = 21;
const IPC_SHMDT: u32 = 22;

/// arch/x86/entry/syscalls/syscall_32.tbl. Without exit, whose number is that of write in a 64-bit program: every
/// one of these would be looked at further.
#[inline(always)]
const fn compat(number: u64, first: u32) -> Option<Meaning> {
    Some(match number {
        OLD_MMAP | 192 => Meaning::Memory(Call::Mmap),
        125 => Meaning::Memory(Call::Mprotect),
        91 => Meaning::Memory(Call::Munmap),
        45 => Meaning::Memory(Call::Brk),
        163 => Meaning::Memory(Call::Mremap),
        219 => Meaning::Memory(Call::Madvise),
        397 => Meaning::Memory(Call::Shmat),
        398 => Meaning::Memory(Call::Shmdt),
        IPC => match first & 0xffff {
            IPC_SHMAT => Meaning::Memory(Call::Shmat),
            IPC_SHMDT => Meaning::Memory(Call::Shmdt),
            _ => return None,
        },
        11 | 358 => Meaning::Execute,
        252 => Meaning::ExitGroup,
        _ => return None,
    })
}

/// Whether a number means anything here, in either table: the first test, before anything is looked up.
#[inline(always)]
pub const fn may_matter(number: u64) -> bool {
    native(number).is_some() || compat(number, IPC_SHMAT).is_some()
}

/// What the call is that the current thread is in. `regs` is its `pt_regs`.
#[inline(always)]
pub fn meaning(number: u64, regs: u64) -> Option<(Meaning, Abi)> {
    if is_compat() {
        let first = register(regs, COMPAT[0]) as u32;
        return compat(number, first).map(|meaning| (meaning, Abi::Compat));
    }
    native(number).map(|meaning| (meaning, Abi::Native))
}

/// in_ia32_syscall(), arch/x86/include/asm/thread_info.h; native where BTF does not tell.
#[inline(always)]
fn is_compat() -> bool {
    const TS_COMPAT: u32 = 2;
    // SAFETY: the helper takes no argument.
    let task = unsafe { bpf_get_current_task() };
    field::<u32>(task, offsets().task_status).is_some_and(|status| status & TS_COMPAT != 0)
}

/// Places of arguments in pt_regs (arch/x86/include/asm/ptrace.h). They still hold them when the call returns.
/// rdi, rsi, rdx, r10, r8, r9.
const NATIVE: [u32; 6] = [14 * 8, 13 * 8, 12 * 8, 7 * 8, 9 * 8, 8 * 8];
/// ebx, ecx, edx, esi, edi, ebp.
const COMPAT: [u32; 6] = [5 * 8, 11 * 8, 12 * 8, 13 * 8, 14 * 8, 4 * 8];

#[inline(always)]
fn register(regs: u64, place: u32) -> u64 {
    field(regs, place).unwrap_or(0)
}

/// Words of pt_regs that hold arguments.
type Registers = [u64; 15];

/// A call's arguments and result, as the x86-64 call of that name has them.
#[inline(always)]
pub fn values(abi: Abi, call: Call, number: u64, regs: u64, result: i64) -> ([u64; 6], i64) {
    // Read at once: of each by itself the verifier would try both that it could be read and that not.
    let registers: Registers = field(regs, 0).unwrap_or_default();
    match abi {
        Abi::Native => (NATIVE.map(|place| registers[place as usize / 8]), result),
        Abi::Compat => compat_values(call, number, &registers, result),
    }
}

#[inline(always)]
fn compat_values(call: Call, number: u64, registers: &Registers, result: i64) -> ([u64; 6], i64) {
    const PAGE_SHIFT: u32 = 12;
    let registers = COMPAT.map(|place| registers[place as usize / 8] as u32);
    let mut values = registers.map(u64::from);
    let mut result = result_of(result as u32);
    match (number, call) {
        // struct mmap_arg_struct32, arch/x86/kernel/sys_ia32.c.
        (OLD_MMAP, _) => {
            values = user::<[u32; 6]>(registers[0])
                .unwrap_or_default()
                .map(u64::from);
        }
        (_, Call::Mmap) => values[5] <<= PAGE_SHIFT,
        // call, segment, flags, where the address is put, address.
        (IPC, Call::Shmat) => {
            if result == 0 {
                result = user::<u32>(registers[3]).map_or(0, i64::from);
            }
            values = [values[1], values[4], values[2], 0, 0, 0];
        }
        (IPC, _) => values = [values[4], 0, 0, 0, 0, 0],
        _ => {}
    }
    (values, result)
}

/// Errors are negative in 32 bits; addresses go up to 4 GiB.
#[inline(always)]
const fn result_of(result: u32) -> i64 {
    const MAX_ERRNO: u32 = 4095;
    if result > u32::MAX - MAX_ERRNO {
        result as i32 as i64
    } else {
        result as i64
    }
}

#[inline(always)]
fn user<T>(address: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_user(address as usize as *const T) }.ok()
}
