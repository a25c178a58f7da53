//! How processes begin, change their program and end.

use crate::event::{Event, Pid, Started};
use crate::report::document::{self, Exit};

use super::{
    Model,
    process::{HeapSeen, ImageId, Process, ProcessId, Space, SpaceId, Summary, modules, replay},
    site::SiteUses,
    timeline::Timeline,
};

/// How long after its end, in the time of events, a process still takes in events in full.
const GRACE_NS: u64 = 1_000_000_000;

/// Ended processes that wait for late events at most.
const GRACE_PROCESSES: usize = 64;

impl Model {
    /// The process that an event is about. One that nobody announced is taken to have been there
    /// before.
    pub(super) fn process_id(&mut self, event: &Event) -> ProcessId {
        match self.current.get(&event.pid) {
            Some(&id) => id,
            None => self.begin(event.pid, 0, event.time_ns, Space::default()),
        }
    }

    /// A new process in a new address space.
    fn begin(&mut self, pid: Pid, parent: Pid, start_ns: u64, space: Space) -> ProcessId {
        let space = self.add_space(space);
        let image = self.add_image();
        self.add_process(pid, parent, start_ns, space, image)
    }

    fn next_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    fn add_space(&mut self, mut space: Space) -> SpaceId {
        let id = self.next_id();
        space.users = 0;
        space.memory.sampled = self.sampled;
        space.memory.huge_unasked = self.machine.huge_pages;
        self.spaces.insert(id, space);
        id
    }

    fn add_image(&mut self) -> ImageId {
        let id = self.next_id();
        self.images.insert(id, Default::default());
        id
    }

    fn add_process(
        &mut self,
        pid: Pid,
        parent: Pid,
        start_ns: u64,
        space: SpaceId,
        image: ImageId,
    ) -> ProcessId {
        let id = self.next_id();
        if let Some(space) = self.spaces.get_mut(&space) {
            space.users += 1;
        }
        if let Some(image) = self.images.get_mut(&image) {
            image.users += 1;
        }
        let process = Process {
            pid,
            parent,
            start_ns,
            end_ns: None,
            exit: None,
            comm: Box::default(),
            exe: Box::default(),
            command_line: Vec::new(),
            cgroup: Box::default(),
            space,
            image,
            guest_of: None,
            heap_seen: HeapSeen::Unknown,
            faults: Default::default(),
            fault_sites: Default::default(),
            timeline: Timeline::new(self.limits.timeline_points),
            launching: false,
            pending: Vec::new(),
            summary: None,
        };
        self.processes.insert(id, process);
        self.current.insert(pid, id);
        id
    }

    /// A pid is taken by a new process: whoever had it has ended, seen or not.
    fn vacate(&mut self, pid: Pid, time_ns: u64) {
        if let Some(&id) = self.current.get(&pid)
            && self
                .processes
                .get(&id)
                .is_some_and(|old| old.end_ns.is_none())
        {
            self.end(id, time_ns, None);
        }
    }

    pub(super) fn start(&mut self, event: &Event, started: &Started) {
        let known = self.current.get(&event.pid).copied().filter(|id| {
            self.processes.get(id).is_some_and(|old| {
                old.end_ns.is_none() && (old.start_ns == started.start_ns || old.comm.is_empty())
            })
        });
        let id = known.unwrap_or_else(|| {
            self.vacate(event.pid, event.time_ns);
            let space = Space {
                complete: !started.already_running,
                ..Space::default()
            };
            self.begin(event.pid, started.parent, started.start_ns, space)
        });
        if let Some(process) = self.processes.get_mut(&id) {
            process.parent = started.parent;
            process.start_ns = started.start_ns;
            process.comm.clone_from(&started.comm);
            process.exe.clone_from(&started.exe);
            process.launching = !started.already_running;
        }
        if !started.already_running {
            self.command.get_or_insert(id);
        }
        self.sample(id, event.time_ns);
    }

