//! Records of the ring buffers. Each begins with a [`Header`], whose `kind` says which struct follows.

use crate::{frame::MAX_WORDS, unwind::Registers};

/// Most ring buffers there are, a power of two.
pub const MAX_RINGS: usize = 8;

/// Which record follows.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Alloc`]
    Alloc = 1,
    /// [`AllocFailed`]
    AllocFailed = 2,
    /// [`Free`]
    Free = 3,
    /// [`Realloc`]
    Realloc = 4,
    /// [`Stack`]
    Stack = 5,
    /// [`Fault`]
    Fault = 6,
    /// [`Syscall`]
    Syscall = 7,
    /// [`Fork`]
    Fork = 8,
    /// [`Exec`]
    Exec = 9,
    /// [`Exit`]
    Exit = 10,
    /// [`Rename`]
    Rename = 11,
    /// [`Memory`]
    Memory = 12,
    /// [`Arguments`]
    Arguments = 13,
    /// [`Seen`]
    Seen = 14,
    /// [`StackCopy`]
    StackCopy = 15,
    /// [`PythonCode`]
    PythonCode = 16,
    /// [`Touch`]
    Touch = 17,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub const fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Alloc,
            2 => Self::AllocFailed,
            3 => Self::Free,
            4 => Self::Realloc,
            5 => Self::Stack,
            6 => Self::Fault,
            7 => Self::Syscall,
            8 => Self::Fork,
            9 => Self::Exec,
            10 => Self::Exit,
            11 => Self::Rename,
            12 => Self::Memory,
            13 => Self::Arguments,
            14 => Self::Seen,
            15 => Self::StackCopy,
            16 => Self::PythonCode,
            17 => Self::Touch,
            _ => return None,
        })
    }
}

/// First bytes of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`Kind`] as a number.
    pub kind: u16,
    /// Meaning is the record's.
    pub flags: u16,
    /// Thread-group id of the process.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Meaning is the record's.
    pub extra: u32,
    /// When the thing recorded had happened (its end, where it has a duration).
    pub time_ns: u64,
}

/// A call returned a block.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alloc {
    /// `extra` is the [`crate::heap::Function`].
    pub header: Header,
    /// Address of the block.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Id of the stack at the call, 0 for none.
    pub stack: u64,
}

/// A call asked for a block and got none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocFailed {
    /// `extra` is the [`crate::heap::Function`].
    pub header: Header,
    /// Bytes asked for.
    pub size: u64,
}

/// A block is given back (recorded when the call begins: afterwards its address may belong to another).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Common part.
    pub header: Header,
    /// Address of the block; never 0.
    pub address: u64,
}

/// A call of realloc on a block returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Realloc {
    /// Common part.
    pub header: Header,
    /// When the call began: the old block may have been given back from then on.
    pub entered_ns: u64,
    /// Address before.
    pub old_address: u64,
    /// Address after.
    pub new_address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Id of the stack at the call, 0 for none.
    pub stack: u64,
}

/// The frames of a stack, sent before the first record that names it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// `extra` is the number of frames; `flags` is the [`crate::unwind::End`].
    pub header: Header,
    /// Hash of the frames; never 0 or [`COPIED_STACK`].
    pub id: u64,
    /// As [`crate::frame`] has them, innermost first; only `extra` of them are sent.
    pub frames: [u64; MAX_WORDS],
}

/// Names the stack that the same thread's last [`StackCopy`] holds.
pub const COPIED_STACK: u64 = u64::MAX;

/// The stack itself, to be walked by the user side: the process's mappings were not known yet. What lies at the
/// stack pointer and above follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackCopy {
    /// `extra` is the number of bytes that follow; `flags` may have [`COPY_OF_FAULT`].
    pub header: Header,
    /// Of the caller, as the call returns to it; of a fault in user mode, as it was taken.
    pub registers: Registers,
    /// Instruction of the kernel that took the fault, 0 for none.
    pub kernel_ip: u64,
    /// Where the thread's call in flight has the trampoline for its return address, 0 for nowhere.
    pub trampoline_at: u64,
    /// What is behind the trampoline.
    pub returns_to: u64,
}

