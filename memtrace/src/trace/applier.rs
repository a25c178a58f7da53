//! Applies events to the model: in its shards, each in a thread of its own, where there are processors for that.
//!
//! Events are collected; then what each shard has to do at them is decided here, in their order, and the shards get
//! them all at once; a recording is written of the same. The queues are bounded, so whoever is too fast waits.
//!
//! Threads are started with the first batch: the command is forked before, while there is one thread.

use std::{
    collections::VecDeque,
    io, iter, panic,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread::{self, Builder, JoinHandle},
};

use super::recorder::Recorder;
use crate::{
    event::Event,
    model::{
        MAX_UNDECIDED, Model, Moved, Order, ProcessId, Settle, Settling, Shard, Shards, Summarised,
    },
    report::document::Document,
    store::recording::{WriteError, Writer},
};

/// Events that are passed on together.
const BATCH: usize = 8192;

/// Batches that wait for one thread.
pub const QUEUE: usize = 4;

/// Likewise in a replay, whose batches are those of the recording, of up to some dozens of megabytes.
const REPLAY_QUEUE: usize = 1;

/// More shards than the one thread that decides can keep busy.
const MAX_SHARDS: usize = 8;

/// How many shards are worth having on this machine, beside so many threads that are busy all the time.
pub fn shards(beside: usize) -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    processors.saturating_sub(beside).clamp(1, MAX_SHARDS)
}

/// What a shard does next.
enum Turn {
    /// At an event, by its index in the batch.
    At(u32, Order),
    Settle(Settling),
    /// A process goes to another shard,
    Give(Box<(ProcessId, SyncSender<Moved>)>),
    /// which waits for it here. Whoever gives has less to do before it, in the order of all events: so it comes.
    Take(Box<Receiver<Moved>>),
}

/// Events, and what one shard has to do at them.
struct Work {
    events: Arc<Vec<Event>>,
    turns: Vec<Turn>,
}

struct Worker {
    sender: SyncSender<Work>,
    /// The summaries that it made.
    summarised: Receiver<Summarised>,
    thread: JoinHandle<Shard>,
}

/// What is decided about the events that are collected, for each shard.
struct Planned<'a> {
    turns: &'a mut [Vec<Turn>],
    /// Index of the event of now.
    at: u32,
}

impl Settle for Planned<'_> {
    fn settle(&mut self, shard: usize, settling: Settling) {
        self.turns[shard].push(Turn::Settle(settling));
    }
}

impl Shards for Planned<'_> {
    fn order(&mut self, shard: usize, order: Order) {
        self.turns[shard].push(Turn::At(self.at, order));
    }

    fn hand_over(&mut self, id: ProcessId, from: usize, to: usize) {
        let (sender, receiver) = sync_channel(1);
        self.turns[from].push(Turn::Give(Box::new((id, sender))));
        self.turns[to].push(Turn::Take(Box::new(receiver)));
    }
}

/// Threads that have the shards of a model.
struct Workers {
    all: Vec<Worker>,
    turns: Vec<Vec<Turn>>,
}

/// Where the shards of the model are.
enum Place {
    /// With it.
    Here,
    /// With it until there is something to do, then in threads.
    HereYet,
    Threads(Workers),
}

/// A model, and the recording of what it is told.
pub struct Applier {
    model: Model,
    place: Place,
    /// Batches that may wait for a shard.
    queue: usize,
    /// Of a recording that is not yet begun.
    writer: Option<Writer>,
    recorder: Option<Recorder>,
    /// Not yet passed on.
    batch: Vec<Event>,
    /// Passed on, the oldest first; their memory is used again.
    passed_on: VecDeque<Arc<Vec<Event>>>,
}

impl Applier {
    /// The model's shards are given threads where it has several.
    pub fn new(model: Model, recording: Option<Writer>) -> Self {
        let several = model.shards() > 1;
        Self {
            model,
            place: if several { Place::HereYet } else { Place::Here },
            queue: QUEUE,
            writer: recording,
            recorder: None,
            batch: Vec::new(),
            passed_on: VecDeque::new(),
        }
    }

    /// Of a recording, whose batches are large.
    pub fn replay(model: Model) -> Self {
        Self {
            queue: REPLAY_QUEUE,
            ..Self::new(model, None)
        }
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: Event) {
        let here = matches!(self.place, Place::Here);
        if here {
            self.model.apply(&event);
        }
        if !here || self.records() {
            self.batch.push(event);
            if self.batch.len() >= BATCH {
                self.pass_on();
            }
        }
    }