    pub(super) fn fork(&mut self, event: &Event, child: Pid, shares_memory: bool, comm: &str) {
        if child == 0 || child == event.pid {
            return;
        }
        let parent = self.process_id(event);
        self.release_pending(parent, event);
        self.vacate(child, event.time_ns);
        let Some((space, image, exe, line, cgroup, seen, guest_of)) =
            self.processes.get(&parent).map(|parent| {
                (
                    parent.space,
                    parent.image,
                    parent.exe.clone(),
                    parent.command_line.clone(),
                    parent.cgroup.clone(),
                    parent.heap_seen.clone(),
                    parent.guest_of.unwrap_or(parent.pid),
                )
            })
        else {
            return;
        };
        let copy = match self.spaces.get_mut(&space) {
            Some(_) if shares_memory => None,
            Some(space) => {
                space.memory.note_fork(event.time_ns);
                let mut memory = space.memory.fork();
                memory.note_fork(event.time_ns);
                Some(Space {
                    memory,
                    heap: space.heap.fork(),
                    complete: space.complete,
                    lossy: space.lossy,
                    users: 0,
                })
            }
            None => Some(Space::default()),
        };
        let shared = copy.is_none();
        let space = match copy {
            Some(copy) => self.add_space(copy),
            None => space,
        };
        let id = self.add_process(child, event.pid, event.time_ns, space, image);
        if let Some(process) = self.processes.get_mut(&id) {
            process.comm = comm.into();
            process.exe = exe;
            process.command_line = line;
            process.cgroup = cgroup;
            process.heap_seen = seen;
            process.guest_of = shared.then_some(guest_of);
        }
        self.sample(id, event.time_ns);
        self.sample(parent, event.time_ns);
    }

    /// The program is replaced: mappings, blocks and heap counts begin anew; faults and the timeline
    /// go on. A heap that was seen stays so, since probes sit on files and not on processes.
    pub(super) fn exec(&mut self, event: &Event, path: &str, comm: &str) {
        if event.pid == 0 {
            return;
        }
        let id = self.process_id(event);
        let (fresh, image) = (
            self.add_space(Space {
                complete: true,
                ..Space::default()
            }),
            self.add_image(),
        );
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        if process.summary.is_some() {
            self.spaces.remove(&fresh);
            self.images.remove(&image);
            self.coverage.count("event_after_exit", 1, false);
            return;
        }
        let pending = std::mem::take(&mut process.pending);
        let (old_space, old_image) = (process.space, process.image);
        (process.space, process.image) = (fresh, image);
        process.guest_of = None;
        process.fault_sites.clear();
        if std::mem::take(&mut process.launching) {
            process.start_ns = event.time_ns;
            process.timeline = Timeline::new(self.limits.timeline_points);
        }
        process.exe = path.into();
        process.comm = comm.into();
        process.command_line.clear();
        if let Some(space) = self.spaces.get_mut(&fresh) {
            space.users = 1;
            // The execing thread is the only one left: what others mapped last went with them.
            let own = |held: &&Event| held.tid == event.tid || held.tid == 0 || event.tid == 0;
            for held in pending.iter().filter(own) {
                replay(&mut space.memory, held);
            }
        }
        if let Some(image) = self.images.get_mut(&image) {
            image.users = 1;
        }
        self.leave_space(old_space, true);
        self.leave_image(old_image);
        self.sample(id, event.time_ns);
    }

    pub(super) fn exit(&mut self, event: &Event, code: Option<i32>, signal: Option<i32>) {
        if event.pid == 0 {
            return;
        }
        let id = self.process_id(event);
        self.release_pending(id, event);
        self.end(id, event.time_ns, Some(Exit { code, signal }));
    }

