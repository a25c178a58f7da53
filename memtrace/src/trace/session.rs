//! A live trace from the first probe to the last event.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
    time::SystemTime,
};

use memtrace_common::target::AREA_NONE;

use super::{
    applier::{self, Applier},
    census::Census,
    growing::Growing,
    heap_watch::{HeapWatch, Mapped},
    memory_calls::MemoryCalls,
    modules::Modules,
    naming::Names,
    selection::Selection,
    unfollowed::Unfollowed,
};
use crate::{
    event::{Event, EventKind, Machine, Pid},
    model::{Limits, Model, Thresholds},
    probe::{
        Error,
        area::Area,
        fault::FaultProbes,
        heap::HeapProbes,
        hotplug::Hotplug,
        object::{LoadOptions, Logger, Object},
        points::{self, Group, Status},
        sideband::Sideband,
        tracefs::Tracefs,
    },
    report::{self, document::Document},
    seed,
    stack::symbolize::Mapping,
    store::recording::{WriteError, Writer},
    stream::Stream,
    unwind::Unwinder,
};

/// What to trace.
#[derive(Clone, Debug)]
pub struct Options {
    /// Children too.
    pub follow: bool,
    /// Heap probes.
    pub heap: bool,
    /// Past what a site that grows is called a leak candidate.
    pub growth: Thresholds,
    /// How the programs are loaded.
    pub load: LoadOptions,
}

/// Everything attached, and what it has told so far.
pub struct Session {
    pub(super) options: Options,
    pub(super) stream: Stream,
    pub(super) area: Option<Area>,
    pub(super) hotplug: Option<Hotplug>,
    pub(super) census: Census,
    pub(super) applier: Applier,
    pub(super) heap: HeapWatch,
    pub(super) sideband: Sideband,
    pub(super) faults: FaultProbes,
    pub(super) memory_calls: MemoryCalls,
    pub(super) object: Object,
    logger: Option<Logger>,
    /// Processes that run, as of the event that is handled.
    pub(super) traced: HashSet<Pid>,
    /// Processes that were not there at the last tick, though their end was not told.
    missed: HashSet<Pid>,
    /// Processes within an execve: what they map is the new program's.
    pub(super) executing: HashSet<Pid>,
    /// Processes that were told to have a new program, and not yet its totals.
    executed: HashSet<Pid>,
    unfollowed: Unfollowed,
    /// Of an area, whose heap is probed.
    pub(super) selection: Selection,
    /// Processes that were not chosen when they were met, and how often they are looked at yet.
    pub(super) young: HashMap<Pid, u32>,
    /// Of an area, whose growth is sampled.
    pub(super) growing: Growing,
    cgroups: HashMap<Pid, Box<str>>,
    /// When the trace began.
    pub(super) began: SystemTime,
    pub(super) modules: Modules,
    batch: Vec<Event>,
}

