//! Processes whose own events the kernel took away when they gained privileges: as long as one lives, the events of
//! all CPUs tell the ends of faults.

use std::collections::HashSet;

use crate::{
    event::{Event, EventKind, Pid},
    probe::{fault::FaultProbes, object::Object},
};

/// Those that live, and what is open for them.
#[derive(Default)]
pub struct Unfollowed {
    processes: HashSet<Pid>,
    wide: Wide,
}

/// State of the events of all CPUs. They go in two steps, a tick apart: a fault that is being handled keeps its end.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Wide {
    #[default]
    Closed,
    Open,
    Retired,
}

impl Unfollowed {
    /// Whether the process lost its own events.
    pub fn contains(&self, pid: Pid) -> bool {
        self.processes.contains(&pid)
    }

    /// Notes what an event says: such an exec opens the events of all CPUs.
    pub fn note(&mut self, event: &Event, faults: &mut FaultProbes, object: &mut Object) {
        match event.kind {
            EventKind::Exec {
                unfollowed: true, ..
            } => {
                self.processes.insert(event.pid);
                if self.wide != Wide::Open {
                    faults.widen(object);
                    self.wide = Wide::Open;
                }
            }
            EventKind::Fork { child, .. } if self.contains(event.pid) => {
                self.processes.insert(child);
            }
            EventKind::Exit { .. } => {
                self.processes.remove(&event.pid);
            }
            _ => {}
        }
    }

    /// Once a second: closes what no process needs any more.
    pub fn tick(&mut self, faults: &mut FaultProbes, object: &mut Object) {
        self.wide = match self.wide {
            Wide::Open if self.processes.is_empty() => {
                faults.retire_wide(object);
                Wide::Retired
            }
            Wide::Retired => {
                faults.close_wide();
                Wide::Closed
            }
            state => state,
        };
    }
}
