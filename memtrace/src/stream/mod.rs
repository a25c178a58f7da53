//! The stream of events of a live trace: ring buffers, mapping records and what /proc said, in one order.

pub mod decode;
mod merge;
mod order;
mod rings;
mod totals;

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use memtrace_common::counter::Counter;
use rustc_hash::FxHashMap;

use crate::{
    event::{Event, EventKind, Pid},
    probe::{Error, area::Area, object::Object, ring::Ring, sideband::Sideband},
    stack::symbolize::Mapping,
    unwind::Unwinder,
};

use decode::Decoded;
use merge::Left;
use rings::Rings;
use totals::Counts;

/// Records taken at a time: keeps a drain short enough for timers and signals to have their turn.
const BATCH: usize = 8192;

/// Merges all sources of a live trace.
pub struct Stream {
    rings: Rings,
    order: order::Order,
    starts: FxHashMap<Pid, u64>,
    counted: [u64; Counter::ALL.len()],
    unseen_ends: u64,
    /// Mapping records that CPUs took with them when they went.
    unread_mappings: u64,
    unwinder: Unwinder,
    /// Where the kernel side knows a sample of the faults alone.
    counts: Option<Counts>,
    /// What the last drain left.
    left: Left,
    /// One left nothing that was written when it began, since [`Stream::caught_up`] was asked.
    caught_up: bool,
    batch: Vec<Decoded>,
    side: Vec<Event>,
}

impl Stream {
    /// A stream over the ring buffers of a loaded object.
    pub fn new(rings: Vec<Ring>, unwinder: Unwinder) -> Result<Self, Error> {
        Ok(Self {
            rings: Rings::new(rings)?,
            order: order::Order::default(),
            starts: FxHashMap::default(),
            counted: [0; Counter::ALL.len()],
            unseen_ends: 0,
            unread_mappings: 0,
            unwinder,
            counts: None,
            left: Left::More,
            caught_up: false,
            batch: Vec::with_capacity(BATCH),
            side: Vec::new(),
        })
    }

    /// Tells when tracing of a process began; forks are learnt from the stream itself.
    pub fn begin(&mut self, pid: Pid, start_ns: u64) {
        self.starts.insert(pid, start_ns);
    }

    /// Counts faults by the kernel's own counts from now on, since the kernel side knows a sample alone.
    pub fn count_faults_by_kernel(&mut self) {
        self.counts = Some(Counts::default());
    }

    /// A thread of a process was met, and others ran by then.
    pub fn met_with_others(&mut self, pid: Pid, tid: u32) {
        if let Some(counts) = &mut self.counts {
            counts.met_with_others(pid, tid);
        }
    }

    /// Reads the kernel's counts of a process for the next totals.
    pub fn count_faults_of(&mut self, pid: Pid) {
        if let Some(counts) = &mut self.counts {
            counts.update(pid);
        }
    }

    /// Compiles the unwind rules of files that are about to be mapped.
    pub fn prepare(&mut self, files: &[PathBuf]) {
        self.unwinder.prepare(files);
    }

    /// Adds an event that did not come through a ring buffer, to be delivered at its time.
    pub fn push(&mut self, event: Event) {
        // What is mapped already need not wait for its turn.
        if let EventKind::Smaps(_) = event.kind {
            self.unwinder.note(&event);
        }
        self.order.push(event);
    }

    /// Keeps unwind tables of a process from now on, where that is not done of all; `mappings` are those that it is
    /// known to have.
    pub fn take_stacks(&mut self, pid: Pid, mappings: &[Mapping]) {
        self.unwinder.follow(pid, mappings);
    }

    /// Does not any more.
    pub fn leave_stacks(&mut self, pid: Pid) {
        self.unwinder.leave(pid);
    }

    /// The same of a process that grows, and of none that it forks.
    pub fn take_stacks_of_growth(&mut self, pid: Pid, mappings: &[Mapping]) {
        self.unwinder.follow_growth(pid, mappings);
    }

    /// Does not any more for that reason.
    pub fn leave_stacks_of_growth(&mut self, pid: Pid) {
        self.unwinder.leave_growth(pid);
    }

    /// Whether all that was written when this was asked last was read since.
    pub fn caught_up(&mut self) -> bool {
        std::mem::take(&mut self.caught_up)
    }

    /// Adds the end of a process that was found gone without its end being told.
    pub fn push_end(&mut self, pid: Pid, time_ns: u64) {
        self.starts.remove(&pid);
        if let Some(counts) = &mut self.counts {
            counts.forget(pid);
        }
        let kind = EventKind::Exit {
            code: None,
            signal: None,
        };
        self.order.push(Event {
            time_ns,
            pid,
            tid: 0,
            kind,
        });
        self.unseen_ends += 1;
    }

    /// Follows the mappings of an area on the CPUs that are online.
    pub fn follow_area(
        &mut self,
        sideband: &mut Sideband,
        area: &Area,
        online: &[u32],
    ) -> Result<(), Error> {
        self.unread_mappings += sideband.follow_area(area, online, &mut self.side)?;
        Ok(())
    }

    /// Whether the last drain left what is there, since a record before it was still being written.
    pub fn is_held_up(&self) -> bool {
        self.left == Left::Held
    }

    /// Whether the last drain left nothing that was written when it began.
    fn emptied(&self) -> bool {
        matches!(self.left, Left::Nothing | Left::Younger)
    }

