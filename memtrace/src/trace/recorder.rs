//! Writes a recording in a thread of its own.

use std::{
    panic,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use super::applier::QUEUE;
use crate::{
    event::Event,
    store::recording::{WriteError, Writer},
};

enum ToWrite {
    Events(Arc<Vec<Event>>),
    Flush,
    /// The end, with a summary where there is one.
    Finish(Option<Vec<u8>>),
}

/// A recording that is written.
pub struct Recorder {
    sender: SyncSender<ToWrite>,
    thread: JoinHandle<Result<(), WriteError>>,
}

impl Recorder {
    /// Writes what it is sent from now on.
    pub fn start(writer: Writer) -> Self {
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = thread::spawn(move || write(writer, receiver));
        Self { sender, thread }
    }

    /// Takes the next events.
    pub fn write(&self, events: Arc<Vec<Event>>) {
        self.send(ToWrite::Events(events));
    }

    /// Has what it took handed to the system.
    pub fn flush(&self) {
        self.send(ToWrite::Flush);
    }

    fn send(&self, what: ToWrite) {
        // It listens until the end, unless it panics, which is passed on then.
        let _ = self.sender.send(what);
    }

    /// Ends the recording, with a summary where there is one. The first error is told here: what was written before
    /// stays, and nothing was since.
    pub fn finish(self, summary: Option<Vec<u8>>) -> Result<(), WriteError> {
        self.send(ToWrite::Finish(summary));
        drop(self.sender);
        let joined = self.thread.join();
        joined.unwrap_or_else(|cause| panic::resume_unwind(cause))
    }
}

fn write(writer: Writer, receiver: Receiver<ToWrite>) -> Result<(), WriteError> {
    let mut waiting = receiver.into_iter();
    let written = write_all(writer, &mut waiting);
    // After an error whoever sends is to have room.
    waiting.for_each(drop);
    written
}

fn write_all(
    mut writer: Writer,
    waiting: &mut impl Iterator<Item = ToWrite>,
) -> Result<(), WriteError> {
    for what in waiting {
        match what {
            ToWrite::Events(events) => events.iter().try_for_each(|event| writer.write(event))?,
            ToWrite::Flush => writer.flush()?,
            ToWrite::Finish(Some(summary)) => return writer.finish_with(&summary).map(drop),
            ToWrite::Finish(None) => return writer.finish().map(drop),
        }
    }
    Ok(())
}
