//! The report as a document: the JSON of the contract, and the only thing that text reports read.
//!
//! [`crate::model::Model::document`] makes it. `None` is "not measured", which is not zero.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the JSON.
pub const SCHEMA: u32 = 1;

/// One report, always whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of memtrace that traced.
    pub memtrace: String,
    /// Kernel release of the traced machine.
    pub kernel: String,
    /// Architecture of the traced machine.
    pub arch: String,
    /// What was seen and what was not.
    pub coverage: Coverage,
    /// In order of start, the traced command first.
    pub processes: Vec<Process>,
}

/// What was seen, what was not, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Events that the model applied.
    pub events: u64,
    /// Events known to be lost.
    pub lost: u64,
    /// The recording ends before the trace did.
    pub truncated: bool,
    /// By name of the counter; also counters that are no loss (cut stacks).
    pub lost_by_reason: BTreeMap<String, u64>,
    /// Records that could not be decoded.
    pub undecodable: u64,
    /// Frees of blocks that were allocated before tracing began.
    pub unmatched_frees: u64,
    /// Probes tried.
    pub probes: Vec<Probe>,
    /// Exited processes that were dropped to bound memory; their numbers are in no row.
    pub processes_dropped: u64,
    /// What the daemon left out: to keep to its budget, or as it was configured.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
}

/// Something that the daemon left out for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// From when on, in milliseconds since 1970.
    pub since_ms: i64,
    /// When it was known to be left out last; `None` for now.
    pub until_ms: Option<i64>,
    /// What, of which process, and why.
    pub what: String,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Tracepoint, function or event.
    pub name: String,
    /// Whether it was attached.
    pub attached: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// One process, by pid and start time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Thread-group id.
    pub pid: u32,
    /// Parent's.
    pub parent_pid: u32,
    /// `CLOCK_MONOTONIC`.
    pub start_time_ns: u64,
    /// `CLOCK_MONOTONIC`; null while it runs.
    pub end_time_ns: Option<u64>,
    /// Name of the main thread.
    pub comm: String,
    /// Path of the program.
    pub exe: String,
    /// Arguments.
    pub command_line: Vec<String>,
    /// cgroup path.
    pub cgroup: String,
    /// Null while it runs.
    pub exit: Option<Exit>,
    /// Null where the heap was not seen; [`Process::heap_reason`] says why.
    pub heap: Option<Heap>,
    /// Why `heap` is null, or partial.
    pub heap_reason: Option<String>,
    /// Mappings in sum.
    pub address_space: AddressSpace,
    /// Page faults.
    pub faults: Faults,
    /// Blocks still live, by allocation site, most bytes first.
    pub leaks: Vec<Leak>,
    /// Allocation sites, most bytes allocated first; empty where `heap` is null.
    pub sites: Vec<Site>,
    /// Sites that are not listed, in sum; null where all are.
    pub other_sites: Option<OtherSites>,
    /// Where its present program took page faults, most first. Those of `faults` that are missing here were of
    /// a program before exec, lost or too many to list.
    pub fault_sites: Vec<FaultSite>,
    /// Which stacks touched first what it committed since it was seen to grow, by a sample; null where no sample was
    /// taken.
    #[serde(default)]
    pub growth: Option<Growth>,
    /// What the stacks of `sites`, `fault_sites` and `growth` are made of.
    pub frames: Vec<Frame>,
    /// Mappings.
    pub regions: Vec<Region>,
    /// Over time.
    pub timeline: Vec<TimelinePoint>,
}

impl Process {
    /// The frames of a stack that is told by indices.
    pub fn stack(&self, stack: &[u32]) -> impl Iterator<Item = &Frame> {
        (stack.iter()).filter_map(|&index| self.frames.get(index as usize))
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
}

/// Heap counts of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heap {
    /// Successful calls that produced a block.
    pub allocations: u64,
    /// Blocks given back by the program.
    pub frees: u64,
    /// Successful reallocations of a block to a size above 0.
    pub reallocations: u64,
    /// Calls that asked for memory and got none.
    pub failed: u64,
    /// Sum of the sizes asked for, by allocations and reallocations.
    pub bytes_allocated: u64,
    /// Blocks not given back.
    pub live_blocks: u64,
    /// Their sizes as asked for.
    pub live_bytes: u64,
    /// Largest `live_bytes`.
    pub peak_live_bytes: u64,
    /// Frees of addresses that were never handed out; null where blocks are sampled.
    pub invalid_frees: Option<u64>,
    /// Frees of addresses that had been given back already; null where blocks are sampled.
    pub double_frees: Option<u64>,
    /// How the figures were estimated; null where every block was recorded.
    #[serde(default)]
    pub sampling: Option<Sampling>,
}

