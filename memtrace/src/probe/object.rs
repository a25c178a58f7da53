//! The BPF object: loaded with its configuration, its maps and programs handed out.

use std::{fs, io, os::fd::BorrowedFd};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, MapData, MapError, RingBuf},
    programs::Program,
};
use memtrace_common::{
    counter::Counter,
    growth::Growing,
    heap::{GROUP_SIZE, Point},
    histogram::{FaultHistogram, HistogramKey, KernelCounts},
    record::MAX_RINGS,
    run_time::RunTime,
    target::{Area, FOLLOW, Target},
    unwind::{CodeSpace, SCRATCH_PER_CPU},
};

use super::{
    Error, btf,
    ring::{self, Ring},
    run_time,
    unwind::{MappedRows, SPACES, Spaces},
};
use crate::unwind::Kernel;

/// An entry that is there stays: include/uapi/linux/bpf.h.
const BPF_NOEXIST: u64 = 1;

/// The object, compiled by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/memtrace.bpf.o"));

/// Forwards the programs' own messages.
pub type Logger = aya_log::EbpfLogger<&'static dyn log::Log>;

/// One in so many minor faults has its stack taken, on average.
const FAULT_SAMPLE: u64 = 64;

/// Live blocks of a sample that there is room for.
const SAMPLED_BLOCKS: u32 = 1 << 20;

/// The ring buffers that there may be.
const RINGS: [&str; MAX_RINGS] = [
    "RING_0", "RING_1", "RING_2", "RING_3", "RING_4", "RING_5", "RING_6", "RING_7",
];

/// Size of one that is not used: a page.
const UNUSED_RING: u32 = 4096;

/// What is decided when the programs are loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Size of all ring buffers together in bytes; a power of two.
    pub ring_bytes: u32,
    /// Slots for calls and faults in flight; a power of two. Threads whose ids are equal modulo this share one.
    pub slots: u32,
    /// Take a stack at each allocation.
    pub stacks: bool,
    /// Mean distance between minor faults whose stack is taken.
    pub fault_sample: u64,
    /// Mean distance in bytes between sample points; `None` records every block.
    pub sample_bytes: Option<u64>,
    /// For measuring what the hooks cost by themselves: the programs of faults and of the heap return at once.
    pub hooks_only: bool,
    /// Processes that are traced without being told.
    pub area: Area,
    /// Send each fault, rather than counts and latencies alone.
    pub tell_faults: bool,
    /// Time faults only in windows that are opened ([`super::fault::FaultProbes::open_windows`]).
    pub fault_windows: bool,
    /// Whether the programs measure what they take.
    pub measure_runs: bool,
    /// Unwind rules that fit, of all files together; 8 bytes each.
    pub unwind_rows: u32,
    /// Level of the programs' own messages.
    pub log_level: log::LevelFilter,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            ring_bytes: ring::default_bytes(usable_cpus()),
            slots: 1 << 16,
            stacks: true,
            fault_sample: FAULT_SAMPLE,
            sample_bytes: None,
            hooks_only: false,
            area: Area::NONE,
            tell_faults: true,
            fault_windows: false,
            measure_runs: false,
            unwind_rows: 1 << 21,
            log_level: log::LevelFilter::Warn,
        }
    }
}

/// The loaded object.
pub struct Object {
    ebpf: Ebpf,
    points: Array<MapData, Point>,
    targets: HashMap<MapData, u32, Target>,
    generation: Array<MapData, u32>,
    histograms: HashMap<MapData, HistogramKey, FaultHistogram>,
    counters: Array<MapData, u64>,
    run_times: Array<MapData, RunTime>,
    ends_everywhere: Array<MapData, u32>,
    growing: HashMap<MapData, u32, Growing>,
    awaited: Array<MapData, u32>,
    code_spaces: Spaces,
    rows: Option<MappedRows>,
    rings: Option<Vec<Ring>>,
}

