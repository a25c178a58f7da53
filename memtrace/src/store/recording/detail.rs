//! The column `detail`: what rare events carry, as one JSON object.
//!
//! The definitions mirror those of [`crate::event`] field by field, so a field that is added there
//! and not here does not compile. Kinds with columns of their own are skipped.

use memtrace_common::{heap::Function, histogram::BUCKETS, unwind::End};
use serde::{Deserialize, Deserializer, Serialize};

use super::{ARGUMENT_BYTES, FUNCTION_BYTES, bounded, schema::Tag};
use crate::event::{
    Access, EventKind, FaultTotals, FileMapped, Machine, MemoryTotals, Pid, SmapsRegion, StackId,
    Started, Symbol, SymbolFunction, Syscall,
};

/// The JSON object of an event of a rare kind.
pub(super) fn to_json(kind: &EventKind) -> serde_json::Result<String> {
    let tagged = serde_json::to_string(&Outgoing(kind))?;
    // serde writes {"fork":{…}}; the name is in the column `kind` already.
    let start = Tag::of(kind).name().len() + r#"{"":"#.len();
    let inner = tagged.get(start..tagged.len().saturating_sub(1));
    Ok(inner.unwrap_or_default().to_owned())
}

/// The event that [`to_json`] wrote.
pub(super) fn from_json(tag: Tag, json: &str) -> serde_json::Result<EventKind> {
    let tagged = format!("{{\"{}\":{json}}}", tag.name());
    serde_json::from_str::<Incoming>(&tagged).map(|incoming| incoming.0)
}

#[derive(Serialize)]
struct Outgoing<'a>(#[serde(with = "Detail")] &'a EventKind);