    /// Takes in many events at a time, for a [replay](Applier::replay).
    pub fn apply_all(&mut self, events: Vec<Event>) {
        self.pass_on();
        if let Place::Here = self.place {
            events.iter().for_each(|event| self.model.apply(event));
        } else {
            self.batch = events;
            self.pass_on();
        }
    }

    /// What the recording has so far is handed to the system.
    pub fn flush(&mut self) {
        self.pass_on();
        if let Some(recorder) = &mut self.recorder {
            recorder.flush();
        }
    }

    /// The model. If it has several shards it knows who there is as of the last [`Applier::flush`], and what became of
    /// them only after [`Applier::gather`].
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Likewise.
    pub fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    /// Waits until the shards have done everything, and ends their threads: what comes after is done right here.
    pub fn gather(&mut self) {
        self.pass_on();
        if let Place::Threads(workers) = std::mem::replace(&mut self.place, Place::Here) {
            workers.stop(&mut self.model);
        }
        self.passed_on.clear();
    }

    /// The whole report: after [`Applier::gather`]. Where there are several shards, threads make it.
    pub fn document(&self) -> Document {
        let model = &self.model;
        if model.shards() < 2 {
            return model.document();
        }
        let rows = thread::scope(|scope| {
            let make = |shard| {
                let rows = move || model.rows_of(shard);
                (shard, Builder::new().spawn_scoped(scope, rows))
            };
            let threads: Vec<_> = (0..model.shards()).map(make).collect();
            let made = threads.into_iter().map(|(shard, started)| match started {
                Ok(thread) => (thread.join()).unwrap_or_else(|cause| panic::resume_unwind(cause)),
                Err(_) => model.rows_of(shard),
            });
            made.flatten().collect()
        });
        model.document_of_rows(rows)
    }

    /// Ends the recording, with a summary where there is one. Why it is not whole.
    pub fn finish_recording(mut self, summary: Option<Vec<u8>>) -> Option<WriteError> {
        self.pass_on();
        self.begin_recording();
        let recorder = self.recorder?;
        recorder.finish(summary).err()
    }

    /// Whether there is a recording.
    pub fn records(&self) -> bool {
        self.writer.is_some() || self.recorder.is_some()
    }

    fn begin_recording(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.recorder = Some(Recorder::start(writer));
        }
    }

    fn pass_on(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let next = self.unused();
        let events = Arc::new(std::mem::replace(&mut self.batch, next));
        if let Place::HereYet = self.place {
            self.place = self.leave(&events);
        }
        if let Place::Threads(workers) = &mut self.place {
            workers.apply(&mut self.model, &events);
        }
        self.begin_recording();
        if let Some(recorder) = &mut self.recorder {
            recorder.write(Arc::clone(&events));
        }
        self.passed_on.push_back(events);
    }

    /// Gives the shards to threads. Where these cannot be started the first events are applied here, as all the
    /// others will be.
    fn leave(&mut self, first: &[Event]) -> Place {
        match Workers::start(&mut self.model, self.queue) {
            Ok(workers) => Place::Threads(workers),
            Err(cause) => {
                log::warn!(
                    "events are applied by one thread, since others cannot be started: {cause}"
                );
                first.iter().for_each(|event| self.model.apply(event));
                Place::Here
            }
        }
    }

    /// Room for a batch: that of an older one that is done with.
    fn unused(&mut self) -> Vec<Event> {
        let mut unused = Vec::new();
        while let Some(oldest) = self.passed_on.pop_front() {
            match Arc::try_unwrap(oldest) {
                Ok(events) => unused = events,
                Err(busy) => {
                    self.passed_on.push_front(busy);
                    break;
                }
            }
        }
        unused.clear();
        unused
    }
}

impl Workers {
    /// The shards stay with the model where not every thread can be started.
    fn start(model: &mut Model, queue: usize) -> io::Result<Self> {
        let started: io::Result<Vec<_>> =
            (0..model.shards()).map(|_| Worker::start(queue)).collect();
        let (all, givers): (Vec<_>, Vec<_>) = started?.into_iter().unzip();
        for (give, shard) in givers.into_iter().zip(model.take_shards()) {
            // It waits for this.
            let _ = give.send(shard);
        }
        Ok(Self {
            turns: all.iter().map(|_| Vec::new()).collect(),
            all,
        })
    }