impl Session {
    /// Loads the programs and attaches what belongs to no process.
    pub fn new(options: Options, recording: Option<Writer>) -> Result<Self, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::Privileges);
        }
        if !seed::in_initial_pid_namespace() {
            return Err(Error::PidNamespace);
        }
        let tracefs = Rc::new(Tracefs::open()?);
        if let Err(error) = tracefs.purge() {
            log::debug!("old uprobe definitions: {error}");
        }
        let mut object = Object::load(&options.load)?;
        let stacks = options.load.stacks && (options.heap || options.load.tell_faults);
        let mut unwinder = Unwinder::new(Box::new(object.take_rows()?), stacks);
        if options.load.area.kind == AREA_NONE {
            object.set_awaited(true)?;
        } else {
            unwinder.choose();
        }
        let mut stream = Stream::new(object.take_rings()?, unwinder)?;
        if options.load.fault_windows {
            stream.count_faults_by_kernel();
        }
        let logger = object.logger();
        let limits = Limits {
            growth: options.growth,
            ..Limits::default()
        };
        let (memory_calls, statuses) = hook(&mut object, &tracefs, &options)?;
        // The daemon is to cost little, and applies some thousand events a second.
        let model = if options.load.area.kind == AREA_NONE {
            // What is traced has a processor.
            Model::in_shards(limits, applier::shards(1))
        } else if options.load.tell_faults {
            Model::new(limits)
        } else {
            Model::sampled(limits)
        };
        let why_off = if options.load.area.kind == AREA_NONE {
            "heap probes were turned off (--no-heap)"
        } else {
            "the daemon has no heap probes on it (memtrace heap on)"
        };
        let faults = FaultProbes::new(options.load.fault_windows);
        let heap = HeapWatch::new(options.heap.then(|| HeapProbes::new(tracefs)), why_off);
        let growing = Growing::new(options.growth.after_ns);
        let mut session = Self {
            options,
            stream,
            area: None,
            hotplug: None,
            census: Census::default(),
            applier: Applier::new(model, recording),
            heap,
            sideband: Sideband::new()?,
            faults,
            memory_calls,
            object,
            logger,
            traced: HashSet::new(),
            missed: HashSet::new(),
            executing: HashSet::new(),
            executed: HashSet::new(),
            unfollowed: Unfollowed::default(),
            selection: Selection::default(),
            young: HashMap::new(),
            growing,
            cgroups: HashMap::new(),
            began: SystemTime::now(),
            modules: Modules::default(),
            batch: Vec::new(),
        };
        session.consume(machine());
        if let Some(bytes) = session.options.load.sample_bytes {
            session.consume(Event {
                time_ns: seed::now_ns(),
                pid: 0,
                tid: 0,
                kind: EventKind::Sampling { bytes },
            });
        }
        session.tell(&statuses);
        Ok(session)
    }

    pub(super) fn identify(&mut self, pid: Pid, start_ns: u64, already_running: bool) {
        for event in seed::identity(pid, start_ns, already_running) {
            self.handle(event);
        }
        if !already_running {
            self.handle(self.unavailable(pid, start_ns));
        }
    }

    /// Takes what is in the buffers. True when there was anything: call again.
    pub fn drain(&mut self) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        let any = self
            .stream
            .drain(&mut self.object, &mut self.sideband, &mut |event| {
                batch.push(event)
            });
        for event in batch.drain(..) {
            self.handle(event);
        }
        self.batch = batch;
        let behind = self.stream.publish(&mut self.object);
        any || behind
    }

    /// Once a second: counts of what was lost, fault totals, and the recording out to the disk.
    ///
    /// A process whose end was not told (its record was lost, or it ended while it was attached to) is found out
    /// here, the second time it is missed, once all was read that had been written by then: its end may be in a buffer still.
    pub fn tick(&mut self) {
        let caught_up = self.stream.caught_up();
        self.follow_cpus();
        let gone: HashSet<Pid> = if self.area.is_some() {
            self.deliver_held();
            self.choose_young();
            self.review_memory_calls();
            self.look_for_moved();
            self.sample().into_iter().collect()
        } else {
            let running = self.stream.running();
            running.filter(|&pid| !seed::is_alive(pid)).collect()
        };
        for &pid in gone.intersection(&self.missed).filter(|_| caught_up) {
            self.stream.push_end(pid, seed::now_ns());
        }
        self.missed = gone;
        self.unfollowed.tick(&mut self.faults, &mut self.object);
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        let mut events = Vec::new();
        self.stream
            .report(&mut self.object, seed::now_ns(), &mut |event| {
                events.push(event)
            });
        for event in events {
            self.census.note(&event);
            self.consume(event);
        }
        self.applier.flush();
        let (model, traced) = (self.applier.model(), &self.traced);
        self.modules
            .keep(|pid| traced.contains(&pid) || model.knows(pid));
    }

    /// Ends the trace: what still runs is read from /proc once more, sites are symbolized, the recording is
    /// closed. The model then holds everything.
    pub fn finish(mut self) -> Finished {
        // A busy process fills the buffer as fast as it is drained: nothing new from here on.
        loop {
            self.object.forget_all();
            if !self.drain() && !self.stream.is_held_up() {
                break;
            }
        }
        let running: Vec<Pid> = self.stream.running().collect();
        for pid in running {
            for event in seed::smaps(pid) {
                self.stream.push(event);
            }
        }
        let mut events = Vec::new();
        self.stream
            .finish(&mut self.object, seed::now_ns(), &mut |event| {
                events.push(event)
            });
        for event in events {
            self.handle(event);
        }
        let statuses = [self.faults.statuses(), self.heap.statuses()].concat();
        self.tell(&statuses);
        self.applier.gather();
        let mut names = Names::new(self.began);
        for pid in self.applier.model().pids() {
            if let Some(naming) = self.unnamed(pid) {
                self.name(names.look_up(&naming));
            }
        }
        let end = EventKind::End;
        self.consume(Event {
            time_ns: seed::now_ns(),
            pid: 0,
            tid: 0,
            kind: end,
        });
        let document = self.applier.document();
        let summary = (self.applier.records()).then(|| summary(&document));
        Finished {
            recording_failure: self.applier.finish_recording(summary.flatten()),
            document,
        }
    }

    /// Whether nothing that was traced runs any more.
    pub fn all_ended(&self) -> bool {
        self.stream.running().next().is_none()
    }

    /// Becomes readable when the buffer fills or something urgent is in it.
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Probes that could not be placed, since the last call.
    pub fn take_failures(&mut self) -> Vec<String> {
        std::mem::take(&mut self.heap.failures)
    }

    pub(super) fn handle(&mut self, event: Event) {
        // Mapping records are inherited by children whether they are traced or not.
        if matches!(event.kind, EventKind::FileMapped(_)) && !self.traced.contains(&event.pid) {
            return;
        }
        self.modules.note(&event);
        self.unfollowed
            .note(&event, &mut self.faults, &mut self.object);
        if self.area.is_some() {
            self.census.note(&event);
        }
        match &event.kind {
            EventKind::Exec { .. } => {
                let (pid, time_ns) = (event.pid, event.time_ns);
                self.executing.remove(&pid);
                self.executed.insert(pid);
                self.consume(event);
                self.consume(self.unavailable(pid, time_ns));
                if self.area.is_some() {
                    self.leave_growth(pid);
                    self.choose_executed(pid);
                }
                self.look_at_program(pid, time_ns);
            }
            EventKind::FileMapped(map) if map.protection & libc::PROT_EXEC as u32 != 0 => {
                let (pid, time_ns) = (event.pid, event.time_ns);
                let (path, build_id) = (map.path.clone(), map.build_id.clone());
                self.consume(event);
                self.look_at(&Mapped {
                    pid,
                    time_ns,
                    path: &path,
                    build_id: &build_id,
                });
            }
            EventKind::Fork { child, .. } => {
                let cgroup = self.cgroups.get(&event.pid).cloned();
                let (parent, child, time_ns) = (event.pid, *child, event.time_ns);
                self.traced.insert(child);
                self.consume(event);
                if let Some(path) = cgroup {
                    self.cgroups.insert(child, path.clone());
                    self.consume(Event {
                        time_ns,
                        pid: child,
                        tid: 0,
                        kind: EventKind::Cgroup { path },
                    });
                }
                if self.area.is_some() {
                    self.choose_forked(parent, child, time_ns);
                } else if let Some(probes) = self.heap.probes() {
                    probes.forked(parent, child);
                }
            }
            // Of a process that was told to be traced, its identity; of one that was not, that it was met.
            EventKind::Started(started) if self.traced.insert(event.pid) => {
                let (pid, tid, start_ns) = (event.pid, event.tid, started.start_ns);
                self.consume(event);
                self.met(pid, tid, start_ns);
            }
            EventKind::Memory(_) => {
                // Told when an execve begins, and once more when the new program is in place.
                if !self.executed.remove(&event.pid) {
                    self.executing.insert(event.pid);
                }
                self.consume(event);
            }
            EventKind::Syscall(_) => {
                self.executing.remove(&event.pid);
                self.consume(event);
            }
            EventKind::Cgroup { path } => {
                self.cgroups.insert(event.pid, path.clone());
                self.consume(event);
            }
            EventKind::Exit { .. } => {
                self.traced.remove(&event.pid);
                self.executing.remove(&event.pid);
                self.executed.remove(&event.pid);
                self.cgroups.remove(&event.pid);
                if let Some(probes) = self.heap.probes() {
                    probes.forget(event.pid);
                }
                if self.area.is_some() {
                    self.modules.forget(event.pid);
                    self.leave_growth(event.pid);
                    self.choose_ended(event.pid);
                }
                self.consume(event);
            }
            // Told by an exec too, where the program is looked at when it is in place.
            EventKind::Rename { .. }
                if event.tid == event.pid
                    && self.area.is_some()
                    && !self.executing.contains(&event.pid) =>
            {
                let pid = event.pid;
                self.consume(event);
                self.choose(pid, true);
            }
            _ => self.consume(event),
        }
    }

    /// The kernel maps a program before it tells that the exec succeeded: an allocator linked into it is known
    /// by then.
    fn look_at_program(&mut self, pid: Pid, time_ns: u64) {
        let mappings = self.modules.of(pid).to_vec();
        for Mapping { path, build_id, .. } in &mappings {
            self.look_at(&Mapped {
                pid,
                time_ns,
                path,
                build_id,
            });
        }
    }

    /// A process mapped a file to execute: its allocator is probed, and its heap seen from now on.
    fn look_at(&mut self, mapped: &Mapped<'_>) {
        if self.unfollowed.contains(mapped.pid) || !self.is_watched(mapped.pid) {
            return;
        }
        let heap = self.heap.mapped(&mut self.object, mapped);
        // Before the exec is told the process may still live in its parent's memory (vfork).
        if let Some(event) = heap
            && !self.executing.contains(&mapped.pid)
        {
            self.consume(event);
        }
    }

    /// Whether a process is to have heap probes: in an area, those that are chosen.
    fn is_watched(&self, pid: Pid) -> bool {
        self.area.is_none() || self.selection.has(pid)
    }

    /// No allocator is known in a process yet: its heap is not measured until one is mapped.
    pub(super) fn unavailable(&self, pid: Pid, time_ns: u64) -> Event {
        let reason = if self.unfollowed.contains(pid) {
            "a program that gains privileges: the kernel took the probes off at its exec"
        } else if self.selection.is_paused(pid) {
            "its heap probes are paused: the daemon would cost more than its budget"
        } else {
            self.heap.reason(self.is_watched(pid))
        };
        let reason = Some(reason.into());
        let kind = EventKind::HeapProbes {
            allocator: "".into(),
            unavailable: reason,
            late: false,
        };
        Event {
            time_ns,
            pid,
            tid: 0,
            kind,
        }
    }

    pub(super) fn tell(&mut self, statuses: &[Status]) {
        for status in statuses {
            let kind = EventKind::Probe {
                name: status.name.as_str().into(),
                attached: status.failure.is_none(),
                reason: status.failure.as_deref().map(Into::into),
            };
            self.consume(Event {
                time_ns: 0,
                pid: 0,
                tid: 0,
                kind,
            });
        }
    }

    pub(super) fn consume(&mut self, mut event: Event) {
        event.round();
        self.applier.apply(event);
    }
}