impl Object {
    /// Loads the maps and all programs.
    pub fn load(options: &LoadOptions) -> Result<Self, Error> {
        let offsets = btf::kernel_offsets();
        let per_cpu_offset = kernel_symbol("__per_cpu_offset").unwrap_or(0);
        let cpus = aya::util::nr_cpus().unwrap_or(0) as u32;
        let (rings, ring_bytes) = ring::share(options.ring_bytes, usable_cpus());
        let with_fault_stacks = options.stacks && options.tell_faults;
        let fault_sample = if with_fault_stacks {
            options.fault_sample
        } else {
            0
        };
        // Without a sample it is not used, and its buckets alone would take 16 MiB.
        let sampled = options.sample_bytes.map_or(1, |_| SAMPLED_BLOCKS);
        let mut loader = EbpfLoader::new();
        for (name, number) in RINGS.iter().zip(0..) {
            let bytes = if number < rings {
                ring_bytes
            } else {
                UNUSED_RING
            };
            loader.map_max_entries(name, bytes);
        }
        let mut ebpf = loader
            // No relocation of the programs' needs the kernel's types, which take long to read.
            .btf(None)
            .override_global("OFFSETS", &offsets, true)
            .override_global("PER_CPU_OFFSET", &per_cpu_offset, true)
            .override_global("CPUS", &cpus, true)
            .override_global("SLOT_MASK", &(options.slots - 1), true)
            .override_global("TAKE_STACKS", &u8::from(options.stacks), true)
            .override_global("SAMPLE_BYTES", &options.sample_bytes.unwrap_or(0), true)
            .override_global("FAULT_SAMPLE", &fault_sample, true)
            .override_global("HOOKS_ONLY", &u8::from(options.hooks_only), true)
            .override_global("MEASURE_RUNS", &u8::from(options.measure_runs), true)
            .override_global("AREA", &options.area, true)
            .override_global("TELL_FAULTS", &u8::from(options.tell_faults), true)
            .override_global("FAULT_WINDOWS", &u8::from(options.fault_windows), true)
            .override_global("RING_MASK", &(rings - 1), true)
            .override_global("WAKEUP_BYTES", &u64::from(ring_bytes / 16), true)
            .override_global("AYA_LOG_LEVEL", &(options.log_level as u8), false)
            .map_max_entries("CALL_SLOTS", options.slots)
            .map_max_entries("FAULT_SLOTS", options.slots)
            .map_max_entries("SYSCALL_SLOTS", options.slots)
            .map_max_entries("UNWIND_ROWS", options.unwind_rows)
            .map_max_entries("SCRATCH", cpus.max(1) * SCRATCH_PER_CPU)
            .map_max_entries("SAMPLED", sampled)
            .load(OBJECT)
            .map_err(load_error)?;
        let rings = join_rings(&mut ebpf, rings)?;
        for (name, program) in ebpf.programs_mut() {
            load_program(program)?;
            let info = program.info().ok();
            if let Some(count) = info.and_then(|info| info.verified_instruction_count()) {
                log::debug!("{name}: the verifier walked {count} instructions");
            }
        }
        Ok(Self {
            points: array(&mut ebpf, "POINTS")?,
            targets: hash(&mut ebpf, "TARGETS")?,
            generation: array(&mut ebpf, "GENERATION")?,
            histograms: hash(&mut ebpf, "HISTOGRAMS")?,
            counters: array(&mut ebpf, "COUNTERS")?,
            run_times: array(&mut ebpf, "RUN_TIMES")?,
            ends_everywhere: array(&mut ebpf, "ENDS_EVERYWHERE")?,
            growing: hash(&mut ebpf, "GROWING")?,
            awaited: array(&mut ebpf, "AWAITED")?,
            code_spaces: hash(&mut ebpf, SPACES)?,
            rows: Some(MappedRows::take(&mut ebpf, options.unwind_rows)?),
            rings: Some(rings),
            ebpf,
        })
    }

    /// The reading ends of the stream; once.
    pub fn take_rings(&mut self) -> Result<Vec<Ring>, Error> {
        self.rings.take().ok_or(Error::Object { name: "RINGS" })
    }

    /// The table of unwind rules; once.
    pub fn take_rows(&mut self) -> Result<MappedRows, Error> {
        self.rows.take().ok_or(Error::Object {
            name: "UNWIND_ROWS",
        })
    }

    /// The programs' own messages, forwarded to `log`; `None` where the object has none.
    pub fn logger(&mut self) -> Option<Logger> {
        aya_log::EbpfLogger::init(&mut self.ebpf).ok()
    }

    /// Descriptor of a loaded program.
    pub fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, Error> {
        use std::os::fd::AsFd as _;
        let program = self.ebpf.program(name).ok_or(Error::Object { name })?;
        Ok(program.fd().map_err(|_| Error::Object { name })?.as_fd())
    }

    /// Attaches a raw tracepoint program for as long as the object lives.
    pub fn attach_raw(&mut self, name: &'static str, tracepoint: &str) -> Result<(), Error> {
        let Some(Program::RawTracePoint(program)) = self.ebpf.program_mut(name) else {
            return Err(Error::Object { name });
        };
        program
            .attach(tracepoint)
            .map(drop)
            .map_err(|error| Error::Attach {
                name: tracepoint.to_owned(),
                source: std::io::Error::other(error),
            })
    }

