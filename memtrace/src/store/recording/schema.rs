//! The columns of a recording, and the names that stand in them.
//!
//! Each column means one thing whatever the kind of the row; rows of other kinds have no value of it.

use std::{collections::HashMap, sync::Arc};

use arrow_schema::{DataType, Field, Schema};
use memtrace_common::{heap::Function, record::Call, unwind::End};

use crate::event::{Access, EventKind};

/// The format that this memtrace writes and reads. It rises when the columns change.
pub const FORMAT_VERSION: u32 = 5;

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

/// Bits of the column `access`.
pub(super) struct AccessBits {
    major: u8,
    kernel: u8,
    write: u8,
    write_known: u8,
    protection: u8,
    instruction: u8,
    /// The fault has a latency.
    pub(super) timed: u8,
}

pub(super) const ACCESS: AccessBits = AccessBits {
    major: 1,
    kernel: 2,
    write: 4,
    write_known: 8,
    protection: 16,
    instruction: 32,
    timed: 64,
};

/// How a fault came about, as bits of [`ACCESS`].
pub(super) fn access_bits(access: &Access) -> u8 {
    let bit = |is_set, bit| if is_set { bit } else { 0 };
    bit(access.major, ACCESS.major)
        | bit(access.kernel, ACCESS.kernel)
        | bit(access.write == Some(true), ACCESS.write)
        | bit(access.write.is_some(), ACCESS.write_known)
        | bit(access.protection, ACCESS.protection)
        | bit(access.instruction, ACCESS.instruction)
}

/// What [`access_bits`] was made of.
pub(super) fn access_of(bits: u8) -> Access {
    let is_set = |bit| bits & bit != 0;
    Access {
        major: is_set(ACCESS.major),
        kernel: is_set(ACCESS.kernel),
        write: is_set(ACCESS.write_known).then(|| is_set(ACCESS.write)),
        protection: is_set(ACCESS.protection),
        instruction: is_set(ACCESS.instruction),
    }
}

/// What a list is of.
pub(super) fn item(data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", data_type, false))
}

/// The type of a column of names.
pub(super) fn names() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8))
}

/// The columns of a number: its three lowest bytes, and what is above them.
pub(super) fn plane(name: &str, index: usize) -> String {
    format!("{name}_{index}")
}

/// The schema of a recording that this memtrace writes. No column has nulls.
pub(super) fn schema() -> Schema {
    let mut fields = Vec::new();
    let mut add = |name: &str, data_type| fields.push(Field::new(name, data_type, false));
    let planes = |add: &mut dyn FnMut(&str, DataType), name: &str| {
        for index in 0..3 {
            add(&plane(name, index), DataType::UInt8);
        }
        add(&plane(name, 3), DataType::UInt64);
    };
    add("kind", names());
    planes(&mut add, "time_step");
    add("pid", DataType::UInt32);
    add("tid", DataType::UInt32);
    add("function", names());
    add("again", DataType::UInt8);
    planes(&mut add, "address_step");
    planes(&mut add, "block");
    planes(&mut add, "freed_step");
    planes(&mut add, "size");
    planes(&mut add, "stack");
    add("path_step", DataType::Int32);
    add("frames", DataType::List(item(DataType::UInt32)));
    add("stack_end", names());
    add("fault_address_step", DataType::Int64);
    add("code", DataType::UInt32);
    planes(&mut add, "latency");
    add("access", DataType::UInt8);
    add("call", names());
    add("arguments", DataType::List(item(DataType::UInt64)));
    add("offset", DataType::UInt64);
    add("result", DataType::Int64);
    add("name", DataType::UInt32);
    add("detail", DataType::Utf8);
    add("codes", DataType::List(item(DataType::UInt64)));
    add("bases", DataType::List(item(DataType::UInt64)));
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