/// A heap whose figures are estimates: all but `failed`, which is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampling {
    /// Mean distance between sample points, in bytes (`--sample-bytes`).
    pub mean_bytes: u64,
    /// Blocks in the sample.
    pub samples: u64,
    /// Standard error of `allocations`.
    pub allocations_error: u64,
    /// Standard error of `bytes_allocated`.
    pub bytes_allocated_error: u64,
    /// Standard error of `live_blocks`.
    pub live_blocks_error: u64,
    /// Standard error of `live_bytes`.
    pub live_bytes_error: u64,
}

/// Mappings of one process in sum.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AddressSpace {
    /// Mapped.
    pub reserved_bytes: u64,
    /// Resident.
    pub committed_bytes: u64,
    /// Mapped and not resident.
    pub lazy_bytes: u64,
    /// Largest `reserved_bytes`.
    pub peak_reserved_bytes: u64,
    /// Largest `committed_bytes`.
    pub peak_committed_bytes: u64,
    /// Swapped out.
    pub swapped_bytes: Option<u64>,
    /// heap, anonymous, stack, file, shared, other.
    pub by_kind: BTreeMap<String, KindBytes>,
    /// Where `committed_bytes` comes from: `kernel counters`, `smaps` or `faults`.
    pub committed_source: String,
    /// Memory system calls that failed, by name.
    pub failed_calls: BTreeMap<String, u64>,
}

/// Bytes of one kind of mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindBytes {
    /// Mapped.
    pub reserved_bytes: u64,
    /// Resident.
    pub committed_bytes: u64,
}

/// Page faults of one process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Faults {
    /// Handled without I/O.
    pub minor: u64,
    /// Waited for I/O.
    pub major: u64,
    /// Taken in user mode.
    pub user: u64,
    /// Taken in kernel mode.
    pub kernel: u64,
    /// All of them; null where no latency was measured.
    pub latency_ns: Option<Latency>,
    /// By kind of mapping.
    pub by_kind: BTreeMap<String, KindFaults>,
}

/// Faults in one kind of mapping.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KindFaults {
    /// Handled without I/O.
    pub minor: u64,
    /// Waited for I/O.
    pub major: u64,
    /// Null where no latency was measured.
    pub latency_ns: Option<Latency>,
}

/// A latency distribution in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Faults with a latency.
    pub count: u64,
    /// Sum of minor-fault latencies.
    pub minor_sum: u64,
    /// Sum of major-fault latencies.
    pub major_sum: u64,
    /// Least.
    pub min: u64,
    /// Mean.
    pub mean: u64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Greatest.
    pub max: u64,
    /// Not cumulative; only buckets that are not empty.
    pub buckets: Vec<Bucket>,
}

/// One bucket of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Upper bound, inclusive, in nanoseconds.
    pub le: u64,
    /// Faults in this bucket alone.
    pub count: u64,
}

/// Live blocks of one allocation site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leak {
    /// Bytes as asked for.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
    /// Standard error of `bytes`; null where every block was recorded.
    #[serde(default)]
    pub bytes_error: Option<u64>,
    /// Standard error of `blocks`; null where every block was recorded.
    #[serde(default)]
    pub blocks_error: Option<u64>,
    /// Age of the oldest block at the end.
    pub oldest_age_ns: u64,
    /// Age of the newest.
    pub newest_age_ns: u64,
    /// Why `stack` has no more frames; null where no stack was taken.
    #[serde(default)]
    pub stack_end: Option<StackEnd>,
    /// Innermost first; empty with `--no-stacks`.
    pub stack: Vec<Frame>,
}

/// What was done at one or several allocation sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteTotals {
    /// Calls that produced a block.
    pub allocations: u64,
    /// Reallocations that ended here.
    pub reallocations: u64,
    /// Bytes asked for by both.
    pub bytes_allocated: u64,
    /// Blocks not given back.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Blocks that were live when the heap held most bytes.
    pub peak_blocks: u64,
    /// Their bytes. The sum over all sites is [`Heap::peak_live_bytes`].
    pub peak_bytes: u64,
}

/// One allocation site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// What was done at it.
    #[serde(flatten)]
    pub totals: SiteTotals,
    /// Why `stack` has no more frames; null where no stack was taken.
    #[serde(default)]
    pub stack_end: Option<StackEnd>,
    /// Indices into [`Process::frames`], innermost first; empty with `--no-stacks`.
    pub stack: Vec<u32>,
}

/// Allocation sites beyond the bound on what is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherSites {
    /// How many.
    pub sites: u64,
    /// What was done at them.
    #[serde(flatten)]
    pub totals: SiteTotals,
}