    /// Writes an entry point at its place in the table.
    pub fn set_point(&mut self, group: u32, address: u64, point: Point) -> Result<(), Error> {
        let index = group * GROUP_SIZE + (address % u64::from(GROUP_SIZE)) as u32;
        let written = self.points.set(index, point, 0);
        written.map_err(|error| Error::Map {
            name: "POINTS",
            reason: error.to_string(),
        })
    }

    /// Tells the programs whether every CPU tells the ends of faults ([`super::fault::FaultProbes::widen`]).
    pub fn set_ends_everywhere(&mut self, told: bool) -> Result<(), Error> {
        let written = self.ends_everywhere.set(0, u32::from(told), 0);
        written.map_err(|error| Error::Map {
            name: "ENDS_EVERYWHERE",
            reason: error.to_string(),
        })
    }

    /// Whether the reader is woken by new programs, libraries and ends of processes: it has probes to place. Without, it
    /// learns of them when it looks.
    pub fn set_awaited(&mut self, awaited: bool) -> Result<(), Error> {
        let written = self.awaited.set(0, u32::from(awaited), 0);
        written.map_err(|error| Error::Map {
            name: "AWAITED",
            reason: error.to_string(),
        })
    }

    /// Traces a process from now on; `start_ns` is part of its identity.
    pub fn trace(&mut self, pid: u32, start_ns: u64, follow: bool) -> Result<(), Error> {
        let failed = |error: aya::maps::MapError| Error::Map {
            name: "TARGETS",
            reason: error.to_string(),
        };
        let key = HistogramKey {
            pid,
            start_low: start_ns as u32,
        };
        self.histograms
            .insert(key, FaultHistogram::EMPTY, 0)
            .map_err(failed)?;
        let target = Target {
            start_ns,
            flags: if follow { FOLLOW } else { 0 },
            code_changes: 0,
        };
        self.targets.insert(pid, target, 0).map_err(failed)?;
        self.look_up_again();
        Ok(())
    }

    /// Traces a process that runs in the area, with its children. `counted` is what the kernel counted of its faults by
    /// now. False: the kernel side met it before.
    pub fn trace_in_area(
        &mut self,
        pid: u32,
        start_ns: u64,
        counted: KernelCounts,
    ) -> Result<bool, Error> {
        let target = Target {
            start_ns,
            flags: FOLLOW,
            code_changes: 0,
        };
        match self.targets.insert(pid, target, BPF_NOEXIST) {
            Ok(()) => {}
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                return Ok(false);
            }
            Err(error) => {
                return Err(Error::Map {
                    name: "TARGETS",
                    reason: error.to_string(),
                });
            }
        }
        let key = HistogramKey {
            pid,
            start_low: start_ns as u32,
        };
        let histogram = FaultHistogram {
            counted,
            ..FaultHistogram::EMPTY
        };
        if let Err(error) = self.histograms.insert(key, histogram, 0) {
            self.forget(pid);
            return Err(Error::Map {
                name: "HISTOGRAMS",
                reason: error.to_string(),
            });
        }
        Ok(true)
    }

    /// Traces a process no more.
    pub fn forget(&mut self, pid: u32) {
        if let Err(error) = self.targets.remove(&pid) {
            log::debug!("pid {pid} was not traced any more: {error}");
        }
    }

    /// How the faults of a process that grows are sampled; `None` takes none any more.
    pub fn set_growing(&mut self, pid: u32, how: Option<Growing>) -> Result<(), Error> {
        let done = match how {
            Some(how) => self.growing.insert(pid, how, 0),
            None => match self.growing.remove(&pid) {
                Err(MapError::SyscallError(error))
                    if error.io_error.kind() == io::ErrorKind::NotFound =>
                {
                    Ok(())
                }
                done => done,
            },
        };
        done.map_err(|error| Error::Map {
            name: "GROWING",
            reason: error.to_string(),
        })
    }

    /// Stops tracing every process.
    pub fn forget_all(&mut self) {
        let traced: Vec<u32> = self.targets.keys().filter_map(Result::ok).collect();
        for pid in traced {
            self.forget(pid);
        }
        self.look_up_again();
    }

    /// What threads remember of whether they are traced does not hold any more.
    fn look_up_again(&mut self) {
        let generation = self.generation.get(&0, 0).unwrap_or(0).wrapping_add(1);
        if let Err(error) = self.generation.set(0, generation, 0) {
            log::debug!("GENERATION: {error}");
        }
    }

    /// The fault histogram of a process; with `last`, it is removed.
    pub fn histogram(&mut self, key: HistogramKey, last: bool) -> Option<FaultHistogram> {
        let histogram = self.histograms.get(&key, 0).ok();
        if last && let Err(error) = self.histograms.remove(&key) {
            log::debug!("no histogram of pid {}: {error}", key.pid);
        }
        histogram
    }

    /// Nanoseconds that the programs took so far, as estimated ([`LoadOptions::measure_runs`]).
    pub fn spent_ns(&self) -> u64 {
        run_time::spent_ns(|hook| self.run_times.get(&(hook as u32), 0).unwrap_or_default())
    }

    /// The value of a counter since the object was loaded.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(&(counter as u32), 0).unwrap_or(0)
    }
}

