//! How processes begin, change their program and end.

use crate::event::{Event, Pid, Started};
use crate::report::document::Exit;

use super::{
    heap::Counts,
    process::{
        HeapSeen, Image, ImageId, Process, ProcessId, Space, SpaceId, Summary, modules, replay,
    },
    shard::Shard,
    site::SiteUses,
    timeline::Timeline,
};

/// A process that leaves its shard, with what is its own.
#[derive(Debug)]
pub struct Moved {
    id: ProcessId,
    process: Process,
    space: Space,
    image: Image,
}

impl Shard {
    /// A new process in a new address space.
    pub(super) fn begin(
        &mut self,
        id: ProcessId,
        pid: Pid,
        parent: Pid,
        start_ns: u64,
        space: Space,
    ) {
        let space = self.add_space(space);
        let image = self.add_image();
        self.add_process(id, (pid, parent), start_ns, space, image);
    }

    fn next_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    fn add_space(&mut self, mut space: Space) -> SpaceId {
        let id = self.next_id();
        space.users = 0;
        space.memory.sampled = self.sampled;
        space.memory.huge_unasked = self.huge_pages;
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
        id: ProcessId,
        (pid, parent): (Pid, Pid),
        start_ns: u64,
        space: SpaceId,
        image: ImageId,
    ) {
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
    }

    pub(super) fn start(&mut self, id: ProcessId, fresh: bool, event: &Event, started: &Started) {
        if fresh {
            let space = Space {
                complete: !started.already_running,
                ..Space::default()
            };
            self.begin(id, event.pid, started.parent, started.start_ns, space);
        }
        if let Some(process) = self.processes.get_mut(&id) {
            process.parent = started.parent;
            process.start_ns = started.start_ns;
            process.comm.clone_from(&started.comm);
            process.exe.clone_from(&started.exe);
            process.launching = !started.already_running;
        }
        self.sample(id, event.time_ns);
    }

    pub(super) fn fork(
        &mut self,
        (parent, id): (ProcessId, ProcessId),
        event: &Event,
        (child, shares_memory): (Pid, bool),
        comm: &str,
    ) {
        self.release_pending(parent, event);
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
        self.add_process(id, (child, event.pid), event.time_ns, space, image);
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
    pub(super) fn exec(&mut self, id: ProcessId, event: &Event, path: &str, comm: &str) {
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
            self.after_exit += 1;
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

    pub(super) fn exit(
        &mut self,
        id: ProcessId,
        event: &Event,
        code: Option<i32>,
        signal: Option<i32>,
    ) {
        self.release_pending(id, event);
        self.end(id, event.time_ns, Some(Exit { code, signal }));
    }

    pub(super) fn end(&mut self, id: ProcessId, time_ns: u64, exit: Option<Exit>) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        if process.end_ns.is_some() {
            return;
        }
        process.end_ns = Some(time_ns);
        process.exit = exit;
    }

    /// Keeps what is reported of a process, with so many sites at most. How many these are.
    pub(super) fn summarise(&mut self, id: ProcessId, limit: usize) -> usize {
        let Some(mut process) = self.processes.remove(&id) else {
            return 0;
        };
        process.timeline.shrink(self.limits.exited_timeline_points);
        let space_id = process.space;
        if let Some(space) = self.spaces.get(&space_id) {
            let row = self.row(&process, space, 0);
            let heap = process.heap_of(space).ok();
            let mut sites = heap.map(SiteUses::of).unwrap_or_default();
            sites.keep(limit);
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
        let summary = process.summary.as_ref();
        let owned = summary.is_some_and(|summary| summary.counts.is_some());
        let sites = summary.map_or(0, |summary| summary.sites.sites.len());
        self.processes.insert(id, process);
        self.leave_space(space_id, !owned);
        sites
    }

    /// Keeps few of the sites of a summary.
    pub(super) fn trim(&mut self, id: ProcessId) {
        let process = self.processes.get_mut(&id);
        if let Some(summary) = process.and_then(|process| process.summary.as_mut()) {
            let limit = self.limits.few_exited_sites();
            summary.sites.keep(limit);
            summary.fault_sites.truncate(limit);
            summary.fault_sites.shrink_to_fit();
        }
    }

    pub(super) fn forget(&mut self, id: ProcessId) {
        let Some(process) = self.processes.remove(&id) else {
            return;
        };
        if let Some(summary) = &process.summary
            && let Some(counts) = &summary.counts
        {
            self.add_gone(counts, summary.complete && !self.lossy);
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
            self.add_gone(&counts, trusted);
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

    fn add_gone(&mut self, counts: &Counts, trusted: bool) {
        self.unmatched_frees += counts.unmatched(trusted);
        self.implied_frees += counts.implied_frees;
    }

    /// A process goes, that is alone in its address space and with its program. What it shared stays with the others.
    pub fn give(&mut self, id: ProcessId) -> Option<Moved> {
        let process = self.processes.remove(&id)?;
        Some(Moved {
            id,
            space: self.spaces.remove(&process.space)?,
            image: self.images.remove(&process.image)?,
            process,
        })
    }

    /// A process comes.
    pub fn take(&mut self, moved: Moved) {
        let Moved {
            id,
            mut process,
            space,
            image,
        } = moved;
        (process.space, process.image) = (self.next_id(), self.next_id());
        self.spaces.insert(process.space, space);
        self.images.insert(process.image, image);
        self.processes.insert(id, process);
    }
}