/// One place where faults were taken: a stack, or an instruction where none of its faults is in the sample.
///
/// The faults of an instruction are counted. How they share between its stacks is estimated by a sample, so the
/// sites of an instruction sum up to what was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultSite {
    /// Handled without I/O.
    pub minor: u64,
    /// Standard error of `minor`: 0 where each of the instruction's faults is in the sample; null where `stack` is
    /// the instruction alone, whose faults are counted.
    #[serde(default)]
    pub minor_error: Option<u64>,
    /// Waited for I/O. These are all in the sample.
    pub major: u64,
    /// Sum of the measured latencies.
    pub latency_ns: u64,
    /// Why `stack` has no more frames; null where it is the instruction alone.
    #[serde(default)]
    pub stack_end: Option<StackEnd>,
    /// Indices into [`Process::frames`], innermost first: the instruction that took the fault and its callers.
    pub stack: Vec<u32>,
}

/// Growth of committed memory by the stacks that touched its pages first. Pages of files are not in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// When the sample was begun: pages of before are in no site.
    pub since_ns: u64,
    /// When it was stopped; null while it is taken.
    pub until_ns: Option<u64>,
    /// Leak candidates first, then most bytes first.
    pub sites: Vec<GrowthSite>,
}

/// What one stack touched first and was not given back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrowthSite {
    /// Bytes, as estimated by the sample.
    pub bytes: u64,
    /// Standard error of `bytes`; 0 where each page is in the sample.
    pub bytes_error: u64,
    /// Pages in the sample.
    pub samples: u64,
    /// Growth a second, by least squares.
    pub bytes_per_second: f64,
    /// Standard error of `bytes_per_second`.
    pub bytes_per_second_error: f64,
    /// Probability that it grows, by the two figures before.
    pub confidence: f64,
    /// The time up to now that these are of.
    pub over_ns: u64,
    /// It grows steadily, does not come back down, and is past the thresholds of the configuration.
    pub leak_candidate: bool,
    /// Age of the first page that it holds.
    pub oldest_age_ns: u64,
    /// Age of the last.
    pub newest_age_ns: u64,
    /// What it held over time.
    pub points: Vec<GrowthPoint>,
    /// Why `stack` has no more frames; null where no stack was taken.
    pub stack_end: Option<StackEnd>,
    /// Indices into [`Process::frames`], innermost first.
    pub stack: Vec<u32>,
}

/// What a site held at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrowthPoint {
    /// When.
    pub time_ns: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Why a stack has no more frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StackEnd {
    /// It is whole: the thread's first function was reached.
    Start,
    /// It is deeper than what is taken.
    Truncated,
    /// No unwind rules cover the last frame's code, and its frame pointer leads nowhere.
    NoRules,
    /// The stack could not be read.
    Unreadable,
    /// The unwind rules of the last frame's code are of a kind that is not supported.
    UnsupportedRule,
    /// The next return address lies in no executable mapping.
    NoMapping,
    /// By the unwind rules of the last frame's code the stack would not get any shorter.
    StackPointer,
    /// What the process has mapped was not known yet, and the stack could not be copied.
    NotKnown,
}

/// How a frame was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// Its address is a return address: read at the function's entry, or by unwind rules.
    #[default]
    Rules,
    /// A return address too, by the frame pointer: no unwind rules cover the code that returns there.
    FramePointer,
    /// Its address is the instruction that a fault or a signal interrupted.
    Interrupted,
    /// A return address in the kernel.
    Kernel,
    /// Read from the Python interpreter, in the place of its loop: a function, without an address (0).
    Python,
}

/// One frame. An address may stand for several, inlined ones first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// Return address in the process, unless `found_by` says otherwise.
    pub address: u64,
    /// Path of the module.
    pub module: Option<String>,
    /// Build ID, hexadecimal.
    pub build_id: Option<String>,
    /// Offset in the module's file.
    pub offset: Option<u64>,
    /// Demangled.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// Inlined into the next frame.
    pub inlined: bool,
    /// How it was found.
    #[serde(default)]
    pub found_by: FoundBy,
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// As in /proc/PID/maps: `rw-p`.
    pub permissions: String,
    /// heap, anonymous, stack, file, shared, other.
    pub kind: String,
    /// File, or a pseudo-path such as `[vdso]`.
    pub path: Option<String>,
    /// Length.
    pub reserved_bytes: u64,
    /// Resident.
    pub committed_bytes: u64,
    /// Faults taken in it.
    pub faults: u64,
}

/// One moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelinePoint {
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Mapped.
    pub reserved_bytes: u64,
    /// Resident.
    pub committed_bytes: u64,
    /// Null where the heap was not seen.
    pub heap_live_bytes: Option<u64>,
    /// Size of the brk area.
    pub program_break_bytes: u64,
    /// Minor faults so far.
    pub minor: u64,
    /// Major faults so far.
    pub major: u64,
}