/// A [`Fault`] names the copy; otherwise a record of the heap does.
pub const COPY_OF_FAULT: u16 = 1;

/// Bytes of a name, of a path and of a line table that fit into a [`PythonCode`], powers of two.
pub const PYTHON_NAME_BYTES: usize = 256;
/// See [`PYTHON_NAME_BYTES`].
pub const PYTHON_FILE_BYTES: usize = 512;
/// See [`PYTHON_NAME_BYTES`].
pub const PYTHON_LINES_BYTES: usize = 4096;

/// A Python function's code object, sent before the first stack that it is in: what is of fixed length.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonHead {
    /// `extra` is the number of bytes of [`PythonCode::lines`] that are sent.
    pub header: Header,
    /// As [`crate::frame::python_code`] has it.
    pub code: u64,
    /// `co_firstlineno`
    pub first_line: u32,
    /// `state` of the name.
    pub name_state: u32,
    /// Bytes of the name.
    pub name_bytes: u32,
    /// `state` of the path.
    pub file_state: u32,
    /// Bytes of the path.
    pub file_bytes: u32,
    /// 0
    pub reserved: u32,
}

/// The whole of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonCode {
    /// What is of fixed length.
    pub head: PythonHead,
    /// `co_qualname`: its characters.
    pub name: [u8; PYTHON_NAME_BYTES],
    /// `co_filename`
    pub file: [u8; PYTHON_FILE_BYTES],
    /// `co_linetable`
    pub lines: [u8; PYTHON_LINES_BYTES],
}

/// A page fault was handled. `flags` has the `FAULT_` bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Common part.
    pub header: Header,
    /// Address that was touched.
    pub address: u64,
    /// Instruction that touched it.
    pub ip: u64,
    /// Time to handle it in nanoseconds; `u64::MAX` where the start was not seen.
    pub latency_ns: u64,
    /// Id of the stack, 0 where it is not in the sample of those whose stack is taken.
    pub stack: u64,
}

/// A page that was touched first, of the sample that growth is attributed by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// `extra` is the number of faults that this one stands for.
    pub header: Header,
    /// Address that was touched.
    pub address: u64,
    /// Id of the stack, 0 for none.
    pub stack: u64,
}

/// The fault waited for I/O.
pub const FAULT_MAJOR: u16 = 1;
/// The fault was taken in kernel mode.
pub const FAULT_KERNEL: u16 = 2;
/// The access was a write.
pub const FAULT_WRITE: u16 = 4;
/// The access was an instruction fetch.
pub const FAULT_INSTRUCTION: u16 = 8;
/// The page was present, the access was not allowed (copy-on-write, mprotect).
pub const FAULT_PROTECTION: u16 = 16;
/// The access bits are known.
pub const FAULT_ACCESS_KNOWN: u16 = 32;

/// Memory system calls.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// brk(2)
    Brk = 1,
    /// mmap(2)
    Mmap = 2,
    /// munmap(2)
    Munmap = 3,
    /// mremap(2)
    Mremap = 4,
    /// mprotect(2)
    Mprotect = 5,
    /// madvise(2)
    Madvise = 6,
    /// shmat(2)
    Shmat = 7,
    /// shmdt(2)
    Shmdt = 8,
}

impl Call {
    /// The call with this number, if there is one.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Brk,
            2 => Self::Mmap,
            3 => Self::Munmap,
            4 => Self::Mremap,
            5 => Self::Mprotect,
            6 => Self::Madvise,
            7 => Self::Shmat,
            8 => Self::Shmdt,
            _ => return None,
        })
    }
}

/// A memory system call returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// `extra` is the [`Call`].
    pub header: Header,
    /// When it began.
    pub entered_ns: u64,
    /// What it returned; negative is an errno.
    pub result: i64,
    /// First five arguments.
    pub arguments: [u64; 5],
    /// File offset: the sixth argument of mmap(2), in bytes.
    pub offset: u64,
}

