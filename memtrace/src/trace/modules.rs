//! The executable mappings of every traced process, noted as they are made: a process that has exited is
//! still symbolized.

use std::{collections::HashMap, rc::Rc};

use crate::{
    event::{Event, EventKind, Pid},
    stack::symbolize::Mapping,
};

/// Mappings by process. A forked child shares its parent's until one of them changes.
#[derive(Default)]
pub struct Modules {
    by_pid: HashMap<Pid, Rc<Vec<Mapping>>>,
}

impl Modules {
    /// Notes what an event says of mappings.
    pub fn note(&mut self, event: &Event) {
        match &event.kind {
            EventKind::FileMapped(map) if map.protection & libc::PROT_EXEC as u32 != 0 => {
                let mapping = Mapping {
                    start: map.start,
                    end: map.start.saturating_add(map.length),
                    offset: map.offset,
                    path: map.path.clone(),
                    build_id: map.build_id.clone(),
                };
                self.add(event.pid, mapping);
            }
            EventKind::Smaps(region) if region.protection & libc::PROT_EXEC as u32 != 0 => {
                let known = |one: &Mapping| one.start == region.start && one.path == region.path;
                if !region.path.is_empty() && !self.of(event.pid).iter().any(known) {
                    let (start, end, offset) = (region.start, region.end, region.offset);
                    let (path, build_id) = (region.path.clone(), Box::default());
                    self.add(
                        event.pid,
                        Mapping {
                            start,
                            end,
                            offset,
                            path,
                            build_id,
                        },
                    );
                }
            }
            EventKind::Fork { child, .. } => {
                if let Some(mappings) = self.by_pid.get(&event.pid).cloned() {
                    self.by_pid.insert(*child, mappings);
                }
            }
            EventKind::Exec { .. } => {
                self.by_pid.remove(&event.pid);
            }
            _ => {}
        }
    }

    /// The mappings of a process, in the order they were made.
    pub fn of(&self, pid: Pid) -> &[Mapping] {
        self.by_pid.get(&pid).map_or(&[], |mappings| mappings)
    }

    fn add(&mut self, pid: Pid, mapping: Mapping) {
        Rc::make_mut(self.by_pid.entry(pid).or_default()).push(mapping);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::FileMapped;

    fn mapped(pid: Pid, start: u64, path: &str) -> Event {
        let map = FileMapped {
            start,
            length: 0x1000,
            offset: 0,
            protection: libc::PROT_EXEC as u32,
            flags: 2,
            path: path.into(),
            build_id: Box::default(),
        };
        Event {
            time_ns: 1,
            pid,
            tid: pid,
            kind: EventKind::FileMapped(Box::new(map)),
        }
    }

    #[test]
    fn a_child_keeps_what_its_parent_had_and_exec_forgets_it() {
        let mut modules = Modules::default();
        modules.note(&mapped(1, 0x1000, "/a"));
        let fork = EventKind::Fork {
            child: 2,
            shares_memory: false,
            comm: "a".into(),
        };
        modules.note(&Event {
            time_ns: 2,
            pid: 1,
            tid: 1,
            kind: fork,
        });
        modules.note(&mapped(2, 0x2000, "/b"));
        let paths = |pid| {
            modules
                .of(pid)
                .iter()
                .map(|one| &*one.path)
                .collect::<Vec<_>>()
        };
        assert_eq!((paths(1), paths(2)), (vec!["/a"], vec!["/a", "/b"]));
        let exec = EventKind::Exec {
            path: "/c".into(),
            comm: "c".into(),
        };
        modules.note(&Event {
            time_ns: 3,
            pid: 2,
            tid: 2,
            kind: exec,
        });
        assert!(modules.of(2).is_empty());
    }
}
