//! Tells, as processes map files, whether their heap is seen; and probes allocators that come unforeseen.

use std::{
    collections::HashMap,
    fs::File,
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
    stack::module::build_id,
};

/// What [`HeapProbes`] says of a mapping, as an event for the process.
pub struct HeapWatch {
    probes: Option<HeapProbes>,
    why_off: &'static str,
    build_ids: HashMap<FileId, Box<[u8]>>,
    /// Failures to place probes, for the person who waits.
    pub failures: Vec<String>,
}

impl HeapWatch {
    /// `None`: heap probes were not asked for, for a reason.
    pub fn new(probes: Option<HeapProbes>, why_off: &'static str) -> Self {
        Self {
            probes,
            why_off,
            build_ids: HashMap::new(),
            failures: Vec::new(),
        }
    }

    /// The probes, where they were asked for.
    pub fn probes(&mut self) -> Option<&mut HeapProbes> {
        self.probes.as_mut()
    }

    /// Why nothing is seen of a heap that is watched or not.
    pub fn reason(&self, watched: bool) -> &'static str {
        match self.probes {
            Some(_) if watched => "no known allocator was mapped",
            _ => self.why_off,
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
    pub fn mapped(&mut self, object: &mut Object, mapping: &Mapped<'_>) -> Option<Event> {
        self.probes.as_ref()?;
        if !mapping.path.starts_with('/') {
            return None;
        }
        match self.verdict(object, mapping, &inside(mapping.pid, mapping.path)) {
            Ok(event) => return event,
            // A process that ended meanwhile took its root with it: what it mapped is looked for in ours.
            Err(Error::File { .. }) if !is_there(mapping.pid) => {}
            Err(error) => {
                self.failures.push(error.to_string());
                return None;
            }
        }
        let path = Path::new(mapping.path);
        if !self.is_same_build(path, mapping.build_id) {
            return None;
        }
        self.verdict(object, mapping, path).unwrap_or_else(|error| {
            log::debug!("{error}");
            None
        })
    }

    /// Whether the file of that name here is the one that was mapped, as far as build IDs tell.
    fn is_same_build(&mut self, path: &Path, of_mapped: &[u8]) -> bool {
        let Ok(id) = FileId::of(path) else {
            return false;
        };
        let ours = self.build_ids.entry(id).or_insert_with(|| {
            let file = File::open(path).ok();
            file.and_then(|file| build_id(&file)).unwrap_or_default()
        });
        of_mapped.is_empty() || **ours == *of_mapped
    }

    /// A file that a running process has mapped since before its heap is watched. `late`: it was traced before that.
    pub fn running(
        &mut self,
        object: &mut Object,
        pid: Pid,
        path: &str,
        late: bool,
    ) -> Result<Option<Event>, Error> {
        let inside = inside(pid, path);
        if !inside.exists() {
            return Ok(None);
        }
        let mapping = Mapped {
            pid,
            time_ns: if late { 0 } else { u64::MAX },
            path,
            build_id: &[],
        };
        let mapped = self.verdict(object, &mapping, &inside)?;
        Ok(mapped.map(|event| Event {
            time_ns: now_ns(),
            ..event
        }))
    }

    fn verdict(
        &mut self,
        object: &mut Object,
        mapping: &Mapped<'_>,
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
        let (pid, time_ns) = (mapping.pid, mapping.time_ns);
        let id = FileId::of(path).ok();
        if let Some(id) = id {
            probes.note_mapped(id);
        }
        let placed_ns = id.and_then(|id| probes.placed_ns(id));
        let since_ns = placed_ns.map(|placed_ns| placed_ns.max(probes.since_ns(pid)));
        let late = unavailable.is_none() && since_ns.is_none_or(|since_ns| since_ns > time_ns);
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

/// A file that a process mapped to execute.
#[derive(Clone, Copy, Debug)]
pub struct Mapped<'a> {
    /// The process.
    pub pid: Pid,
    /// When.
    pub time_ns: u64,
    /// The file as the process sees it.
    pub path: &'a str,
    /// Its GNU build ID, empty where it is not known.
    pub build_id: &'a [u8],
}

/// A path as the process sees it, in its own root.
fn inside(pid: Pid, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{path}"))
}

/// Whether the process still has a root to look into.
fn is_there(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}/root/")).exists()
}
