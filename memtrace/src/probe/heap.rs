//! Probes on allocator functions: placed once per file, followed per process.
//!
//! A uprobe defined in tracefs stands on a file; it is hit only by address spaces of the threads that an
//! event was opened for, and inherited by what they fork. Others pay nothing (docs/ARCHITECTURE.md).
//! Many uprobes share one event: a fork inherits events, and each takes the kernel a while to remove.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    rc::Rc,
};

use memtrace_common::heap::MAX_GROUPS;

use crate::seed::now_ns;

use super::{
    Error,
    allocator::{self, NoAllocator},
    image::ImageError,
    object::Object,
    perf::{self, Scope, Source},
    plan::{Batch, Part, Placed},
    points::{Status, event_error},
    tracefs::{Tracefs, UprobeEvent},
};

/// A file, wherever it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file that a path leads to.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// What a file means to the heap of a process that maps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its allocators are probed: their names, joined by `+`.
    Probed {
        /// Names.
        name: String,
    },
    /// It has no allocator.
    None,
    /// It has, or may have, an allocator that cannot be seen.
    Hidden {
        /// Why.
        reason: String,
    },
}

/// Whom probes are opened for together, and taken from together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Watch(pub u32);

/// All probes on allocators.
pub struct HeapProbes {
    tracefs: Rc<Tracefs>,
    files: HashMap<FileId, Verdict>,
    placed_ns: HashMap<FileId, u64>,
    groups: Vec<Group>,
    /// Places in a page that are taken, by table of points.
    tables: Vec<HashSet<u64>>,
    /// By process.
    followed: HashMap<u32, Vec<Followed>>,
    /// By process, while it is followed.
    keepers: HashMap<u32, Vec<OwnedFd>>,
    statuses: Vec<(FileId, Status)>,
    mapped: HashSet<FileId>,
}

/// A thread that probes are opened for, those to come as well.
#[derive(Clone, Copy)]
struct Followed {
    scope: Scope,
    watch: Watch,
    /// When the last of the probes that there were then was opened.
    since_ns: u64,
}

/// Uprobes of one event. Fields drop in order: what uses the definitions goes before them.
struct Group {
    /// The program's link, and the event it goes through.
    _link: [OwnedFd; 2],
    /// Kept after a thread's end: what it forked holds copies, which go with the event.
    events: Vec<(Watch, OwnedFd)>,
    definitions: UprobeEvent,
}

/// kthreadd, which has no memory that a probe could be hit in, and does not end (rest_init(), init/main.c).
const NOBODY: Scope = Scope::Thread {
    tid: 2,
    inherit: false,
};

impl Group {
    /// Attaches the program. It belongs to the definitions and runs for whatever event lets them be hit; but the
    /// end of an inherited copy of the event that it was attached through would detach it
    /// (perf_event_free_bpf_prog(), kernel/events/core.c), and whose event that is would be hit as long as it is
    /// attached. So it is nobody's.
    fn attach(
        object: &Object,
        definitions: UprobeEvent,
        program: &'static str,
        cookie: u64,
    ) -> Result<Self, Error> {
        let id = definitions.id().map_err(attach_error)?;
        let event = perf::open(Source::Tracepoint(id), NOBODY)
            .map_err(|error| event_error("allocator functions".to_owned(), error))?;
        let link = perf::link(object.program(program)?, event.as_fd(), cookie);
        Ok(Self {
            _link: [link.map_err(attach_error)?, event],
            events: Vec::new(),
            definitions,
        })
    }

    /// Lets the uprobes be hit by a thread's address space. A thread that is gone needs none.
    fn follow(&mut self, scope: Scope, watch: Watch) -> Result<(), Error> {
        let id = self.definitions.id().map_err(attach_error)?;
        match perf::open(Source::Tracepoint(id), scope) {
            Ok(event) => self.events.push((watch, event)),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(event_error("allocator functions".to_owned(), error)),
        }
        Ok(())
    }
}

fn attach_error(source: io::Error) -> Error {
    Error::Attach {
        name: "allocator functions".to_owned(),
        source,
    }
}

impl HeapProbes {
    /// No probe yet.
    pub fn new(tracefs: Rc<Tracefs>) -> Self {
        Self {
            tracefs,
            files: HashMap::new(),
            placed_ns: HashMap::new(),
            groups: Vec::new(),
            tables: Vec::new(),
            followed: HashMap::new(),
            keepers: HashMap::new(),
            statuses: Vec::new(),
            mapped: HashSet::new(),
        }
    }

