//! The executable mappings of every traced process, noted as they are made: a process that has exited is
//! still symbolized, as long as the model keeps it.

use std::{collections::HashMap, rc::Rc};

use crate::{
    event::{Event, EventKind, Pid},
    stack::symbolize::Mapping,
};

/// Mappings by process. A forked child shares its parent's until one of them changes.
#[derive(Default)]
pub struct Modules {
    by_pid: HashMap<Pid, Image>,
}

/// What one process has mapped.
#[derive(Clone, Default)]
struct Image {
    mappings: Rc<Vec<Mapping>>,
    /// How many there were when the last execve began: those behind are the new program's, since the kernel
    /// maps it before it tells that the exec succeeded.
    before_exec: usize,
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
                if let Some(image) = self.by_pid.get(&event.pid).cloned() {
                    self.by_pid.insert(*child, image);
                }
            }
            // Told when an execve begins, among other moments.
            EventKind::Memory(_) => {
                let image = self.by_pid.entry(event.pid).or_default();
                image.before_exec = image.mappings.len();
            }
            EventKind::Exec { .. } => {
                let image = self.by_pid.entry(event.pid).or_default();
                let new = image.mappings.get(image.before_exec..);
                image.mappings = Rc::new(new.unwrap_or_default().to_vec());
                image.before_exec = 0;
            }
            _ => {}
        }
    }

    /// Drops what is known of a process.
    pub fn forget(&mut self, pid: Pid) {
        self.by_pid.remove(&pid);
    }

    /// The mappings of a process, in the order they were made.
    pub fn of(&self, pid: Pid) -> &[Mapping] {
        self.by_pid.get(&pid).map_or(&[], |image| &image.mappings)
    }

    /// Drops the mappings of processes that nothing will be symbolized for any more.
    pub fn keep(&mut self, known: impl Fn(Pid) -> bool) {
        self.by_pid.retain(|&pid, _| known(pid));
    }

    fn add(&mut self, pid: Pid, mapping: Mapping) {
        let image = self.by_pid.entry(pid).or_default();
        Rc::make_mut(&mut image.mappings).push(mapping);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{FileMapped, MemoryTotals};

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

    fn at(pid: Pid, kind: EventKind) -> Event {
        Event {
            time_ns: 1,
            pid,
            tid: pid,
            kind,
        }
    }

    fn exec(pid: Pid) -> Event {
        at(
            pid,
            EventKind::Exec {
                path: "/c".into(),
                comm: "c".into(),
                unfollowed: false,
            },
        )
    }

    fn paths(modules: &Modules, pid: Pid) -> Vec<String> {
        modules
            .of(pid)
            .iter()
            .map(|one| one.path.to_string())
            .collect()
    }

    #[test]
    fn a_child_keeps_what_its_parent_had() {
        let mut modules = Modules::default();
        modules.note(&mapped(1, 0x1000, "/a"));
        modules.note(&at(
            1,
            EventKind::Fork {
                child: 2,
                shares_memory: false,
                comm: "a".into(),
            },
        ));
        modules.note(&mapped(2, 0x2000, "/b"));
        assert_eq!(paths(&modules, 1), ["/a"]);
        assert_eq!(paths(&modules, 2), ["/a", "/b"]);
    }

    #[test]
    fn what_is_not_known_any_more_is_dropped_and_the_rest_stays() {
        let mut modules = Modules::default();
        for pid in 1..=3 {
            modules.note(&mapped(pid, 0x1000, "/a"));
        }
        modules.keep(|pid| pid != 2);
        assert_eq!(paths(&modules, 1), ["/a"]);
        assert_eq!(paths(&modules, 2), [""; 0]);
        assert_eq!(paths(&modules, 3), ["/a"]);
        assert_eq!(modules.by_pid.len(), 2);
    }

    #[test]
    fn exec_forgets_what_was_mapped_before_it_began_and_keeps_what_it_mapped() {
        let mut modules = Modules::default();
        modules.note(&mapped(1, 0x1000, "/a"));
        let totals = MemoryTotals::default();
        modules.note(&at(1, EventKind::Memory(Box::new(totals))));
        modules.note(&mapped(1, 0x2000, "/c"));
        modules.note(&exec(1));
        modules.note(&mapped(1, 0x3000, "/libc"));
        assert_eq!(paths(&modules, 1), ["/c", "/libc"]);
    }
}
