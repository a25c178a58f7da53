//! An area that is traced as a whole: its processes are not followed one by one. Those that run when tracing begins
//! come from /proc, the kernel side meets the others, and events stand on CPUs.

use memtrace_common::histogram::HistogramKey;

use super::Session;
use crate::{
    event::{Event, EventKind, Pid},
    model::Model,
    probe::{
        Error,
        area::{self, Area},
        hotplug::Hotplug,
    },
    report::document,
    seed,
    stream::counted,
};

/// How long the mappings of running processes are read when tracing begins, in nanoseconds: smaps walks every page
/// table. What is left then has its sums and no mappings, and is counted.
const SEED_NS: u64 = 3_000_000_000;

/// How long a record may take from its time stamp into the ring buffer, in nanoseconds: far more than an interrupted
/// program takes.
const HELD_NS: u64 = 100_000_000;

impl Session {
    /// Traces every process of an area from now on. The programs must have been loaded for it.
    pub fn trace_area(&mut self, area: Area) -> Result<(), Error> {
        let running = area.processes();
        self.area = Some(area);
        self.hotplug = Hotplug::listen();
        let online = area::online_cpus()?;
        self.follow_only(&online)?;
        let until_ns = seed::now_ns().saturating_add(SEED_NS);
        for pid in running {
            self.trace_member(pid, until_ns)?;
        }
        self.tell(&self.faults.statuses());
        Ok(())
    }

    /// Traces a process that runs in the area, unless the kernel side met it before; tells whether it does. Its mappings
    /// are read until then.
    fn trace_member(&mut self, pid: Pid, until_ns: u64) -> Result<bool, Error> {
        let start_ns = seed::now_ns();
        // A kernel thread or a zombie has no memory of its own.
        if seed::totals(pid).is_none() {
            return Ok(false);
        }
        let counted = seed::kernel_counts(pid);
        if !self.object.trace_in_area(pid, start_ns, counted)? {
            return Ok(false);
        }
        // Its end may have come before it was traced.
        if !seed::is_alive(pid) {
            self.object.forget(pid);
            return Ok(false);
        }
        self.stream.begin(pid, start_ns);
        self.traced.insert(pid);
        self.identify(pid, start_ns, true);
        self.consume(self.unavailable(pid, start_ns));
        // What was told of it before its mappings are read must be applied before them.
        while self.drain() {}
        for event in Self::memory_of(pid, start_ns < until_ns) {
            self.consume(event);
        }
        Ok(true)
    }

    /// Now and then: who was moved into a cgroup and does nothing there that the kernel side would meet it by.
    pub(super) fn look_for_moved(&mut self) {
        let running = match &self.area {
            Some(area @ Area::Cgroup(_)) if self.census.is_idle_turn() => area.processes(),
            _ => return,
        };
        for pid in running {
            if self.traced.contains(&pid) {
                continue;
            }
            match self.trace_member(pid, u64::MAX) {
                Ok(true) => self.choose(pid, true),
                Ok(false) => {}
                Err(error) => self.heap.failures.push(error.to_string()),
            }
        }
    }

    /// Times one in so many faults of the area from now on. The programs must have been loaded for it
    /// ([`crate::probe::object::LoadOptions::fault_windows`]).
    pub fn time_faults(&mut self, one_in: u32) -> Result<(), Error> {
        match &self.area {
            Some(area) => self.faults.open_windows(&self.object, area, one_in),
            None => Ok(()),
        }
    }

    /// The kernel side met a process: what /proc says of it, as far as it is still there.
    pub(super) fn met(&mut self, pid: Pid, tid: u32, start_ns: u64) {
        let key = HistogramKey {
            pid,
            start_low: start_ns as u32,
        };
        let histogram = self.object.histogram(key, false);
        if histogram.is_some_and(|histogram| histogram.counted.others > 0) {
            self.stream.met_with_others(pid, tid);
        }
        let identity = seed::identity(pid, start_ns, true);
        let is_there = identity.len() > 1;
        for event in identity.into_iter().filter(|_| is_there) {
            self.handle(event);
        }
        self.consume(self.unavailable(pid, start_ns));
        for event in seed::smaps(pid) {
            self.stream.push(event);
        }
        self.choose(pid, true);
    }

