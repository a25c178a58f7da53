//! Tells, as processes map files, whether their heap is seen; and probes allocators that come unforeseen.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
};

use crate::{
    event::{Event, EventKind, Pid},
    probe::{
        Error,
        heap::{FileId, HeapProbes, Verdict},
        object::Object,
        points::Status,
    },
    seed::now_ns,
};

/// What [`HeapProbes`] says of a mapping, as an event for the process.
pub struct HeapWatch {
    probes: Option<HeapProbes>,
    /// Failures to place probes, for the person who waits.
    pub failures: Vec<String>,
}

impl HeapWatch {
    /// `None`: heap probes were not asked for.
    pub fn new(probes: Option<HeapProbes>) -> Self {
        Self {
            probes,
            failures: Vec::new(),
        }
    }

    /// The probes, where they were asked for.
    pub fn probes(&mut self) -> Option<&mut HeapProbes> {
        self.probes.as_mut()
    }

    /// Why nothing can be seen before an allocator is mapped.
    pub fn reason(&self) -> &'static str {
        match self.probes {
            Some(_) => "no known allocator was mapped",
            None => "heap probes were turned off (--no-heap)",
        }
    }

    /// Probes the files that a command is known to map, before it does.
    pub fn prepare(&mut self, object: &mut Object, files: &[PathBuf]) -> Result<(), Error> {
        let Some(probes) = &mut self.probes else {
            return Ok(());
        };
        let failures = probes.probe_all(object, files)?;
        self.failures
            .extend(failures.iter().map(ToString::to_string));
        Ok(())
    }

    /// A process mapped a file to execute: the event to deliver after, if the file says something of its heap.
    pub fn mapped(
        &mut self,
        object: &mut Object,
        traced: &HashSet<Pid>,
        pid: Pid,
        time_ns: u64,
        path: &str,
    ) -> Option<Event> {
        let probes = self.probes.as_mut()?;
        if !path.starts_with('/') {
            return None;
        }
        let path = locate(pid, path)?;
        if FileId::of(&path).is_ok_and(|id| probes.placed_ns(id).is_none()) {
            // Whatever runs may map it too: what was inherited until now does not cover it.
            probes.set_running(traced.iter().copied());
        }
        match self.verdict(object, pid, time_ns, &path) {
            Ok(heap) => heap,
            // A process that ended meanwhile took its root with it.
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.failures.push(error.to_string());
                None
            }
        }
    }

    /// A file that a running process has mapped since before tracing began.
    pub fn running(
        &mut self,
        object: &mut Object,
        pid: Pid,
        path: &str,
    ) -> Result<Option<Event>, Error> {
        match locate(pid, path) {
            Some(path) => {
                let mapped = self.verdict(object, pid, u64::MAX, &path)?;
                Ok(mapped.map(|event| Event {
                    time_ns: now_ns(),
                    ..event
                }))
            }
            None => Ok(None),
        }
    }

    fn verdict(
        &mut self,
        object: &mut Object,
        pid: Pid,
        time_ns: u64,
        path: &Path,
    ) -> Result<Option<Event>, Error> {
        let Some(probes) = self.probes.as_mut() else {
            return Ok(None);
        };
        let (allocator, unavailable) = match probes.probe(object, path)? {
            Verdict::None => return Ok(None),
            Verdict::Hidden { reason } => (String::new(), Some(reason.into())),
            Verdict::Probed { name } => (name, None),
        };
        let id = FileId::of(path).ok();
        if let Some(id) = id {
            probes.note_mapped(id);
        }
        let placed_ns = id.and_then(|id| probes.placed_ns(id));
        let late = unavailable.is_none() && placed_ns.is_none_or(|placed_ns| placed_ns > time_ns);
        let kind = EventKind::HeapProbes {
            allocator: allocator.into(),
            unavailable,
            late,
        };
        Ok(Some(Event {
            time_ns,
            pid,
            tid: 0,
            kind,
        }))
    }

    /// State of the probes that were placed.
    pub fn statuses(&self) -> Vec<Status> {
        self.probes
            .as_ref()
            .map(HeapProbes::statuses)
            .unwrap_or_default()
    }
}

/// A path as the process sees it, where this process can open it: in the process's own root while it lives,
/// else, in ours.
pub fn locate(pid: Pid, path: &str) -> Option<PathBuf> {
    let inside = PathBuf::from(format!("/proc/{pid}/root{path}"));
    if inside.exists() {
        return Some(inside);
    }
    let outside = Path::new(path);
    outside.exists().then(|| outside.to_owned())
}
