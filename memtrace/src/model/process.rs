//! One process, and the memory that it lives in.

use std::{borrow::Cow, sync::Arc};

use rustc_hash::FxHashMap;

use crate::{
    event::{Event, EventKind, Pid, Symbol},
    report::document::{self, Exit, TimelinePoint},
};

use super::{
    address_space::AddressSpace,
    fault::FaultStats,
    fault_site::{FaultSites, FaultUse},
    growth::GrowthUses,
    heap::{Counts, Heap},
    region::{Kind, Mapped, is_file},
    site::SiteUses,
    timeline::Timeline,
};

/// Number of a process in the model; a pid may have several, one after the other.
pub type ProcessId = u32;
/// Number of an address space.
pub type SpaceId = u32;
/// Number of a program image: what exec makes, and fork passes on.
pub type ImageId = u32;

/// Announcements held back for one process at most.
const PENDING_LIMIT: usize = 1024;

/// An address space with its heap, shared by those that vfork or CLONE_VM made.
#[derive(Debug, Default)]
pub struct Space {
    /// Processes in it that have not been summarised.
    pub users: u32,
    /// Its mappings.
    pub memory: AddressSpace,
    /// Its blocks.
    pub heap: Heap,
    /// The heap was seen from its first block on.
    pub complete: bool,
    /// Events of a process in it were lost.
    pub lossy: bool,
}

impl Space {
    /// Something happens in it: from now on its blocks are sampled, where that was told.
    pub fn note_sampling(&mut self, mean_bytes: Option<u64>) {
        if let Some(mean_bytes) = mean_bytes {
            self.heap.sample(mean_bytes);
        }
    }
}

/// The names of code addresses in a program image.
#[derive(Debug, Default)]
pub struct Image {
    /// Processes that run it.
    pub users: u32,
    /// By address.
    pub symbols: FxHashMap<u64, Symbol>,
}

/// Whether the heap of a process is seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HeapSeen {
    /// No event told.
    #[default]
    Unknown,
    /// It is.
    Yes,
    /// It is, since probes were placed while the allocator was in use.
    Late,
    /// It is not, for this reason.
    No(Box<str>),
}

/// A file mapping, as frames without a symbol are told.
#[derive(Clone, Debug)]
pub struct Module {
    /// First address.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// Offset of `start` in the file.
    pub offset: u64,
    /// The file.
    pub mapped: Arc<Mapped>,
}

/// What is kept of a process that has ended.
#[derive(Debug)]
pub struct Summary {
    /// Its row, without sites.
    pub row: document::Process,
    /// Its allocation sites.
    pub sites: SiteUses,
    /// Where it took its faults, most faults first.
    pub fault_sites: Vec<FaultUse>,
    /// How its memory grew, where that was sampled.
    pub growth: Option<GrowthUses>,
    /// Its file mappings.
    pub modules: Vec<Module>,
    /// Heap counts; `None` where the heap was another's or not seen.
    pub counts: Option<Counts>,
    /// Whether the heap was seen from its first block on and nothing of it is known to be lost.
    pub complete: bool,
}

/// One process, by pid and start time.
#[derive(Debug)]
pub struct Process {
    /// Thread-group id.
    pub pid: Pid,
    /// Parent's.
    pub parent: Pid,
    /// When it started, in nanoseconds.
    pub start_ns: u64,
    /// When its last thread ended.
    pub end_ns: Option<u64>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Name of the main thread.
    pub comm: Box<str>,
    /// Path of the program.
    pub exe: Box<str>,
    /// Arguments.
    pub command_line: Vec<String>,
    /// cgroup path.
    pub cgroup: Box<str>,
    /// Where it lives.
    pub space: SpaceId,
    /// What it runs.
    pub image: ImageId,
    /// The pid in whose address space it lives until it execs.
    pub guest_of: Option<Pid>,
    /// Whether its heap is seen.
    pub heap_seen: HeapSeen,
    /// Its faults, over all its programs.
    pub faults: FaultStats,
    /// Where its present program takes them.
    pub fault_sites: FaultSites,
    /// Its history, over all its programs.
    pub timeline: Timeline,
    /// It is to be launched: what it was before its exec is the launcher's copy and no history of its own.
    pub launching: bool,
    /// Announced mappings, and kernel-mode faults after them, that may belong to a program being exec'd.
    ///
    /// exec maps the new program before it is told, and within a vfork child these would land in the
    /// parent's memory. An event from user code, or a system call, shows that no exec is under way.
    pub pending: Vec<Event>,
    /// What is left of it.
    pub summary: Option<Box<Summary>>,
}