    /// The mappings of a process, or that they were not read.
    fn memory_of(pid: Pid, with_mappings: bool) -> Vec<Event> {
        if with_mappings {
            return seed::smaps(pid);
        }
        vec![Event {
            pid,
            ..counted("mappings_not_seeded", 1, false)
        }]
    }

    /// Delivers what was held back for its turn though nothing came after it: in an area at rest nothing does.
    pub(super) fn deliver_held(&mut self) {
        let until_ns = seed::now_ns().saturating_sub(HELD_NS);
        let mut events = Vec::new();
        self.stream
            .deliver_before(until_ns, &mut |event| events.push(event));
        for event in events {
            self.handle(event);
        }
    }

    /// Reads the mappings of processes anew, so that what follows is of now.
    pub fn read_mappings(&mut self, pids: &[Pid]) {
        while self.drain() {}
        for &pid in pids {
            for event in seed::smaps(pid) {
                self.consume(event);
            }
        }
    }

    /// What is known by now.
    pub fn model(&self) -> &Model {
        self.applier.model()
    }

    /// The processes that ended by `end_ns` and are known no more. To be called once everything of that time is drained.
    pub fn take_exited(&mut self, end_ns: u64) -> Vec<document::Process> {
        let model = self.applier.model_mut();
        model.advance(seed::now_ns());
        model.take_exited(end_ns)
    }

    /// Puts events on every CPU that came, as soon as that is announced.
    pub fn watch_cpus(&mut self) {
        let changed = self.hotplug.as_ref().map(Hotplug::changed);
        match changed {
            None => {}
            Some(Some(cpus)) if cpus.is_empty() => {}
            Some(cpus) => {
                // The events of one that went are dead, also where it is back by now.
                let stayed = area::online_cpus().map(|mut online| {
                    online.retain(|cpu| cpus.as_ref().is_some_and(|gone| !gone.contains(cpu)));
                    online
                });
                let left = stayed.and_then(|stayed| self.follow_only(&stayed));
                self.note_failure(left.map(drop));
                self.follow_cpus();
            }
        }
    }

    /// Puts events on every CPU that is online and takes those of others away.
    pub(super) fn follow_cpus(&mut self) {
        let online = area::online_cpus();
        let came = online.and_then(|online| self.follow_only(&online));
        if let Ok(came @ 1..) = came {
            // Its faults and mappings from then until now were not told.
            self.consume(counted("cpu_came_online", came, true));
        }
        self.note_failure(came.map(drop));
    }

    fn note_failure(&mut self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.heap.failures.push(error.to_string());
        }
    }

    /// The result is how many CPUs are new.
    fn follow_only(&mut self, cpus: &[u32]) -> Result<u64, Error> {
        let Some(area) = &self.area else {
            return Ok(0);
        };
        let came = self.faults.follow_area(&self.object, area, cpus)?;
        self.stream.follow_area(&mut self.sideband, area, cpus)?;
        Ok(came)
    }

    /// Reads the sums of the processes whose memory may have changed; the result is those that are not there.
    pub(super) fn sample(&mut self) -> Vec<Pid> {
        let mut gone = Vec::new();
        for pid in self.census.due() {
            let time_ns = seed::now_ns();
            match seed::totals(pid) {
                Some(totals) => {
                    self.stream.count_faults_of(pid);
                    let kind = EventKind::Memory(Box::new(totals));
                    self.consume(Event {
                        time_ns,
                        pid,
                        tid: 0,
                        kind,
                    });
                }
                None if !seed::is_alive(pid) => {
                    self.census.touch(pid);
                    gone.push(pid);
                }
                None => {}
            }
        }
        gone
    }
}