#[derive(Deserialize)]
struct Incoming(#[serde(with = "Detail")] EventKind);

#[derive(Serialize, Deserialize)]
#[serde(remote = "EventKind", rename_all = "snake_case")]
enum Detail {
    #[serde(skip)]
    Alloc {
        function: Function,
        address: u64,
        size: u64,
        stack: StackId,
    },
    #[serde(skip)]
    AllocFailed {
        function: Function,
        size: u64,
    },
    #[serde(skip)]
    Free {
        address: u64,
    },
    #[serde(skip)]
    Realloc {
        entered_ns: u64,
        old_address: u64,
        new_address: u64,
        size: u64,
        stack: StackId,
    },
    #[serde(skip)]
    Stack {
        id: StackId,
        frames: Box<[u64]>,
        end: End,
    },
    #[serde(skip)]
    Fault {
        address: u64,
        ip: u64,
        latency_ns: Option<u64>,
        stack: StackId,
        access: Access,
    },
    FaultTotals(#[serde(with = "fault_totals")] Box<FaultTotals>),
    #[serde(skip)]
    Syscall(Box<Syscall>),
    FileMapped(#[serde(with = "file_mapped")] Box<FileMapped>),
    Smaps(#[serde(with = "smaps")] Box<SmapsRegion>),
    #[serde(skip)]
    SmapsBegin,
    #[serde(skip)]
    SmapsEnd,
    Memory(#[serde(with = "memory")] Box<MemoryTotals>),
    Started(#[serde(with = "started")] Box<Started>),
    Fork {
        child: Pid,
        shares_memory: bool,
        comm: Box<str>,
    },
    ThreadStart {
        thread: u32,
    },
    #[serde(skip)]
    ThreadExit,
    Exec {
        path: Box<str>,
        comm: Box<str>,
        unfollowed: bool,
    },
    CommandLine {
        #[serde(deserialize_with = "arguments")]
        arguments: Box<[String]>,
        truncated: bool,
    },
    Rename {
        comm: Box<str>,
    },
    Exit {
        code: Option<i32>,
        signal: Option<i32>,
    },
    Cgroup {
        path: Box<str>,
    },
    HeapProbes {
        allocator: Box<str>,
        unavailable: Option<Box<str>>,
        late: bool,
    },
    Symbol(#[serde(with = "symbol")] Box<Symbol>),
    Counted {
        reason: Box<str>,
        count: u64,
        loss: bool,
    },
    Probe {
        name: Box<str>,
        attached: bool,
        reason: Option<Box<str>>,
    },
    Sampling {
        bytes: u64,
    },
    Touch {
        address: u64,
        stack: StackId,
        faults: u32,
    },
    TouchSampling {
        on: bool,
        kept: bool,
    },
    Machine(#[serde(with = "machine")] Box<Machine>),
    #[serde(skip)]
    End,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "FaultTotals")]
struct FaultTotalsDetail {
    user: u64,
    kernel: u64,
    minor_sum_ns: u64,
    major_sum_ns: u64,
    minor_untimed: u64,
    major_untimed: u64,
    #[serde(with = "buckets")]
    minor: [u64; BUCKETS],
    #[serde(with = "buckets")]
    major: [u64; BUCKETS],
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "FileMapped")]
struct FileMappedDetail {
    start: u64,
    length: u64,
    offset: u64,
    protection: u32,
    flags: u32,
    path: Box<str>,
    #[serde(with = "hexadecimal")]
    build_id: Box<[u8]>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "SmapsRegion")]
struct SmapsDetail {
    start: u64,
    end: u64,
    protection: u32,
    shared: bool,
    offset: u64,
    path: Box<str>,
    inode: u64,
    resident_bytes: u64,
    anonymous_bytes: u64,
    swapped_bytes: u64,
    huge_bytes: u64,
    advised_huge: Option<bool>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "MemoryTotals")]
struct MemoryDetail {
    file_bytes: u64,
    anonymous_bytes: u64,
    shared_bytes: u64,
    swapped_bytes: u64,
    peak_resident_bytes: u64,
    mapped_bytes: u64,
    #[serde(default)]
    peak_mapped_bytes: u64,
    break_start: u64,
    break_end: u64,
    stack: u64,
    approximate: bool,
    last: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Started")]
struct StartedDetail {
    parent: Pid,
    start_ns: u64,
    comm: Box<str>,
    exe: Box<str>,
    already_running: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Symbol")]
struct SymbolDetail {
    frame: u64,
    module: Option<Box<str>>,
    build_id: Option<Box<str>>,
    offset: Option<u64>,
    #[serde(with = "functions")]
    functions: Box<[SymbolFunction]>,
}

/// The `detail` of a symbol in a recording: what is said of its code.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Name {
    pub(super) module: Option<Box<str>>,
    pub(super) build_id: Option<Box<str>>,
    /// The offset in the module's file, less that of the symbol's code.
    pub(super) offset: Option<i64>,
    #[serde(with = "functions")]
    pub(super) functions: Box<[SymbolFunction]>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "SymbolFunction")]
struct FunctionDetail {
    name: Box<str>,
    file: Option<Box<str>>,
    line: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Machine")]
struct MachineDetail {
    memtrace: Box<str>,
    kernel: Box<str>,
    arch: Box<str>,
    huge_pages: bool,
}

/// serde's `with` for a boxed payload.
macro_rules! boxed {
    ($($module:ident: $value:ident as $detail:ident,)*) => {$(
        mod $module {
            use serde::{Deserializer, Serializer};

            pub(super) fn serialize<S: Serializer>(value: &super::$value, to: S) -> Result<S::Ok, S::Error> {
                super::$detail::serialize(value, to)
            }

            pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Box<super::$value>, D::Error> {
                super::$detail::deserialize(from).map(Box::new)
            }
        }
    )*};
}

boxed! {
    fault_totals: FaultTotals as FaultTotalsDetail,
    file_mapped: FileMapped as FileMappedDetail,
    smaps: SmapsRegion as SmapsDetail,
    memory: MemoryTotals as MemoryDetail,
    started: Started as StartedDetail,
    symbol: Symbol as SymbolDetail,
    machine: Machine as MachineDetail,
}

/// Bytes of an event's `detail`, as limits count them.
pub(super) fn bytes(kind: &EventKind, json: &str) -> usize {
    match kind {
        EventKind::Symbol(symbol) => name_bytes(json, symbol.functions.len()),
        EventKind::CommandLine { arguments, .. } => json.len() + ARGUMENT_BYTES * arguments.len(),
        _ => json.len(),
    }
}

/// The same of a name with so many functions.
pub(super) fn name_bytes(json: &str, functions: usize) -> usize {
    json.len() + FUNCTION_BYTES * functions
}

mod functions {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{FUNCTION_BYTES, FunctionDetail, SymbolFunction, bounded};

    #[derive(Serialize)]
    struct Outgoing<'a>(#[serde(with = "FunctionDetail")] &'a SymbolFunction);

    #[derive(Deserialize)]
    struct Incoming(#[serde(with = "FunctionDetail")] SymbolFunction);

    pub(super) fn serialize<S: Serializer>(
        functions: &[SymbolFunction],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(functions.iter().map(Outgoing))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(
        from: D,
    ) -> Result<Box<[SymbolFunction]>, D::Error> {
        let functions: Vec<Incoming> = bounded::list(from, FUNCTION_BYTES)?;
        Ok(functions.into_iter().map(|incoming| incoming.0).collect())
    }
}

fn arguments<'d, D: Deserializer<'d>>(from: D) -> Result<Box<[String]>, D::Error> {
    bounded::list(from, ARGUMENT_BYTES).map(Vec::into_boxed_slice)
}

/// A histogram as its buckets that are not empty: `[[bucket, count], …]`.
mod buckets {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::BUCKETS;

    pub(super) fn serialize<S: Serializer>(
        counts: &[u64; BUCKETS],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(counts.iter().enumerate().filter(|(_, count)| **count != 0))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(
        from: D,
    ) -> Result<[u64; BUCKETS], D::Error> {
        let mut counts = [0; BUCKETS];
        for (bucket, count) in Vec::<(usize, u64)>::deserialize(from)? {
            *counts
                .get_mut(bucket)
                .ok_or_else(|| D::Error::custom("no such bucket"))? = count;
        }
        Ok(counts)
    }
}

mod hexadecimal {
    use std::fmt::Write;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            let _ = write!(text, "{byte:02x}"); // A String takes everything.
        }
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Box<[u8]>, D::Error> {
        let text = String::deserialize(from)?;
        let digits: Option<Vec<u8>> = text
            .chars()
            .map(|digit| digit.to_digit(16).map(|value| value as u8))
            .collect();
        let digits = digits.filter(|digits| digits.len().is_multiple_of(2));
        let digits = digits.ok_or_else(|| D::Error::custom("not hexadecimal"))?;
        Ok(digits
            .chunks_exact(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect())
    }
}
