//! The columns of a recording, and the names that stand in them.
//!
//! Each column means one thing whatever the kind of the row; a column that does not apply is null.

use std::{collections::HashMap, sync::Arc};

use arrow_schema::{DataType, Field, Schema};
use memtrace_common::{heap::Function, record::Call, unwind::End};

use crate::event::EventKind;

/// The format that this memtrace writes and reads. It rises when the columns change.
pub const FORMAT_VERSION: u32 = 2;

/// Schema metadata that makes an Arrow stream a recording; the value is the format's version.
pub(super) const FORMAT_KEY: &str = "memtrace.format";

/// Schema metadata: the version of the memtrace that wrote the recording.
pub(super) const PROGRAM_KEY: &str = "memtrace.version";

macro_rules! tags {
    ($($name:ident = $text:literal,)*) => {
        /// The kind of an event without its payload; the number is the index into the dictionary.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Tag { $($name,)* }

        impl Tag {
            /// Every kind, in the order of the dictionary.
            pub(super) const ALL: &'static [Tag] = &[$(Tag::$name,)*];

            /// The kind of an event.
            pub(super) fn of(kind: &EventKind) -> Self {
                match kind { $(EventKind::$name { .. } => Tag::$name,)* }
            }

            /// What stands in the column `kind`.
            pub(super) const fn name(self) -> &'static str {
                match self { $(Tag::$name => $text,)* }
            }
        }
    };
}

tags! {
    Alloc = "alloc",
    AllocFailed = "alloc_failed",
    Free = "free",
    Realloc = "realloc",
    Stack = "stack",
    Fault = "fault",
    FaultTotals = "fault_totals",
    Syscall = "syscall",
    FileMapped = "file_mapped",
    Smaps = "smaps",
    SmapsBegin = "smaps_begin",
    SmapsEnd = "smaps_end",
    Memory = "memory",
    Started = "started",
    Fork = "fork",
    ThreadStart = "thread_start",
    ThreadExit = "thread_exit",
    Exec = "exec",
    CommandLine = "command_line",
    Rename = "rename",
    Exit = "exit",
    Cgroup = "cgroup",
    HeapProbes = "heap_probes",
    Symbol = "symbol",
    Counted = "counted",
    Probe = "probe",
    Machine = "machine",
    End = "end",
    Sampling = "sampling",
    Touch = "touch",
    TouchSampling = "touch_sampling",
}

/// The allocator functions, in the order of the dictionary.
pub(super) const FUNCTIONS: [(Function, &str); 9] = [
    (Function::Malloc, "malloc"),
    (Function::Calloc, "calloc"),
    (Function::Realloc, "realloc"),
    (Function::Reallocarray, "reallocarray"),
    (Function::PosixMemalign, "posix_memalign"),
    (Function::AlignedAlloc, "aligned_alloc"),
    (Function::Free, "free"),
    (Function::Pvalloc, "pvalloc"),
    (Function::AlignedNew, "aligned_new"),
];

/// Index of a function in [`FUNCTIONS`]; a match, so that a new function cannot be forgotten.
pub(super) const fn function_key(function: Function) -> i8 {
    match function {
        Function::Malloc => 0,
        Function::Calloc => 1,
        Function::Realloc => 2,
        Function::Reallocarray => 3,
        Function::PosixMemalign => 4,
        Function::AlignedAlloc => 5,
        Function::Free => 6,
        Function::Pvalloc => 7,
        Function::AlignedNew => 8,
    }
}

/// The memory system calls, in the order of the dictionary.
pub(super) const CALLS: [(Call, &str); 8] = [
    (Call::Brk, "brk"),
    (Call::Mmap, "mmap"),
    (Call::Munmap, "munmap"),
    (Call::Mremap, "mremap"),
    (Call::Mprotect, "mprotect"),
    (Call::Madvise, "madvise"),
    (Call::Shmat, "shmat"),
    (Call::Shmdt, "shmdt"),
];

/// Index of a call in [`CALLS`].
pub(super) const fn call_key(call: Call) -> i8 {
    match call {
        Call::Brk => 0,
        Call::Mmap => 1,
        Call::Munmap => 2,
        Call::Mremap => 3,
        Call::Mprotect => 4,
        Call::Madvise => 5,
        Call::Shmat => 6,
        Call::Shmdt => 7,
    }
}

/// Why stacks ended, in the order of the dictionary, which is that of their numbers.
pub(super) const ENDS: [(End, &str); 8] = [
    (End::Start, "start"),
    (End::Truncated, "truncated"),
    (End::NoRules, "no_rules"),
    (End::Unreadable, "unreadable"),
    (End::Unsupported, "unsupported_rule"),
    (End::NoMapping, "no_mapping"),
    (End::StackPointer, "stack_pointer"),
    (End::NotKnown, "not_known"),
];

/// The schema of a recording that this memtrace writes.
pub(super) fn schema() -> Schema {
    let names = || DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
    let numbers = || DataType::List(Arc::new(Field::new("item", DataType::UInt64, true)));
    let optional = |name: &str, data_type| Field::new(name, data_type, true);
    let fields = vec![
        Field::new("kind", names(), false),
        Field::new("time_step_ns", DataType::Int64, false),
        Field::new("pid", DataType::UInt32, false),
        Field::new("tid", DataType::UInt32, false),
        optional("function", names()),
        optional("address_step", DataType::Int64),
        optional("size", DataType::UInt64),
        optional("stack", DataType::UInt64),
        optional("old_address", DataType::UInt64),
        optional("frames", numbers()),
        optional("stack_end", names()),
        optional("ip", DataType::UInt64),
        optional("latency_ns", DataType::UInt64),
        optional("major", DataType::Boolean),
        optional("kernel_mode", DataType::Boolean),
        optional("write", DataType::Boolean),
        optional("protection", DataType::Boolean),
        optional("instruction", DataType::Boolean),
        optional("call", names()),
        optional("arguments", numbers()),
        optional("offset", DataType::UInt64),
        optional("result", DataType::Int64),
        optional("detail", DataType::Utf8),
    ];
    let metadata = HashMap::from([
        (FORMAT_KEY.to_owned(), FORMAT_VERSION.to_string()),
        (PROGRAM_KEY.to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    Schema::new_with_metadata(fields, metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_agree_with_names() {
        for (index, tag) in Tag::ALL.iter().enumerate() {
            assert_eq!(*tag as usize, index);
        }
        for (index, (function, _)) in FUNCTIONS.iter().enumerate() {
            assert_eq!(function_key(*function) as usize, index);
        }
        for (index, (call, _)) in CALLS.iter().enumerate() {
            assert_eq!(call_key(*call) as usize, index);
        }
        for (index, (end, _)) in ENDS.iter().enumerate() {
            assert_eq!(*end as usize, index);
        }
    }
}
