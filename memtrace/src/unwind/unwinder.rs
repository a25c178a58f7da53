//! Keeps the kernel side's tables and walks the stacks that it copied.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use memtrace_common::{
    counter::Counter,
    unwind::{CodeSpace, End},
};

use super::{
    spaces::Spaces,
    tables::{RowStore, Tables},
    walk::{CopiedStack, walk},
};
use crate::{
    event::{Event, EventKind, Pid, StackId},
    python::{Python, code::Code, interpreter::Interpreters},
    stack::symbolize::Mapping,
};

/// The kernel side's tables of processes.
pub trait Kernel {
    /// How often a traced process's code changed; `None` where it is not traced any more.
    fn code_changes(&self, pid: Pid) -> Option<u64>;
    /// Replaces the executable mappings of a process.
    fn set_code_space(&mut self, pid: Pid, space: &CodeSpace) -> Result<(), crate::probe::Error>;
    /// Drops them.
    fn forget_code_space(&mut self, pid: Pid);
}

/// Ids kept of stacks that were told.
const TOLD: usize = 1 << 16;

/// The id in a record whose stack was copied.
const COPIED: StackId = StackId::MAX;

/// Both tables, and stacks under way.
pub struct Unwinder {
    active: bool,
    /// The processes whose stacks are taken; `None` for all.
    chosen: Option<HashSet<Pid>>,
    /// Those besides whose growth is sampled.
    growing: HashSet<Pid>,
    tables: Tables,
    spaces: Spaces,
    interpreters: Interpreters,
    python: Python,
    /// Count of changes when a process was first seen to have changed. All that led to it was in the buffers
    /// then: once they have been drained a table can be made as of that count.
    seen: HashMap<Pid, u64>,
    generation: u64,
    /// Last copied stacks of each thread, of a fault and of a call, until a record names them.
    copied: HashMap<(u32, bool), StackId>,
    told: HashSet<StackId>,
    counts: HashMap<&'static str, u64>,
}

impl Unwinder {
    /// Keeps rows in `store`; does nothing unless stacks are taken.
    pub fn new(store: Box<dyn RowStore>, active: bool) -> Self {
        Self {
            active,
            chosen: None,
            growing: HashSet::new(),
            tables: Tables::new(store),
            spaces: Spaces::default(),
            interpreters: Interpreters::default(),
            python: Python::default(),
            seen: HashMap::new(),
            generation: 0,
            copied: HashMap::new(),
            told: HashSet::new(),
            counts: HashMap::new(),
        }
    }

    /// Keeps tables of those processes alone that are named by [`Unwinder::follow`], and of what they fork.
    pub fn choose(&mut self) {
        self.chosen.get_or_insert_default();
    }

    /// Keeps tables of a process that has these mappings.
    pub fn follow(&mut self, pid: Pid, mappings: &[Mapping]) {
        if let Some(chosen) = &mut self.chosen {
            chosen.insert(pid);
            self.spaces.seed(pid, mappings);
        }
    }

    /// Keeps none any more.
    pub fn leave(&mut self, pid: Pid) {
        if let Some(chosen) = &mut self.chosen {
            chosen.remove(&pid);
            self.drop_unused(pid);
        }
    }

    /// Keeps tables of a process for the sake of its growth: what it forks has none.
    pub fn follow_growth(&mut self, pid: Pid, mappings: &[Mapping]) {
        let is_chosen = self.is_chosen(pid);
        if self.growing.insert(pid) && !is_chosen {
            self.spaces.seed(pid, mappings);
        }
    }

    /// Keeps none any more for that reason.
    pub fn leave_growth(&mut self, pid: Pid) {
        if self.growing.remove(&pid) {
            self.drop_unused(pid);
        }
    }

    fn is_chosen(&self, pid: Pid) -> bool {
        let chosen = self.chosen.as_ref();
        chosen.is_none_or(|chosen| chosen.contains(&pid))
    }

    fn drop_unused(&mut self, pid: Pid) {
        if !self.is_chosen(pid) && !self.growing.contains(&pid) {
            self.seen.remove(&pid);
            self.spaces.leave(pid);
        }
    }

    /// Whether an event is of a process that tables are kept of; a child's are those of its parent.
    fn keeps(&mut self, event: &Event) -> bool {
        let Some(chosen) = &mut self.chosen else {
            return true;
        };
        if !chosen.contains(&event.pid) {
            let kept = self.growing.contains(&event.pid);
            if let (true, EventKind::Fork { child, .. }) = (kept, &event.kind) {
                self.spaces.leave_child(event.pid, *child);
                return false;
            }
            return kept;
        }
        match event.kind {
            EventKind::Fork { child, .. } => {
                chosen.insert(child);
            }
            EventKind::Exit { .. } => {
                chosen.remove(&event.pid);
            }
            _ => {}
        }
        true
    }

    /// Compiles the rules of files that are about to be mapped.
    pub fn prepare(&mut self, files: &[PathBuf]) {
        if !self.active {
            return;
        }
        for file in files {
            self.tables.prepare(file);
        }
        log::debug!("unwind rules take {} bytes", self.tables.bytes());
    }