    /// A traced process maps the file.
    pub fn note_mapped(&mut self, id: FileId) {
        self.mapped.insert(id);
    }

    /// One per function of the files that traced processes mapped.
    pub fn statuses(&self) -> Vec<Status> {
        let of_mapped = |(id, _): &&(FileId, Status)| self.mapped.contains(id);
        let statuses = self.statuses.iter().filter(of_mapped);
        statuses.map(|(_, status)| status.clone()).collect()
    }

    /// Since when a file is probed: whoever mapped it before has made calls that were not seen. `None` before
    /// it was looked at.
    pub fn placed_ns(&self, id: FileId) -> Option<u64> {
        self.placed_ns.get(&id).copied()
    }

    /// Probes whatever allocators one file holds, unless that was done already.
    pub fn probe(&mut self, object: &mut Object, path: &Path) -> Result<Verdict, Error> {
        let mut batch = Batch::default();
        let (id, verdict) = self.plan(path, &mut batch)?;
        self.settle(object, &batch, vec![(id, verdict.clone())])?;
        Ok(verdict)
    }

    /// Probes several files at once, so that they share events. Files that cannot be read are told.
    pub fn probe_all(
        &mut self,
        object: &mut Object,
        paths: &[impl AsRef<Path>],
    ) -> Result<Vec<Error>, Error> {
        let mut batch = Batch::default();
        let mut failures = Vec::new();
        let mut verdicts = Vec::new();
        for path in paths {
            match self.plan(path.as_ref(), &mut batch) {
                Ok(verdict) => verdicts.push(verdict),
                Err(error) => failures.push(error),
            }
        }
        self.settle(object, &batch, verdicts)?;
        Ok(failures)
    }

    /// Places what was planned. Where that fails the files' heaps are not seen, and they are told to be hidden.
    fn settle(
        &mut self,
        object: &mut Object,
        batch: &Batch,
        verdicts: Vec<(FileId, Verdict)>,
    ) -> Result<(), Error> {
        let placed = self.place(object, batch);
        let now_ns = now_ns();
        for (id, mut verdict) in verdicts {
            if let (Err(error), Verdict::Probed { .. }) = (&placed, &verdict) {
                let reason = error.to_string();
                verdict = Verdict::Hidden { reason };
            }
            self.files.entry(id).or_insert(verdict);
            self.placed_ns.entry(id).or_insert(now_ns);
        }
        placed
    }

    fn plan(&mut self, path: &Path, batch: &mut Batch) -> Result<(FileId, Verdict), Error> {
        let failed = |source| Error::File {
            path: path.to_owned(),
            source,
        };
        let id = FileId::of(path).map_err(failed)?;
        if let Some(verdict) = self.files.get(&id) {
            return Ok((id, verdict.clone()));
        }
        let file = File::open(path).map_err(failed)?;
        let verdict = self.look(id, file, batch);
        log::debug!("{}: {verdict:?}", path.display());
        Ok((id, verdict))
    }

    fn look(&mut self, id: FileId, file: File, batch: &mut Batch) -> Verdict {
        let hidden = |reason: &str| Verdict::Hidden {
            reason: reason.to_owned(),
        };
        let allocators = match allocator::find_in(&file) {
            Ok(allocators) => allocators,
            Err(NoAllocator::Stripped) => {
                return hidden(
                    "a static program without a symbol table: its allocator cannot be found",
                );
            }
            Err(NoAllocator::Image {
                source: ImageError::ThirtyTwoBit,
            }) => {
                return hidden("a 32-bit program: its allocator is not probed");
            }
            Err(error @ NoAllocator::Unreadable { .. }) => return hidden(&error.to_string()),
            Err(_) => return Verdict::None,
        };
        let file = Rc::new(file);
        for allocator in &allocators {
            for unseen in &allocator.unseen {
                let name = format!("{}:{}", allocator.name, unseen.name);
                let status = Status {
                    name,
                    failure: Some(unseen.reason.clone()),
                };
                self.statuses.push((id, status));
            }
            for function in &allocator.functions {
                batch.add(id, &file, allocator, function);
            }
        }
        let names: Vec<&str> = allocators.iter().map(|allocator| allocator.name).collect();
        Verdict::Probed {
            name: names.join("+"),
        }
    }

