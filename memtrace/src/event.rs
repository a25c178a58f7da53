//! What the model is made of.
//!
//! Live tracing, a recording and what /proc says at the start all become [`Event`]s; nothing else
//! reaches [`crate::model::Model::apply`]. An event says what happened, not what to do about it.

use memtrace_common::{heap::Function, histogram::BUCKETS, record::Call, unwind::End};

/// Thread-group id, as the host's kernel numbers it.
pub type Pid = u32;

/// Id of an interned stack: a hash of its frames. 0 stands for "no stack was taken".
pub type StackId = u64;

/// Something that happened to a process, or something learnt about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, in nanoseconds: when it had happened.
    pub time_ns: u64,
    /// The process; 0 for what concerns no process (loss, probes).
    pub pid: Pid,
    /// The thread; 0 where there is none.
    pub tid: u32,
    /// What it was.
    pub kind: EventKind,
}

/// Times are told in multiples of this, rounded down. A probe takes a thread 500 ns and more, so nothing that one event
/// brings about is told within one step of it; what is below is noise of the probes, and half a byte an event of a recording.
const TIME_STEP_NS: u64 = 32;

impl Event {
    /// Rounds the times of a live event.
    pub fn round(&mut self) {
        let round = |time_ns: &mut u64| *time_ns -= *time_ns % TIME_STEP_NS;
        round(&mut self.time_ns);
        match &mut self.kind {
            EventKind::Realloc { entered_ns, .. } => round(entered_ns),
            EventKind::Syscall(syscall) => round(&mut syscall.entered_ns),
            _ => {}
        }
    }
}

/// The kinds of [`Event`]. Large payloads are boxed: the hot ones fit into 48 bytes.
#[expect(missing_docs, reason = "each variant's comment speaks of its fields")]
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// A block was handed out.
    Alloc {
        function: Function,
        address: u64,
        size: u64,
        stack: StackId,
    },
    /// A call asked for `size` bytes and got nothing.
    AllocFailed { function: Function, size: u64 },
    /// The program gives a block back; `time_ns` is the entry of the call.
    Free { address: u64 },
    /// realloc on a block succeeded. From `entered_ns` on, `old_address` may belong to another block.
    Realloc {
        entered_ns: u64,
        old_address: u64,
        new_address: u64,
        size: u64,
        stack: StackId,
    },
    /// The frames of a stack, as the words of [`memtrace_common::frame`], and why there are no more; comes before
    /// the first event that names it.
    Stack {
        id: StackId,
        frames: Box<[u64]>,
        end: End,
    },
    /// A page fault was handled. `stack` is 0 where it is not in the sample of those whose stack is taken.
    Fault {
        address: u64,
        ip: u64,
        latency_ns: Option<u64>,
        stack: StackId,
        access: Access,
    },
    /// A page was touched first, and stands for `faults` such pages: one of the sample that growth is attributed by.
    Touch {
        address: u64,
        stack: StackId,
        faults: u32,
    },
    /// From now on the pages that the process touches first are in the sample, or they are not any more. Where those of
    /// before are not `kept`, nobody knows what becomes of them.
    TouchSampling { on: bool, kept: bool },
    /// The kernel-side histogram of all faults of a process so far; a later one replaces it.
    FaultTotals(Box<FaultTotals>),
    /// A memory system call returned, successfully or not (`result < 0` is an errno).
    Syscall(Box<Syscall>),
    /// A file was mapped, or a mapping was made by the kernel itself (exec, the loader's segments).
    FileMapped(Box<FileMapped>),
    /// A mapping as /proc/PID/smaps tells it. Seeds and reconciles: see [`EventKind::SmapsBegin`].
    Smaps(Box<SmapsRegion>),
    /// The `Smaps` events of this process up to `SmapsEnd` are the whole address space at `time_ns`.
    SmapsBegin,
    /// End of the list begun by `SmapsBegin`.
    SmapsEnd,
    /// The kernel's own counters for the address space, in bytes.
    Memory(Box<MemoryTotals>),
    /// The process was already running, or is about to be launched, when tracing began.
    Started(Box<Started>),
    /// A new process. `shares_memory`: vfork or CLONE_VM, the child lives in its parent's address space.
    Fork {
        child: Pid,
        shares_memory: bool,
        comm: Box<str>,
    },
    /// A new thread of the process.
    ThreadStart { thread: u32 },
    /// A thread ended; not the last one.
    ThreadExit,
    /// The process runs another program: its address space, heap and mappings are new.
    /// `unfollowed`: the kernel took the process's own events away (a set-uid program, or one that it may not
    /// read): from here on its faults have no latency and its heap is not seen.
    Exec {
        path: Box<str>,
        comm: Box<str>,
        unfollowed: bool,
    },
    /// The command line, after `Started` or `Exec`.
    CommandLine {
        arguments: Box<[String]>,
        truncated: bool,
    },
    /// A thread was renamed.
    Rename { comm: Box<str> },
    /// The last thread ended.
    Exit {
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// The cgroup v2 path of the process (v1: that of the memory controller).
    Cgroup { path: Box<str> },
    /// From now on the heap of this process is seen, or it cannot be and `unavailable` says why.
    /// `late`: the probes were placed after the allocator was mapped, its first calls were not seen.
    HeapProbes {
        allocator: Box<str>,
        unavailable: Option<Box<str>>,
        late: bool,
    },
    /// What symbolization found for an address of a process; empty `functions` says it was looked up in vain.
    Symbol(Box<Symbol>),
    /// `count` events were lost, or `count` other things named by `reason` happened, since the last such event.
    Counted {
        reason: Box<str>,
        count: u64,
        loss: bool,
    },
    /// State of a probe.
    Probe {
        name: Box<str>,
        attached: bool,
        reason: Option<Box<str>>,
    },
    /// Only a sample of the blocks is recorded from here on: by a Poisson process over the bytes that each thread asks
    /// for, with this mean distance between sample points.
    Sampling { bytes: u64 },
    /// The machine; first event of a trace.
    Machine(Box<Machine>),
    /// Tracing stopped here: what still runs is reported as of now.
    End,
}