impl Kernel for Object {
    fn code_changes(&self, pid: u32) -> Option<u64> {
        let target = self.targets.get(&pid, 0).ok()?;
        Some(target.code_changes)
    }

    fn set_code_space(&mut self, pid: u32, space: &CodeSpace) -> Result<(), Error> {
        let written = self.code_spaces.insert(pid, space, 0);
        written.map_err(|error| Error::Map {
            name: SPACES,
            reason: error.to_string(),
        })
    }

    fn forget_code_space(&mut self, pid: u32) {
        // It is not there where no code was ever seen; that is no loss.
        let _ = self.code_spaces.remove(&pid);
    }
}

fn load_program(program: &mut Program) -> Result<(), Error> {
    match program {
        Program::RawTracePoint(program) => program.load(),
        Program::PerfEvent(program) => program.load(),
        Program::UProbe(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        _ => {
            return Err(Error::Object {
                name: "a program of a known type",
            });
        }
    }
    .map_err(program_error)
}

/// Those that may be used here: in a container fewer than there are, and there memory is short too.
fn usable_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32)
}

/// Puts the first `count` ring buffers where the programs look for them; the others go.
fn join_rings(ebpf: &mut Ebpf, count: u32) -> Result<Vec<Ring>, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Map {
        name: "RINGS",
        reason: error.to_string(),
    };
    let mut rings = Vec::new();
    for (&name, number) in RINGS.iter().zip(0..) {
        let map = ebpf.take_map(name).ok_or(Error::Object { name })?;
        if number < count {
            let buffer = RingBuf::try_from(map).map_err(|error| failed(&error))?;
            let map = ebpf
                .map_mut("RINGS")
                .ok_or(Error::Object { name: "RINGS" })?;
            let mut table: ArrayOfMaps<_, RingBuf<MapData>> =
                ArrayOfMaps::try_from(map).map_err(|error| failed(&error))?;
            let set = table.set(number, &buffer, 0);
            set.map_err(|error| failed(&error))?;
            rings.push(Ring::new(buffer).map_err(|error| failed(&error))?);
        }
    }
    Ok(rings)
}

fn load_error(error: aya::EbpfError) -> Error {
    privileges_or(format!("{error}{}", cause(&error)))
}

fn program_error(error: aya::programs::ProgramError) -> Error {
    if let aya::programs::ProgramError::LoadError { verifier_log, .. } = &error {
        log::debug!("{verifier_log}");
    }
    privileges_or(format!("{error}{}", cause(&error)))
}

fn cause(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map(|source| format!(": {source}"))
        .unwrap_or_default()
}

/// A refusal is best explained by what the caller lacks.
fn privileges_or(reason: String) -> Error {
    if !nix::unistd::geteuid().is_root() {
        return Error::Privileges;
    }
    let reason = reason.lines().next().unwrap_or_default().to_owned();
    Error::Load { reason }
}

fn array<V: aya::Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Array<MapData, V>, Error> {
    let map = ebpf.take_map(name).ok_or(Error::Object { name })?;
    Array::try_from(map).map_err(|_| Error::Object { name })
}

fn hash<K: aya::Pod, V: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, Error> {
    let map = ebpf.take_map(name).ok_or(Error::Object { name })?;
    HashMap::try_from(map).map_err(|_| Error::Object { name })
}

/// Address of a kernel symbol; `None` where kptr_restrict hides it.
fn kernel_symbol(name: &str) -> Option<u64> {
    let symbols = fs::read_to_string("/proc/kallsyms").ok()?;
    let line = symbols
        .lines()
        .find(|line| line.split_whitespace().nth(2) == Some(name))?;
    u64::from_str_radix(line.split_whitespace().next()?, 16)
        .ok()
        .filter(|&address| address != 0)
}