    fn apply(&mut self, model: &mut Model, events: &Arc<Vec<Event>>) {
        for (at, event) in events.iter().enumerate() {
            let mut planned = Planned {
                turns: &mut self.turns,
                at: at as u32,
            };
            model.coordinator().plan(event, &mut planned);
            if model.coordinator().awaited(MAX_UNDECIDED).is_some() {
                self.pass_on(events);
                self.catch_up(model);
            }
        }
        let told = self.all.iter().flat_map(|one| one.summarised.try_iter());
        trim(model, told, &mut self.turns);
        self.pass_on(events);
    }

    /// Summaries wait for it to be known what they may keep: waits until those are half as many. The shards go on
    /// meanwhile with what they have.
    fn catch_up(&mut self, model: &mut Model) {
        while let Some(shard) = model.coordinator().awaited(MAX_UNDECIDED / 2) {
            match self.all[shard].summarised.recv() {
                Ok(told) => trim(model, iter::once(told), &mut self.turns),
                Err(_) => self.all.swap_remove(shard).fail(),
            }
        }
    }

    fn pass_on(&mut self, events: &Arc<Vec<Event>>) {
        for shard in 0..self.all.len() {
            let turns = &mut self.turns[shard];
            if turns.is_empty() {
                continue;
            }
            let capacity = turns.capacity();
            let work = Work {
                events: Arc::clone(events),
                turns: std::mem::replace(turns, Vec::with_capacity(capacity)),
            };
            if self.all[shard].sender.send(work).is_err() {
                self.all.swap_remove(shard).fail();
            }
        }
    }

    fn stop(self, model: &mut Model) {
        let stopped = self.all.into_iter().map(Worker::stop);
        let (shards, told): (Vec<_>, Vec<_>) = stopped.unzip();
        model.bring_back(shards, told.into_iter().flatten());
    }
}

fn trim(model: &mut Model, told: impl Iterator<Item = Summarised>, turns: &mut [Vec<Turn>]) {
    let mut planned = Planned { turns, at: 0 };
    model.coordinator().trim(told, &mut planned);
}

impl Worker {
    /// One that waits for its shard.
    fn start(queue: usize) -> io::Result<(Self, SyncSender<Shard>)> {
        let (sender, receiver) = sync_channel(queue);
        let (summaries, summarised) = channel();
        let (give, given) = sync_channel(1);
        // None comes where another thread cannot be started.
        let begin = move || (given.recv()).map(|shard| work(shard, receiver, &summaries));
        let thread = Builder::new().spawn(|| begin().unwrap_or_default())?;
        let worker = Self {
            sender,
            summarised,
            thread,
        };
        Ok((worker, give))
    }

    fn stop(self) -> (Shard, Vec<Summarised>) {
        drop(self.sender);
        let joined = self.thread.join();
        let shard = joined.unwrap_or_else(|cause| panic::resume_unwind(cause));
        (shard, self.summarised.try_iter().collect())
    }

    /// It does not listen any more, which it does until it is told to stop, unless it panicked.
    fn fail(self) -> ! {
        self.stop();
        unreachable!("a shard's thread ended by itself");
    }
}

fn work(mut shard: Shard, receiver: Receiver<Work>, summarised: &Sender<Summarised>) -> Shard {
    for work in receiver {
        for turn in work.turns {
            take_turn(&mut shard, turn, &work.events);
            for told in shard.take_summarised() {
                // Whoever wants to know has gone where this fails.
                let _ = summarised.send(told);
            }
        }
    }
    shard
}

fn take_turn(shard: &mut Shard, turn: Turn, events: &[Event]) {
    match turn {
        Turn::At(at, order) => shard.execute(order, &events[at as usize]),
        Turn::Settle(settling) => shard.settle(settling),
        Turn::Give(give) => {
            let (id, to) = *give;
            if let Some(moved) = shard.give(id) {
                // Whoever waits for it is there, unless it panicked.
                let _ = to.send(moved);
            }
        }
        Turn::Take(from) => {
            if let Ok(moved) = from.recv() {
                shard.take(moved);
            }
        }
    }
}

#[cfg(test)]
#[path = "applier_tests.rs"]
mod tests;
