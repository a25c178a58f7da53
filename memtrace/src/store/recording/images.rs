//! Where the files of each process are mapped, as the events told so far have it: what frames are offsets into.
//!
//! Nothing depends on it being right. A frame whose module is not known, or was another, takes some bytes more.

use std::{collections::HashMap, rc::Rc};

use memtrace_common::frame::{Found, Frame};
use rustc_hash::FxBuildHasher;

use super::tables::NO_MODULE;
use crate::event::{Event, EventKind, Pid};

/// Modules with a number; what lies in others has none.
const MODULES: usize = 1 << 16;

/// Mappings of one process that are remembered.
const MAPPINGS: usize = 1 << 12;

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
}

/// Executable mappings by process. A forked child shares its parent's until one of them changes.
#[derive(Debug, Default)]
pub(super) struct Images {
    modules: HashMap<File, u32, FxBuildHasher>,
    by_pid: HashMap<Pid, Rc<Vec<Mapping>>, FxBuildHasher>,
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
                self.add(event.pid, map.start, end, map.offset, file);
            }
            EventKind::Smaps(region) if region.protection & executable != 0 => {
                let file = (region.path.clone(), Box::default());
                self.add(event.pid, region.start, region.end, region.offset, file);
            }
            EventKind::Fork { child, .. } => {
                if let Some(mappings) = self.by_pid.get(&event.pid) {
                    self.by_pid.insert(*child, Rc::clone(mappings));
                }
            }
            _ => {}
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
                let mappings = self.by_pid.get(&pid);
                mappings.and_then(|all| all.iter().find(|one| holds(one)).copied())
            }
        };
        let Some(mapping) = found else {
            return (NO_MODULE, 0);
        };
        self.last = Some((pid, mapping));
        (mapping.module, mapping.base)
    }

    /// A mapping takes the place of those that it overlaps.
    fn add(&mut self, pid: Pid, start: u64, end: u64, offset: u64, file: File) {
        let next = self.modules.len() + 1;
        if file.0.is_empty() || next >= MODULES {
            return;
        }
        let module = *self.modules.entry(file).or_insert(next as u32);
        let mappings = Rc::make_mut(self.by_pid.entry(pid).or_default());
        mappings.retain(|one| one.end <= start || end <= one.start);
        if mappings.len() < MAPPINGS {
            let base = start.wrapping_sub(offset);
            mappings.push(Mapping {
                start,
                end,
                module,
                base,
            });
        }
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::FileMapped;
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
        let fork = EventKind::Fork {
            child: 2,
            shares_memory: false,
            comm: "a".into(),
        };
        images.note(&at(1, fork));
        assert_eq!(images.find(2, 0x7000), (1, 0x7000));
        images.note(&mapped(2, 0x6800, 0, "/b"));
        assert_eq!(images.find(2, 0x7000), (2, 0x6800));
        assert_eq!(images.find(2, 0x7900), (NO_MODULE, 0));
        assert_eq!(images.find(1, 0x7900), (1, 0x7000));
    }
}