    /// Takes up to one batch of records and delivers them in order. False when nothing was left that can be read now.
    pub fn drain(
        &mut self,
        object: &mut Object,
        sideband: &mut Sideband,
        deliver: &mut dyn FnMut(Event),
    ) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        let left = self.rings.take(BATCH, &mut batch);
        self.left = left;
        self.caught_up |= self.emptied();
        // Read after the rings: a mapping's record is written before its system call returns.
        let lost = sideband.drain(&mut self.side) + std::mem::take(&mut self.unread_mappings);
        for event in self.side.drain(..) {
            self.order.push(event);
        }
        if lost > 0 {
            deliver(counted("mmap_records", lost, true));
        }
        let any = !batch.is_empty() || matches!(left, Left::Younger | Left::More);
        for decoded in batch.drain(..) {
            self.deliver_before(decoded.time_ns(), deliver);
            match decoded {
                Decoded::Event(mut event) => {
                    self.unwinder.resolve(&mut event);
                    for named in self.unwinder.complete(&mut event) {
                        deliver(named);
                    }
                    self.unwinder.note(&event);
                    self.note(&event, object, deliver);
                    deliver(event);
                }
                Decoded::Copy(copy) => {
                    if let Some(event) = self.unwinder.walk(&copy) {
                        deliver(event);
                    }
                }
                Decoded::Code { pid, code, .. } => self.unwinder.add_code(pid, *code),
            }
        }
        self.batch = batch;
        any
    }

    /// Brings the kernel side's unwind tables up to what was drained. True where they still are behind: drain
    /// once more.
    pub fn publish(&mut self, object: &mut Object) -> bool {
        // A table says up to where it was made, which is known only where nothing was left of before the drain.
        self.emptied() && self.unwinder.publish(object)
    }

    /// Delivers what came otherwise than through a ring buffer, up to a time.
    pub fn deliver_before(&mut self, time_ns: u64, deliver: &mut dyn FnMut(Event)) {
        let Self {
            order,
            unwinder,
            starts,
            ..
        } = self;
        order.before(time_ns, &mut |event| {
            // Mapping records are inherited by children whether they are traced or not.
            if starts.contains_key(&event.pid) {
                unwinder.note(&event);
            }
            deliver(event);
        });
    }

    /// Delivers what is still held back, and the counts so far.
    pub fn finish(&mut self, object: &mut Object, now_ns: u64, deliver: &mut dyn FnMut(Event)) {
        self.deliver_before(u64::MAX, deliver);
        self.report(object, now_ns, deliver);
    }

    /// Delivers the counters' growth and the fault totals of every process that runs.
    pub fn report(&mut self, object: &mut Object, now_ns: u64, deliver: &mut dyn FnMut(Event)) {
        for (index, &counter) in Counter::ALL.iter().enumerate() {
            let value = object.counter(counter);
            let grown = value.saturating_sub(self.counted[index]);
            if grown > 0 {
                deliver(counted(counter.name(), grown, counter.is_loss()));
                self.counted[index] = value;
            }
        }
        for (reason, count) in self.unwinder.take_counts() {
            deliver(counted(reason, count, false));
        }
        for (name, reason) in self.unwinder.take_unsupported() {
            deliver(unsupported(&name, &reason));
        }
        let undecodable = self.rings.take_undecodable();
        if undecodable > 0 {
            deliver(counted("undecodable", undecodable, false));
        }
        if self.unseen_ends > 0 {
            let count = std::mem::take(&mut self.unseen_ends);
            deliver(counted("process_end_not_seen", count, true));
        }
        for (&pid, &start_ns) in &self.starts {
            if let Some(event) =
                totals::read(object, self.counts.as_mut(), (pid, start_ns), now_ns, false)
            {
                deliver(event);
            }
        }
    }

    /// Keeps the table of processes, and reads the totals of one that ends just before its end is told.
    fn note(&mut self, event: &Event, object: &mut Object, deliver: &mut dyn FnMut(Event)) {
        match &event.kind {
            EventKind::Fork { child, .. } => {
                self.starts.insert(*child, event.time_ns);
            }
            EventKind::Started(started) => {
                self.starts.insert(event.pid, started.start_ns);
            }
            EventKind::Exit { .. } => {
                if let Some(start_ns) = self.starts.remove(&event.pid)
                    && let Some(totals) = totals::read(
                        object,
                        self.counts.as_mut(),
                        (event.pid, start_ns),
                        event.time_ns,
                        true,
                    )
                {
                    deliver(totals);
                }
            }
            _ => {}
        }
    }

    /// Processes that were traced and have not ended, as far as the stream was read.
    pub fn running(&self) -> impl Iterator<Item = Pid> + '_ {
        self.starts.keys().copied()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rings.as_fd()
    }
}

/// Something that is not read, as a probe that is not attached.
fn unsupported(name: &str, reason: &str) -> Event {
    let kind = EventKind::Probe {
        name: name.into(),
        attached: false,
        reason: Some(reason.into()),
    };
    Event {
        time_ns: 0,
        pid: 0,
        tid: 0,
        kind,
    }
}

/// Something to be counted in the coverage.
pub(crate) fn counted(reason: &str, count: u64, loss: bool) -> Event {
    let kind = EventKind::Counted {
        reason: reason.into(),
        count,
        loss,
    };
    Event {
        time_ns: 0,
        pid: 0,
        tid: 0,
        kind,
    }
}