/// A thread was made, or a process that is traced from now on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The parent; `extra` is the new task's id.
    pub header: Header,
    /// CLONE_ flags.
    pub clone_flags: u64,
    /// Name of the new task.
    pub comm: [u8; 16],
}

/// A process of the traced area was met that ran already and is traced from now on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Common part; its time is when tracing of the process began.
    pub header: Header,
    /// Name of the thread that was met.
    pub comm: [u8; 16],
}

/// Bytes of a path that fit into an [`Exec`].
pub const PATH_BYTES: usize = 232;

/// A process replaced its program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    /// `extra` is the number of bytes of the path; `flags` has [`EXEC_UNFOLLOWED`].
    pub header: Header,
    /// Name of the task.
    pub comm: [u8; 16],
    /// The path given to execve.
    pub path: [u8; PATH_BYTES],
}

/// The process is not followed any more: [`crate::target::UNFOLLOWED`].
pub const EXEC_UNFOLLOWED: u16 = 1;

/// Bytes of the argument area that fit into an [`Arguments`].
pub const ARGUMENT_BYTES: usize = 256;

/// The argument area of a program that was just started.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// `extra` is the number of bytes; `flags` is 1 where they were cut.
    pub header: Header,
    /// Arguments, each ended by a NUL.
    pub bytes: [u8; ARGUMENT_BYTES],
}

/// A thread ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// `extra` is 1 when it was the last thread of the process; `flags` is 1 where that is not known.
    pub header: Header,
    /// Wait status of the task (`task_struct.exit_code`).
    pub status: u64,
    /// Name of the task.
    pub comm: [u8; 16],
}

/// A thread changed its name.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rename {
    /// Common part.
    pub header: Header,
    /// The new name.
    pub comm: [u8; 16],
}

/// The kernel's own totals for an address space, before it is torn down or after it is made. Pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// `flags` has the `MEMORY_` bits.
    pub header: Header,
    /// Resident pages of files (`MM_FILEPAGES`).
    pub file: i64,
    /// Resident anonymous pages (`MM_ANONPAGES`).
    pub anonymous: i64,
    /// Swapped pages (`MM_SWAPENTS`).
    pub swap: i64,
    /// Resident shared-memory pages (`MM_SHMEMPAGES`).
    pub shared: i64,
    /// High-water mark of resident pages.
    pub peak: u64,
    /// Mapped pages.
    pub mapped: u64,
    /// High-water mark of mapped pages, updated lazily: the last number may be above it.
    pub peak_mapped: u64,
    /// First address of the brk area.
    pub break_start: u64,
    /// Program break.
    pub break_end: u64,
    /// Address within the stack of the first thread.
    pub stack: u64,
}

/// The per-CPU parts of the counters were not read: each may be off by some tens of pages per CPU.
pub const MEMORY_APPROXIMATE: u16 = 1;
/// The address space is about to go (exit or exec).
pub const MEMORY_FINAL: u16 = 2;

const _: () = assert!(size_of::<Header>() == 24);
const _: () = assert!(size_of::<Alloc>() == 48);
const _: () = assert!(size_of::<AllocFailed>() == 32);
const _: () = assert!(size_of::<Free>() == 32);
const _: () = assert!(size_of::<Realloc>() == 64);
const _: () = assert!(size_of::<Stack>() == 32 + 8 * MAX_WORDS);
const _: () = assert!(size_of::<StackCopy>() == 72);
const _: () = assert!(
    size_of::<PythonCode>() == 56 + PYTHON_NAME_BYTES + PYTHON_FILE_BYTES + PYTHON_LINES_BYTES
);
const _: () = assert!(size_of::<Fault>() == 56);
const _: () = assert!(size_of::<Touch>() == 40);
const _: () = assert!(size_of::<Syscall>() == 88);
const _: () = assert!(size_of::<Fork>() == 48);
const _: () = assert!(size_of::<Seen>() == 40);
const _: () = assert!(size_of::<Exec>() == 272);
const _: () = assert!(size_of::<Arguments>() == 280);
const _: () = assert!(size_of::<Exit>() == 48);
const _: () = assert!(size_of::<Rename>() == 40);
const _: () = assert!(size_of::<Memory>() == 104);