    fn end(&mut self, id: ProcessId, time_ns: u64, exit: Option<Exit>) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        if process.end_ns.is_some() {
            return;
        }
        process.end_ns = Some(time_ns);
        process.exit = exit;
        self.ending.push_back((time_ns, id));
    }

    /// Summarises what ended a while ago, and drops what ended long ago.
    pub(super) fn settle(&mut self) {
        self.settle_until(self.now_ns.saturating_sub(GRACE_NS));
    }

    /// Summarises what ended by then, for one who knows that everything about it has been told.
    fn settle_until(&mut self, end_ns: u64) {
        while let Some(&(time_ns, id)) = self.ending.front() {
            if time_ns > end_ns && self.ending.len() <= GRACE_PROCESSES {
                break;
            }
            self.ending.pop_front();
            self.summarise(id);
        }
        while self.exited.len() > self.limits.exited_processes {
            let Some(id) = self.exited.pop_front() else {
                break;
            };
            self.coverage.processes_dropped += 1;
            self.forget(id);
        }
    }

    /// The processes that ended by `end_ns` and were not taken yet, oldest first: whoever takes them keeps them, and
    /// the model forgets them. Of those nothing more must be told.
    pub fn take_exited(&mut self, end_ns: u64) -> Vec<document::Process> {
        self.settle_until(end_ns);
        let mut rows = Vec::new();
        for id in std::mem::take(&mut self.exited) {
            rows.extend(
                self.processes
                    .get(&id)
                    .and_then(|process| self.full_row(process)),
            );
            self.forget(id);
        }
        rows
    }

    fn summarise(&mut self, id: ProcessId) {
        let Some(mut process) = self.processes.remove(&id) else {
            return;
        };
        process.timeline.shrink(self.limits.exited_timeline_points);
        let space_id = process.space;
        if let Some(space) = self.spaces.get(&space_id) {
            let row = self.row(&process, space);
            let heap = process.heap_of(space).ok();
            let mut sites = heap.map(SiteUses::of).unwrap_or_default();
            let room = self.exited_sites < self.limits.all_exited_sites;
            let limit = self.limits.exited_sites / if room { 1 } else { 10 };
            sites.keep(limit);
            self.exited_sites += sites.sites.len();
            let mut fault_sites = process.fault_sites.sorted();
            fault_sites.truncate(limit);
            fault_sites.shrink_to_fit();
            let summary = Summary {
                row,
                sites,
                fault_sites,
                growth: self.growth_of(&process),
                modules: modules(&space.memory),
                counts: heap.map(super::heap::Heap::counts),
                complete: space.complete && !space.lossy,
            };
            process.summary = Some(Box::new(summary));
            process.faults = Default::default();
            process.fault_sites = Default::default();
            process.timeline = Timeline::new(0);
            process.command_line = Vec::new();
            process.pending = Vec::new();
        }
        let owned = process
            .summary
            .as_ref()
            .is_some_and(|summary| summary.counts.is_some());
        self.processes.insert(id, process);
        self.leave_space(space_id, !owned);
        self.exited.push_back(id);
    }

    fn forget(&mut self, id: ProcessId) {
        let Some(process) = self.processes.remove(&id) else {
            return;
        };
        if self.current.get(&process.pid) == Some(&id) {
            self.current.remove(&process.pid);
        }
        if let Some(summary) = &process.summary {
            self.exited_sites -= summary.sites.sites.len();
        }
        if let Some(summary) = &process.summary
            && let Some(counts) = &summary.counts
        {
            let trusted = summary.complete && !self.lossy;
            self.coverage.unmatched_frees += counts.unmatched(trusted);
            self.coverage.implied_frees += counts.implied_frees;
        }
        self.leave_image(process.image);
    }

    /// A process is gone from an address space; the last one takes it along. `count`: no summary
    /// keeps the counts of its heap.
    fn leave_space(&mut self, id: SpaceId, count: bool) {
        let Some(space) = self.spaces.get_mut(&id) else {
            return;
        };
        space.users = space.users.saturating_sub(1);
        if space.users > 0 {
            return;
        }
        if let Some(space) = self.spaces.remove(&id)
            && count
        {
            let counts = space.heap.counts();
            let trusted = space.complete && !space.lossy && !self.lossy;
            self.coverage.unmatched_frees += counts.unmatched(trusted);
            self.coverage.implied_frees += counts.implied_frees;
        }
    }

    fn leave_image(&mut self, id: ImageId) {
        if let Some(image) = self.images.get_mut(&id) {
            image.users = image.users.saturating_sub(1);
            if image.users == 0 {
                self.images.remove(&id);
            }
        }
    }
}
