//! Where the files of each process are mapped, as the events told so far have it: what frames are offsets into.
//!
//! Nothing depends on it being right. A frame whose module is not known, or was another, takes some bytes more.
//!
//! Frames of a process are named when the trace ends, mostly long after the process. So those that ended are
//! remembered too, the last ones up to a limit.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use memtrace_common::frame::{Found, Frame};
use rustc_hash::FxBuildHasher;

use super::tables::NO_MODULE;
use crate::event::{Event, EventKind, Pid};

/// Modules with a number; what lies in others has none.
const MODULES: usize = 1 << 16;

/// Mappings of one process that are remembered.
const MAPPINGS: usize = 1 << 12;

/// Processes that ended and are remembered.
const ENDED: usize = 1 << 14;

/// Mappings of all of these.
const ENDED_MAPPINGS: usize = 1 << 18;

/// Path and build ID of a file.
type File = (Box<str>, Box<[u8]>);

/// An executable mapping.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    start: u64,
    end: u64,
    module: u32,
    /// Where the file's first byte would lie.
    base: u64,
    /// When it was mapped, in nanoseconds.
    time_ns: u64,
}

/// A process, and what it has mapped.
#[derive(Clone, Debug, Default)]
struct Image {
    mappings: Arc<Vec<Mapping>>,
    /// When the last execve may have begun.
    execve_ns: u64,
    ended: bool,
}

/// Executable mappings by process. A forked child shares its parent's until one of them changes.
#[derive(Debug, Default)]
pub(super) struct Images {
    modules: HashMap<File, u32, FxBuildHasher>,
    by_pid: HashMap<Pid, Image, FxBuildHasher>,
    /// Processes that ended, in that order, and how many mappings each had.
    ended: VecDeque<(Pid, usize)>,
    ended_mappings: usize,
    /// The mapping that was found last.
    last: Option<(Pid, Mapping)>,
}

impl Images {
    /// Notes what an event says of mappings.
    pub(super) fn note(&mut self, event: &Event) {
        let executable = libc::PROT_EXEC as u32;
        match &event.kind {
            EventKind::FileMapped(map) if map.protection & executable != 0 => {
                let end = map.start.saturating_add(map.length);
                let file = (map.path.clone(), map.build_id.clone());
                self.add(event, map.start..end, map.offset, file);
            }
            EventKind::Smaps(region) if region.protection & executable != 0 => {
                let file = (region.path.clone(), Box::default());
                self.add(event, region.start..region.end, region.offset, file);
            }
            EventKind::Fork { child, .. } => {
                let mut image = self.by_pid.get(&event.pid).cloned().unwrap_or_default();
                image.ended = false;
                self.by_pid.insert(*child, image);
                self.last = None;
            }
            // Told when an execve begins, among other moments.
            EventKind::Memory(_) => {
                if let Some(image) = self.by_pid.get_mut(&event.pid) {
                    image.execve_ns = event.time_ns;
                }
            }
            EventKind::Exec { .. } => self.replace(event.pid),
            EventKind::Exit { .. } => self.end(event.pid),
            _ => {}
        }
    }

    /// A process runs another program. The kernel maps that before it tells that the exec succeeded.
    fn replace(&mut self, pid: Pid) {
        let Some(image) = self.by_pid.get_mut(&pid) else {
            return;
        };
        let old = |one: &Mapping| one.time_ns < image.execve_ns;
        if image.mappings.iter().any(old) {
            let new = image.mappings.iter().filter(|one| !old(one));
            image.mappings = Arc::new(new.copied().collect());
            self.last = None;
        }
    }

    fn end(&mut self, pid: Pid) {
        let Some(image) = self.by_pid.get_mut(&pid) else {
            return;
        };
        image.ended = true;
        let mappings = image.mappings.len();
        self.ended.push_back((pid, mappings));
        self.ended_mappings += mappings;
        while self.ended.len() > ENDED || self.ended_mappings > ENDED_MAPPINGS {
            let Some((oldest, mappings)) = self.ended.pop_front() else {
                return;
            };
            self.ended_mappings -= mappings;
            // Its pid may be another's by now.
            if self.by_pid.get(&oldest).is_some_and(|image| image.ended) {
                self.by_pid.remove(&oldest);
                self.last = None;
            }
        }
    }

    /// The module that a frame's word lies in, and where that begins.
    pub(super) fn find(&mut self, pid: Pid, word: u64) -> (u32, u64) {
        let Frame { address, found } = Frame::of(word);
        if matches!(found, Found::Kernel | Found::Python) {
            return (NO_MODULE, 0);
        }
        let holds = |one: &Mapping| (one.start..one.end).contains(&address);
        let found = match self.last {
            Some((last, mapping)) if last == pid && holds(&mapping) => Some(mapping),
            _ => {
                let image = self.by_pid.get(&pid);
                image.and_then(|image| image.mappings.iter().find(|one| holds(one)).copied())
            }
        };
        let Some(mapping) = found else {
            return (NO_MODULE, 0);
        };
        self.last = Some((pid, mapping));
        (mapping.module, mapping.base)
    }