    /// Notes what an event says of executable mappings.
    pub fn note(&mut self, event: &Event) {
        if !self.active || !self.keeps(event) {
            return;
        }
        self.spaces.note(event);
        if let EventKind::Exit { .. } = event.kind {
            self.seen.remove(&event.pid);
        }
    }

    /// Puts the id of the walked stack in place of the mark of a copied one.
    pub fn resolve(&mut self, event: &mut Event) {
        let of_fault = matches!(
            event.kind,
            EventKind::Fault { .. } | EventKind::Touch { .. }
        );
        if let EventKind::Alloc { stack, .. }
        | EventKind::Realloc { stack, .. }
        | EventKind::Fault { stack, .. }
        | EventKind::Touch { stack, .. } = &mut event.kind
            && *stack == COPIED
        {
            *stack = self.copied.remove(&(event.tid, of_fault)).unwrap_or(0);
        }
    }

    /// Walks a copied stack. An event tells its frames, unless one did before.
    pub fn walk(&mut self, copy: &CopiedStack) -> Option<Event> {
        self.find_rules(copy.pid);
        let mapping = |address| self.spaces.find(copy.pid, address);
        let walked = walk(copy, mapping, |index| self.tables.row(index));
        if !copy.of_fault
            && let Some(counter) = counter(walked.end)
        {
            *self.counts.entry(counter.name()).or_default() += 1;
        }
        self.copied.insert((copy.tid, copy.of_fault), walked.id);
        if self.told.len() >= TOLD {
            self.told.clear();
        }
        if !self.told.insert(walked.id) {
            return None;
        }
        let kind = EventKind::Stack {
            id: walked.id,
            frames: walked.frames,
            end: walked.end,
        };
        Some(Event {
            time_ns: copy.time_ns,
            pid: copy.pid,
            tid: copy.tid,
            kind,
        })
    }

    /// Publishes the mappings of processes that changed, each in two steps: see [`Unwinder::seen`]. True where a
    /// step is left, for after the next drain.
    pub fn publish(&mut self, kernel: &mut dyn Kernel) -> bool {
        self.spaces.remove_left(|pid| kernel.forget_code_space(pid));
        for pid in std::mem::take(&mut self.spaces.changed) {
            let Some(changes) = kernel.code_changes(pid) else {
                self.seen.remove(&pid);
                continue;
            };
            let before = self.seen.insert(pid, changes);
            if let Some(as_of) = before {
                self.write(kernel, pid, as_of);
            }
            // What changed while it was written may be gone again from what it says.
            if before == Some(changes) && kernel.code_changes(pid) == before {
                self.seen.remove(&pid);
            } else {
                self.spaces.changed.insert(pid);
            }
        }
        !self.spaces.changed.is_empty()
    }

    fn write(&mut self, kernel: &mut dyn Kernel, pid: Pid, as_of: u64) {
        self.find_rules(pid);
        self.generation += 1;
        let (space, beyond) = self.spaces.table(pid, as_of, self.generation);
        if beyond > 0 {
            self.count(Counter::UnwindMappingsFull.name(), beyond);
        }
        if let Err(error) = kernel.set_code_space(pid, &space) {
            log::debug!("{error}");
            self.count(Counter::UnwindMappingsFull.name(), 1);
        }
    }

    /// A Python code object was told.
    pub fn add_code(&mut self, pid: Pid, code: Code) {
        self.python.add(pid, code);
    }

    /// Puts Python functions into a stack, and tells the names that they have.
    pub fn complete(&mut self, event: &mut Event) -> Vec<Event> {
        self.python.complete(event)
    }

    /// Interpreters that frames are not read of, and why, since the last call.
    pub fn take_unsupported(&mut self) -> Vec<(String, String)> {
        self.interpreters.take_unsupported()
    }

    /// What happened to stacks here since the last call, by name.
    pub fn take_counts(&mut self) -> Vec<(&'static str, u64)> {
        let full = self.tables.take_full();
        if full > 0 {
            self.count("unwind_tables_full", full);
        }
        let unnamed = self.python.take_unnamed();
        if unnamed > 0 {
            self.count("python_unresolved", unnamed);
        }
        let mut counts: Vec<_> = self.counts.drain().collect();
        counts.sort_unstable();
        counts
    }

    fn find_rules(&mut self, pid: Pid) {
        let (tables, interpreters) = (&mut self.tables, &mut self.interpreters);
        self.spaces.resolve(pid, |mapping| {
            let span = tables.of_mapping(pid, mapping);
            (span, interpreters.thread_state(pid, mapping))
        });
    }

    fn count(&mut self, reason: &'static str, count: u64) {
        *self.counts.entry(reason).or_default() += count;
    }
}

/// Where the end of an allocation's stack is counted: a sampled fault stands for others, and its site says how its
/// stack ended.
fn counter(end: End) -> Option<Counter> {
    Some(match end {
        End::Start | End::NotKnown => return None,
        End::Truncated => Counter::StackTruncated,
        End::NoRules => Counter::UnwindNoRules,
        End::Unreadable => Counter::UnwindUnreadable,
        End::Unsupported => Counter::UnwindUnsupported,
        End::NoMapping => Counter::UnwindNoMapping,
        End::StackPointer => Counter::UnwindStackPointer,
    })
}
