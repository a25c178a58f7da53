//! Probes on allocator functions: placed once per file, followed per process.
//!
//! A uprobe defined in tracefs stands on a file; it is hit only by address spaces of the threads that an
//! event was opened for, and inherited by what they fork. Others pay nothing (facts in docs/ARCHITECTURE.md).

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    rc::Rc,
};

use memtrace_common::heap::{Function, Point};

use super::{
    Error,
    allocator::{self, Allocator, Exit, FoundFunction, NoAllocator},
    object::Object,
    perf::{self, Scope, Source},
    points::{Status, event_error},
    tracefs::{Tracefs, UprobeDefinition},
};

/// Larger files are not looked into: no allocator is linked into a file of this size that people trace.
const MAX_FILE_BYTES: u64 = 512 << 20;

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
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// What a file means to the heap of a process that maps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its allocators are probed: their names.
    Probed {
        /// Names, joined by `+`.
        name: String,
        /// Functions that are not seen, with the reason; mostly none.
        unseen: Vec<String>,
    },
    /// It has no allocator.
    None,
    /// It has, or may have, an allocator that cannot be seen.
    Hidden {
        /// Why.
        reason: String,
    },
}

/// All probes on allocators.
pub struct HeapProbes {
    tracefs: Rc<Tracefs>,
    files: HashMap<FileId, Verdict>,
    probes: Vec<Probe>,
    followed: Vec<Scope>,
    defined: u32,
    /// One per function.
    pub statuses: Vec<Status>,
}

/// One uprobe. Fields drop in order: what uses the definition goes before it.
struct Probe {
    link: Option<OwnedFd>,
    events: Vec<OwnedFd>,
    definition: UprobeDefinition,
    program: &'static str,
    cookie: u64,
}

impl Probe {
    /// Lets the uprobe be hit by a thread's address space. A thread that is gone needs none.
    fn follow(&mut self, object: &Object, name: &str, scope: Scope) -> Result<(), Error> {
        let attach = |source| Error::Attach { name: name.to_owned(), source };
        let id = self.definition.id().map_err(attach)?;
        let event = match perf::open(Source::Tracepoint(id), scope) {
            Ok(event) => event,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            Err(error) => return Err(event_error(name.to_owned(), error)),
        };
        // The program belongs to the definition, not to one of its events: one link serves them all.
        if self.link.is_none() {
            let program = object.program(self.program)?;
            self.link = Some(perf::link(program, event.as_fd(), self.cookie).map_err(attach)?);
        }
        self.events.push(event);
        Ok(())
    }
}

/// One uprobe to be placed.
struct Placing<'a> {
    file: &'a File,
    function: &'a str,
    program: &'static str,
    returns: bool,
    offset: u64,
    cookie: u64,
}

impl HeapProbes {
    /// No probe yet.
    pub fn new(tracefs: Rc<Tracefs>) -> Self {
        Self {
            tracefs,
            files: HashMap::new(),
            probes: Vec::new(),
            followed: Vec::new(),
            defined: 0,
            statuses: Vec::new(),
        }
    }

    /// What is known of a file already.
    pub fn known(&self, id: FileId) -> Option<&Verdict> {
        self.files.get(&id)
    }

    /// Probes whatever allocators the file holds, unless that was done already.
    pub fn probe(&mut self, object: &mut Object, path: &Path) -> Result<Verdict, Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let id = FileId::of(path).map_err(failed)?;
        if let Some(verdict) = self.files.get(&id) {
            return Ok(verdict.clone());
        }
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let verdict = if metadata.is_file() && metadata.len() <= MAX_FILE_BYTES {
            let data = std::fs::read(path).map_err(failed)?;
            self.probe_image(object, &file, &data)?
        } else {
            Verdict::None
        };
        log::debug!("{}: {verdict:?}", path.display());
        self.files.insert(id, verdict.clone());
        Ok(verdict)
    }

    fn probe_image(&mut self, object: &mut Object, file: &File, data: &[u8]) -> Result<Verdict, Error> {
        let allocators = match allocator::find(data) {
            Ok(allocators) => allocators,
            Err(NoAllocator::Stripped) => {
                let reason = "a static program without a symbol table: its allocator cannot be found";
                return Ok(Verdict::Hidden { reason: reason.to_owned() });
            }
            Err(_) => return Ok(Verdict::None),
        };
        let mut names = Vec::new();
        let mut unseen = Vec::new();
        for allocator in &allocators {
            names.push(allocator.name);
            unseen.extend(allocator.unseen.iter().map(|one| format!("{}: {}", one.name, one.reason)));
            for function in &allocator.functions {
                self.probe_function(object, file, allocator, function)?;
            }
        }
        Ok(Verdict::Probed { name: names.join("+"), unseen })
    }

    fn probe_function(
        &mut self,
        object: &mut Object,
        file: &File,
        allocator: &Allocator,
        found: &FoundFunction,
    ) -> Result<(), Error> {
        let returns = matches!(found.exit, Exit::ReturnProbe);
        // A return probe takes [rsp] for the return address: it cannot stand behind a push.
        let entry = &found.entry;
        let (offset, pushed) = if returns && entry.pushed != 0 {
            (found.file_offset, 0)
        } else {
            (entry.file_offset, entry.pushed)
        };
        let address = found.virtual_address + (offset - found.file_offset);
        let cookie = object.add_point(Point {
            function: found.function as u32,
            pushed,
            internal_start: allocator.internal.start.wrapping_sub(address) as i64,
            internal_end: allocator.internal.end.wrapping_sub(address) as i64,
        })?;
        let program = if found.function == Function::Free { "heap_free" } else { "heap_enter" };
        let placing =
            Placing { file, function: &found.name, program, returns: false, offset, cookie };
        match &found.exit {
            Exit::None => {}
            Exit::ReturnProbe => {
                self.place(object, &Placing { program: "heap_return", returns: true, ..placing })?;
            }
            Exit::Instructions { file_offsets, .. } => {
                for &offset in file_offsets {
                    let program = "heap_return_instruction";
                    self.place(object, &Placing { program, offset, ..placing })?;
                }
            }
            Exit::Unknown { .. } => return Ok(()),
        }
        // The entry last: a call seen to begin is seen to end.
        self.place(object, &placing)?;
        let name = format!("{}:{}", allocator.name, found.name);
        self.statuses.push(Status { name, failure: None });
        Ok(())
    }

    fn place(&mut self, object: &Object, placing: &Placing<'_>) -> Result<(), Error> {
        self.defined += 1;
        let unique = format!("p{}", self.defined);
        let definition = self
            .tracefs
            .define(placing.returns, &unique, placing.file.as_fd(), placing.offset)
            .map_err(|source| Error::Attach { name: placing.function.to_owned(), source })?;
        let Placing { program, cookie, .. } = *placing;
        let mut probe = Probe { link: None, events: Vec::new(), definition, program, cookie };
        for &scope in &self.followed {
            probe.follow(object, placing.function, scope)?;
        }
        self.probes.push(probe);
        Ok(())
    }

    /// Follows a thread with all probes there are and all that come.
    pub fn follow(&mut self, object: &Object, tid: u32, inherit: bool) -> Result<(), Error> {
        let scope = Scope::Thread { tid, inherit };
        self.followed.push(scope);
        for probe in &mut self.probes {
            probe.follow(object, &format!("thread {tid}"), scope)?;
        }
        Ok(())
    }
}