impl Process {
    /// Holds an event back if it may belong to an exec under way. Says whether it did.
    pub fn hold(&mut self, event: &Event) -> bool {
        let held = match &event.kind {
            EventKind::FileMapped(_) => true,
            EventKind::Fault { access, .. } => access.kernel && self.has_pending(event.tid),
            _ => false,
        };
        if held && self.pending.len() < PENDING_LIMIT {
            self.pending.push(event.clone());
            return true;
        }
        false
    }

    /// Whether something of this thread is held back.
    fn has_pending(&self, tid: u32) -> bool {
        self.pending
            .iter()
            .any(|event| event.tid == tid || event.tid == 0 || tid == 0)
    }

    /// Whether `event` shows that what was held back belongs to the present program.
    pub fn releases(&self, event: &Event) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        match &event.kind {
            EventKind::SmapsBegin | EventKind::Exit { .. } | EventKind::Fork { .. } => true,
            EventKind::Alloc { .. }
            | EventKind::AllocFailed { .. }
            | EventKind::Free { .. }
            | EventKind::Realloc { .. }
            | EventKind::Syscall(_)
            | EventKind::ThreadStart { .. }
            | EventKind::Fault { .. } => self.has_pending(event.tid),
            // Of the thread's own: before an execve takes the old program away, and when the new one is in place.
            EventKind::Memory(totals) => event.tid != 0 && !totals.last,
            EventKind::FileMapped(_) => self.pending.len() >= PENDING_LIMIT,
            _ => false,
        }
    }

    /// The heap counts to report, or why there are none.
    pub fn heap_of<'a>(&self, space: &'a Space) -> Result<&'a Heap, String> {
        if let Some(host) = self.guest_of {
            return Err(format!("it lives in the memory of process {host}"));
        }
        match &self.heap_seen {
            HeapSeen::Yes => Ok(&space.heap),
            HeapSeen::Late if space.heap.is_untouched() => {
                Err("the probes came after its calls, and no call was seen since".to_owned())
            }
            HeapSeen::Late => Ok(&space.heap),
            HeapSeen::No(reason) => Err(reason.to_string()),
            HeapSeen::Unknown => Err("no probes on an allocator of this process".to_owned()),
        }
    }

    /// Its state at `time_ns`.
    pub fn point(&self, time_ns: u64, space: &Space) -> TimelinePoint {
        let (minor, major) = self.faults.counts();
        TimelinePoint {
            time_ns,
            reserved_bytes: space.memory.reserved(),
            committed_bytes: space.memory.committed().0,
            heap_live_bytes: self
                .heap_of(space)
                .ok()
                .map(|heap| heap.counts().live_bytes),
            program_break_bytes: space.memory.program_break_bytes(),
            minor,
            major,
        }
    }

    /// Its mappings, those held back included.
    pub fn memory<'a>(&self, space: &'a Space) -> Cow<'a, AddressSpace> {
        if self.pending.is_empty() || self.guest_of.is_some() {
            return Cow::Borrowed(&space.memory);
        }
        let mut memory = space.memory.clone();
        for event in &self.pending {
            replay(&mut memory, event);
        }
        Cow::Owned(memory)
    }
}

/// Applies an event that was held back; its fault was counted when it came.
pub fn replay(memory: &mut AddressSpace, event: &Event) {
    match &event.kind {
        EventKind::FileMapped(mapped) => memory.announce(event.time_ns, mapped),
        EventKind::Fault {
            address, access, ..
        } => {
            memory.fault(event.time_ns, *address, *access);
        }
        _ => {}
    }
}

/// The file mappings of an address space, lowest first.
pub fn modules(memory: &AddressSpace) -> Vec<Module> {
    memory
        .regions()
        .filter_map(|(start, region)| {
            let mapped = region.mapped.as_ref()?;
            is_file(&mapped.path).then(|| Module {
                start,
                end: region.end,
                offset: region.offset,
                mapped: Arc::clone(mapped),
            })
        })
        .collect()
}

impl Process {
    /// The kind of the mapping, held back, that holds `address`.
    pub fn kind_of_pending(&self, address: u64) -> Kind {
        self.pending
            .iter()
            .rev()
            .find_map(|event| match &event.kind {
                EventKind::FileMapped(mapped) => {
                    let inside = address.wrapping_sub(mapped.start) < mapped.length;
                    inside.then(|| Kind::of(Some(&mapped.path), mapped.flags & 1 != 0))
                }
                _ => None,
            })
            .unwrap_or(Kind::Other)
    }
}