/// Where a trace was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Version of memtrace.
    pub memtrace: Box<str>,
    /// Kernel release.
    pub kernel: Box<str>,
    /// Architecture.
    pub arch: Box<str>,
    /// Anonymous memory gets huge pages unasked (`transparent_hugepage/enabled` is `always`).
    pub huge_pages: bool,
}

/// How a fault came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// It waited for I/O.
    pub major: bool,
    /// It was taken in kernel mode.
    pub kernel: bool,
    /// A write; `None` where the start was not seen.
    pub write: Option<bool>,
    /// The page was present, the access was not allowed (copy-on-write).
    pub protection: bool,
    /// An instruction fetch.
    pub instruction: bool,
}

/// Counts and latencies of every fault of a process, exact even when events were lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultTotals {
    /// Faults taken in user mode.
    pub user: u64,
    /// Faults taken in kernel mode.
    pub kernel: u64,
    /// Sum of minor-fault latencies.
    pub minor_sum_ns: u64,
    /// Sum of major-fault latencies.
    pub major_sum_ns: u64,
    /// Minor faults without a latency.
    pub minor_untimed: u64,
    /// Major faults without a latency.
    pub major_untimed: u64,
    /// Minor faults by [`memtrace_common::histogram::bucket`].
    pub minor: [u64; BUCKETS],
    /// Major faults by bucket.
    pub major: [u64; BUCKETS],
}

/// A memory system call with its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// Which call.
    pub call: Call,
    /// When it began; removals are ordered by this, additions by the event's own time (its return).
    pub entered_ns: u64,
    /// What it returned.
    pub result: i64,
    /// Its arguments, in order.
    pub arguments: [u64; 5],
    /// mmap's sixth argument, in bytes.
    pub offset: u64,
}

/// A mapping the kernel announced by itself (PERF_RECORD_MMAP2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMapped {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// Offset into the file, in bytes.
    pub offset: u64,
    /// PROT_ bits.
    pub protection: u32,
    /// MAP_ bits.
    pub flags: u32,
    /// Path as the process's mount namespace names it; `//anon`, `[heap]`, `[vdso]` and the like otherwise.
    pub path: Box<str>,
    /// GNU build ID, empty where there is none or it was not read.
    pub build_id: Box<[u8]>,
}