    /// A mapping takes the place of those that it overlaps.
    fn add(&mut self, event: &Event, place: Range<u64>, offset: u64, file: File) {
        let next = self.modules.len() + 1;
        if file.0.is_empty() || next >= MODULES {
            return;
        }
        let module = *self.modules.entry(file).or_insert(next as u32);
        let image = self.by_pid.entry(event.pid).or_default();
        let mappings = Arc::make_mut(&mut image.mappings);
        mappings.retain(|one| one.end <= place.start || place.end <= one.start);
        if mappings.len() < MAPPINGS {
            mappings.push(Mapping {
                start: place.start,
                end: place.end,
                module,
                base: place.start.wrapping_sub(offset),
                time_ns: event.time_ns,
            });
        }
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{FileMapped, MemoryTotals};
    use memtrace_common::unwind::{BY_FRAME_POINTER, INTERRUPTED};

    fn mapped(pid: Pid, start: u64, offset: u64, path: &str) -> Event {
        let map = FileMapped {
            start,
            length: 0x1000,
            offset,
            protection: libc::PROT_EXEC as u32,
            flags: 2,
            path: path.into(),
            build_id: Box::default(),
        };
        at(pid, EventKind::FileMapped(Box::new(map)))
    }

    fn at(pid: Pid, kind: EventKind) -> Event {
        Event {
            time_ns: 1,
            pid,
            tid: pid,
            kind,
        }
    }

    #[test]
    fn a_file_is_one_module_wherever_it_lies() {
        let mut images = Images::default();
        images.note(&mapped(1, 0x7000, 0x2000, "/a"));
        images.note(&mapped(2, 0x3000, 0x2000, "/b"));
        images.note(&mapped(2, 0x9000, 0x2000, "/a"));
        assert_eq!(images.find(1, 0x7fff), (1, 0x5000));
        assert_eq!(images.find(2, 0x9000 | BY_FRAME_POINTER), (1, 0x7000));
        assert_eq!(images.find(2, 0x3000 | INTERRUPTED), (2, 0x1000));
        for (pid, word) in [(1, 0x8000), (1, 0x6fff), (3, 0x7000), (1, u64::MAX)] {
            assert_eq!(images.find(pid, word), (NO_MODULE, 0));
        }
    }

    #[test]
    fn a_child_has_what_its_parent_had_and_a_new_mapping_takes_the_place_of_an_old_one() {
        let mut images = Images::default();
        images.note(&mapped(1, 0x7000, 0, "/a"));
        images.note(&forked(1, 2));
        assert_eq!(images.find(2, 0x7000), (1, 0x7000));
        images.note(&mapped(2, 0x6800, 0, "/b"));
        assert_eq!(images.find(2, 0x7000), (2, 0x6800));
        assert_eq!(images.find(2, 0x7900), (NO_MODULE, 0));
        assert_eq!(images.find(1, 0x7900), (1, 0x7000));
    }

    fn forked(parent: Pid, child: Pid) -> Event {
        let fork = EventKind::Fork {
            child,
            shares_memory: false,
            comm: "a".into(),
        };
        at(parent, fork)
    }

    fn ended(pid: Pid) -> Event {
        let (code, signal) = (Some(0), None);
        at(pid, EventKind::Exit { code, signal })
    }

    fn memory() -> EventKind {
        EventKind::Memory(Box::new(MemoryTotals {
            last: true,
            ..MemoryTotals::default()
        }))
    }

    fn later(mut event: Event, time_ns: u64) -> Event {
        event.time_ns = time_ns;
        event
    }

    #[test]
    fn exec_leaves_what_the_kernel_mapped_since_it_began() {
        let mut images = Images::default();
        images.note(&mapped(1, 0x7000, 0, "/old"));
        assert_eq!(images.find(1, 0x7000), (1, 0x7000));
        images.note(&later(at(1, memory()), 2));
        images.note(&later(mapped(1, 0x9000, 0, "/new"), 3));
        let exec = EventKind::Exec {
            path: "/new".into(),
            comm: "new".into(),
            unfollowed: false,
        };
        images.note(&later(at(1, exec), 4));
        assert_eq!(images.find(1, 0x7000), (NO_MODULE, 0));
        assert_eq!(images.find(1, 0x9000), (2, 0x9000));
    }

    #[test]
    fn of_processes_that_ended_the_last_ones_are_remembered() {
        let mut images = Images::default();
        images.note(&mapped(1, 0x7000, 0, "/a"));
        let last = 2 * ENDED as u32;
        for pid in 2..=last {
            images.note(&forked(1, pid));
            images.note(&ended(pid));
        }
        assert_eq!(images.find(last, 0x7000), (1, 0x7000));
        assert_eq!(images.find(2, 0x7000), (NO_MODULE, 0));
        // The first is still there, and no process but the remembered ones.
        assert_eq!(images.find(1, 0x7000), (1, 0x7000));
        assert_eq!(images.by_pid.len(), ENDED + 1);
    }

    #[test]
    fn processes_with_many_mappings_are_forgotten_sooner() {
        let mut images = Images::default();
        for place in 1..=MAPPINGS as u64 {
            images.note(&mapped(1, place << 12, 0, "/a"));
        }
        let fit = (ENDED_MAPPINGS / MAPPINGS) as u32;
        let last = 1 + 2 * fit;
        for pid in 2..=last {
            images.note(&forked(1, pid));
            images.note(&ended(pid));
        }
        assert_eq!(images.find(last - fit + 1, 0x1000), (1, 0x1000));
        assert_eq!(images.find(last - fit, 0x1000), (NO_MODULE, 0));
    }

    #[test]
    fn a_pid_that_came_back_is_not_forgotten_for_its_predecessor() {
        let mut images = Images::default();
        images.note(&mapped(1, 0x7000, 0, "/a"));
        images.note(&forked(1, 2));
        images.note(&ended(2));
        images.note(&forked(1, 2));
        for pid in 3..=3 + ENDED as u32 {
            images.note(&forked(1, pid));
            images.note(&ended(pid));
        }
        assert_eq!(images.find(2, 0x7000), (1, 0x7000));
        assert_eq!(images.find(3, 0x7000), (NO_MODULE, 0));
    }
}
