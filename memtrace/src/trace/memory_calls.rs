//! When memory system calls of an area are told: while somebody's stacks or pages are followed. Who only is read once a
//! second has no use for them, and they cost every system call of the machine (`probe/calls.rs`).

use std::{
    rc::Rc,
    thread::{self, JoinHandle},
};

use super::Session;
use crate::probe::{
    Error,
    calls::{CHANGES, CallEvents, ENDS},
    object::Object,
    points::{self, Group, Status},
    tracefs::Tracefs,
};

/// Ticks for which they are told though nobody needs them any more.
const LINGERS: u32 = 60;

/// The events of system calls in an area.
pub(super) struct MemoryCalls {
    tracefs: Rc<Tracefs>,
    /// The raw tracepoints of all system calls tell them, and always do.
    by_raw_tracepoints: bool,
    #[expect(dead_code, reason = "held open")]
    ends: Option<CallEvents>,
    changes: Option<CallEvents>,
    /// Takes those away that were there before.
    removal: Option<JoinHandle<()>>,
    /// Ticks since somebody needed them.
    unneeded: u32,
}

impl MemoryCalls {
    /// Of single processes: by raw tracepoints.
    pub(super) fn of_processes(tracefs: Rc<Tracefs>) -> (Self, Vec<Group>) {
        (Self::new(tracefs, true, None), vec![Group::PrepareExec])
    }

    /// Of an area. What tells where address spaces end is attached here, where no tracepoint does; with it come the hooks
    /// that are not needed beside it.
    pub(super) fn of_area(
        object: &Object,
        tracefs: Rc<Tracefs>,
    ) -> (Self, Vec<Group>, Vec<Status>) {
        // Without these events the raw tracepoints tell everything (`CONFIG_FTRACE_SYSCALLS`).
        let has_events = CHANGES.are_there(&tracefs);
        if points::tell_ends() && has_events {
            let calls = Self::new(tracefs, false, None);
            return (calls, vec![Group::Calls], Vec::new());
        }
        let ends = if has_events {
            CallEvents::attach(object, &tracefs, &ENDS)
                .inspect_err(|error| log::debug!("{error}"))
                .ok()
        } else {
            None
        };
        let Some((ends, statuses)) = ends else {
            let (calls, without) = Self::of_processes(tracefs);
            return (calls, without, Vec::new());
        };
        let calls = Self::new(tracefs, false, Some(ends));
        (calls, vec![Group::Calls, Group::PrepareExec], statuses)
    }

    fn new(tracefs: Rc<Tracefs>, by_raw_tracepoints: bool, ends: Option<CallEvents>) -> Self {
        Self {
            tracefs,
            by_raw_tracepoints,
            ends,
            changes: None,
            removal: None,
            unneeded: 0,
        }
    }

    /// What was attached now, if anything was.
    fn tell(&mut self, object: &Object) -> Result<Vec<Status>, Error> {
        self.unneeded = 0;
        if self.by_raw_tracepoints || self.changes.is_some() {
            return Ok(Vec::new());
        }
        // Beside those of before each call would be told twice.
        if let Some(removal) = self.removal.take()
            && removal.join().is_err()
        {
            log::error!("the thread that removes events failed");
        }
        let (changes, statuses) = CallEvents::attach(object, &self.tracefs, &CHANGES)?;
        self.changes = Some(changes);
        Ok(statuses)
    }

    /// A tick at which nobody needs them. True when they are not told any more from here on.
    fn rest(&mut self) -> bool {
        self.unneeded += 1;
        if self.unneeded < LINGERS {
            return false;
        }
        let Some(changes) = self.changes.take() else {
            return false;
        };
        // It takes a part of a second. Where no thread can be had, it is done here, with the closure.
        let removal = thread::Builder::new()
            .name("remove-events".into())
            .spawn(move || drop(changes));
        self.removal = removal
            .inspect_err(|error| log::debug!("no thread to remove events: {error}"))
            .ok();
        true
    }
}

impl Session {
    /// Memory calls are told from here on: somebody needs them.
    pub(super) fn tell_memory_calls(&mut self) -> Result<(), Error> {
        let statuses = self.memory_calls.tell(&self.object)?;
        self.tell(&statuses);
        Ok(())
    }

    /// Once a second: whether anybody still does.
    pub(super) fn review_memory_calls(&mut self) {
        if self.selection.is_empty() && self.sampled().next().is_none() {
            if self.memory_calls.rest() {
                self.forget_growth();
            }
        } else if let Err(error) = self.tell_memory_calls() {
            log::debug!("{error}");
        }
    }
}