    /// Defines and opens what was planned: returns first, so that a call seen to begin is seen to end.
    fn place(&mut self, object: &mut Object, batch: &Batch) -> Result<(), Error> {
        self.place_part(object, &batch.returns, "heap_return", 0)?;
        self.place_part(
            object,
            &batch.return_instructions,
            "heap_return_instruction",
            0,
        )?;
        for (table, entries) in batch.entry_groups(&mut self.tables) {
            if table >= MAX_GROUPS {
                return Err(Error::Map {
                    name: "POINTS",
                    reason: "too many allocators".to_owned(),
                });
            }
            for entry in &entries {
                object.set_point(table, entry.address, entry.point)?;
            }
            let parts: Vec<Part> = entries.into_iter().map(|entry| entry.part).collect();
            self.place_part(object, &parts, "heap_enter", u64::from(table))?;
        }
        Ok(())
    }

    fn place_part(
        &mut self,
        object: &Object,
        parts: &[Part],
        program: &'static str,
        cookie: u64,
    ) -> Result<(), Error> {
        let definitions = self.tracefs.event(&format!("g{}", self.groups.len()));
        let mut any = false;
        for part in parts {
            let added = definitions.add(program == "heap_return", part.file.as_fd(), part.offset);
            any |= added.is_ok();
            if part.placed == Placed::Entry || added.is_err() {
                let failure = added.err().map(|error| error.to_string());
                let status = Status {
                    name: part.name.clone(),
                    failure,
                };
                self.statuses.push((part.id, status));
            }
        }
        if !any {
            // Nothing was defined under the name: there is nothing to remove either.
            definitions.forget();
            return Ok(());
        }
        let mut group = Group::attach(object, definitions, program, cookie)?;
        for followed in self.followed.values().flatten() {
            group.follow(followed.scope, followed.watch)?;
        }
        self.groups.push(group);
        Ok(())
    }

    /// Follows a thread of a process with all probes there are and all that come.
    pub fn follow(&mut self, process: u32, scope: Scope, watch: Watch) -> Result<(), Error> {
        self.keep(process, scope);
        let opened = self
            .groups
            .iter_mut()
            .try_for_each(|group| group.follow(scope, watch));
        let followed = Followed {
            scope,
            watch,
            since_ns: now_ns(),
        };
        self.followed.entry(process).or_default().push(followed);
        opened
    }

    /// Before what the thread forks inherits its events.
    fn keep(&mut self, process: u32, scope: Scope) {
        if let Scope::Thread { tid, .. } | Scope::Program { tid } = scope
            && scope.inherits()
            && let Some(event) = perf::keep_events(tid)
        {
            self.keepers.entry(process).or_default().push(event);
        }
    }

    /// A child has the probes that its parent has; those that come are opened for it as well.
    pub fn forked(&mut self, parent: u32, child: u32) {
        let of_parent = self
            .followed
            .get(&parent)
            .and_then(|threads| threads.first());
        let Some(&parent) = of_parent else { return };
        let scope = match parent.scope {
            Scope::Thread { inherit: true, .. } => Scope::Thread {
                tid: child,
                inherit: true,
            },
            Scope::Program { .. } => Scope::Program { tid: child },
            _ => return,
        };
        self.keep(child, scope);
        let followed = Followed {
            scope,
            since_ns: 0,
            ..parent
        };
        self.followed.insert(child, vec![followed]);
    }

    /// A process ended, or is not followed any more: no probe is opened for it from here on.
    pub fn forget(&mut self, process: u32) {
        self.followed.remove(&process);
        self.keepers.remove(&process);
    }

    /// Since when the probes of a process have been open, beside those of files that were found later.
    pub fn since_ns(&self, process: u32) -> u64 {
        let threads = self.followed.get(&process).into_iter().flatten();
        threads.map(|thread| thread.since_ns).min().unwrap_or(0)
    }

    /// Takes the probes from all that they were opened for together, and from what these forked.
    pub fn release(&mut self, watch: Watch) {
        for group in &mut self.groups {
            group.events.retain(|(other, _)| *other != watch);
        }
        self.followed.retain(|_, threads| {
            threads.retain(|thread| thread.watch != watch);
            !threads.is_empty()
        });
    }
}