/// One mapping of /proc/PID/smaps.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Default))]
pub struct SmapsRegion {
    /// First address.
    pub start: u64,
    /// End address, exclusive.
    pub end: u64,
    /// PROT_ bits.
    pub protection: u32,
    /// MAP_SHARED rather than MAP_PRIVATE.
    pub shared: bool,
    /// Offset into the file.
    pub offset: u64,
    /// Path or pseudo-path, empty for anonymous.
    pub path: Box<str>,
    /// Inode, 0 for anonymous memory.
    pub inode: u64,
    /// Resident bytes (`Rss`).
    pub resident_bytes: u64,
    /// Of these, anonymous (`Anonymous`).
    pub anonymous_bytes: u64,
    /// Swapped bytes (`Swap`).
    pub swapped_bytes: u64,
    /// Bytes in huge pages, anonymous (`AnonHugePages`) or shared (`ShmemPmdMapped`).
    pub huge_bytes: u64,
    /// Whether madvise asked for huge pages, or for none; `None` without such advice (`VmFlags`: `hg`, `nh`).
    pub advised_huge: Option<bool>,
}

/// The kernel's counters of an address space, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryTotals {
    /// Resident, of files.
    pub file_bytes: u64,
    /// Resident, anonymous.
    pub anonymous_bytes: u64,
    /// Resident, shared memory.
    pub shared_bytes: u64,
    /// Swapped out.
    pub swapped_bytes: u64,
    /// High-water mark of resident bytes.
    pub peak_resident_bytes: u64,
    /// Mapped.
    pub mapped_bytes: u64,
    /// High-water mark of mapped bytes.
    pub peak_mapped_bytes: u64,
    /// First address of the brk area.
    pub break_start: u64,
    /// Program break.
    pub break_end: u64,
    /// An address within the first thread's stack.
    pub stack: u64,
    /// Per-CPU parts were not added: each figure may be off by some tens of pages per CPU.
    pub approximate: bool,
    /// The address space is about to be torn down (exit or exec).
    pub last: bool,
}

/// A process that tracing begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its parent.
    pub parent: Pid,
    /// When it started, `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Name of the main thread.
    pub comm: Box<str>,
    /// Path of the program, empty where unknown.
    pub exe: Box<str>,
    /// It ran before tracing began: blocks and faults of before are unknown.
    pub already_running: bool,
}

/// Names for one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// The frame, as [`memtrace_common::frame::named_by`] has it.
    pub frame: u64,
    /// Path of the module, if the address lies in one.
    pub module: Option<Box<str>>,
    /// Build ID of the module, hexadecimal.
    pub build_id: Option<Box<str>>,
    /// Offset of the address in the module's file.
    pub offset: Option<u64>,
    /// Functions at that address, the innermost inlined one first, the real one last.
    pub functions: Box<[SymbolFunction]>,
}

/// One function, perhaps inlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolFunction {
    /// Demangled name.
    pub name: Box<str>,
    /// Source file.
    pub file: Option<Box<str>>,
    /// Line in it.
    pub line: Option<u32>,
}

const _: () = assert!(size_of::<Event>() <= 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_and_latencies_are_not() {
        let event = |time_ns, kind| Event {
            time_ns,
            pid: 1,
            tid: 1,
            kind,
        };
        let realloc = |entered_ns| EventKind::Realloc {
            entered_ns,
            old_address: 17,
            new_address: 33,
            size: 5,
            stack: 7,
        };
        let fault = EventKind::Fault {
            address: 17,
            ip: 18,
            latency_ns: Some(1001),
            stack: 0,
            access: Access::default(),
        };
        let rounded = |mut event: Event| {
            event.round();
            event
        };
        assert_eq!(
            rounded(event(1039, realloc(1007))),
            event(1024, realloc(992))
        );
        assert_eq!(rounded(event(1024, fault.clone())), event(1024, fault));
    }
}