/// Attaches what belongs to no process.
fn hook(
    object: &mut Object,
    tracefs: &Rc<Tracefs>,
    options: &Options,
) -> Result<(MemoryCalls, Vec<Status>), Error> {
    let tracefs = Rc::clone(tracefs);
    let (calls, mut without, mut statuses) = if options.load.area.kind == AREA_NONE {
        let (calls, without) = MemoryCalls::of_processes(tracefs);
        (calls, without, Vec::new())
    } else {
        MemoryCalls::of_area(object, tracefs)
    };
    if options.load.fault_windows {
        without.push(Group::Faults);
    }
    statuses.extend(points::attach(object, &without)?);
    Ok((calls, statuses))
}

/// A trace that ended.
pub struct Finished {
    /// All that was seen.
    pub document: Document,
    /// Why the recording is not whole.
    pub recording_failure: Option<WriteError>,
}

/// What the summary report reads: at the end of a recording, so that it need not be replayed for that.
fn summary(document: &Document) -> Option<Vec<u8>> {
    let summary = serde_json::to_vec(&report::excerpt(document));
    summary
        .inspect_err(|error| log::debug!("no summary: {error}"))
        .ok()
}

fn machine() -> Event {
    let uname = nix::sys::utsname::uname().ok();
    let text = |value: Option<&std::ffi::OsStr>| value.unwrap_or_default().to_string_lossy().into();
    let kind = EventKind::Machine(Box::new(Machine {
        memtrace: env!("CARGO_PKG_VERSION").into(),
        kernel: text(uname.as_ref().map(nix::sys::utsname::UtsName::release)),
        arch: text(uname.as_ref().map(nix::sys::utsname::UtsName::machine)),
        huge_pages: seed::huge_pages_unasked(),
    }));
    Event {
        time_ns: seed::now_ns(),
        pid: 0,
        tid: 0,
        kind,
    }
}
