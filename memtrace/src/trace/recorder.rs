//! Writes a recording: in a thread of its own, or right here where none can be started.

use std::{
    mem,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{Builder, JoinHandle},
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
pub enum Recorder {
    /// In a thread.
    There(Writing),
    /// What is left to do it with: nothing after the end.
    Here(Result<Option<Box<Writer>>, WriteError>),
}

/// The thread that writes. What it was sent is written when this is gone.
pub struct Writing {
    path: PathBuf,
    sender: Option<SyncSender<ToWrite>>,
    thread: Option<JoinHandle<Result<(), WriteError>>>,
}

impl Recorder {
    /// Writes what it is sent from now on.
    pub fn start(writer: Writer) -> Self {
        let path = writer.path().to_owned();
        let writer = Box::new(writer);
        let (sender, receiver) = sync_channel(QUEUE);
        let (give, given) = sync_channel(1);
        // Where it cannot be started, the writer is still here.
        let begin = move || {
            given
                .recv()
                .map_or(Ok(()), |writer| write(writer, receiver))
        };
        match Builder::new().spawn(begin) {
            Ok(thread) => {
                // It waits for this.
                let _ = give.send(writer);
                Self::There(Writing {
                    path,
                    sender: Some(sender),
                    thread: Some(thread),
                })
            }
            Err(cause) => {
                log::warn!("the recording is written without a thread of its own: {cause}");
                Self::Here(Ok(Some(writer)))
            }
        }
    }

    /// Takes the next events.
    pub fn write(&mut self, events: Arc<Vec<Event>>) {
        self.take(ToWrite::Events(events));
    }

    /// Has what it took handed to the system.
    pub fn flush(&mut self) {
        self.take(ToWrite::Flush);
    }

    fn take(&mut self, what: ToWrite) {
        match self {
            Self::There(writing) => {
                if let Some(sender) = &writing.sender {
                    // It listens until the end, unless it panics, which is told then.
                    let _ = sender.send(what);
                }
            }
            Self::Here(left) => {
                *left = match mem::replace(left, Ok(None)) {
                    Ok(Some(writer)) => take(writer, what),
                    ended => ended,
                };
            }
        }
    }

    /// Ends the recording, with a summary where there is one. The first error is told here: what was written before
    /// stays, and nothing was since.
    pub fn finish(mut self, summary: Option<Vec<u8>>) -> Result<(), WriteError> {
        self.take(ToWrite::Finish(summary));
        match self {
            Self::There(mut writing) => writing.end(),
            Self::Here(left) => left.map(drop),
        }
    }
}

impl Writing {
    /// Waits until everything is written.
    fn end(&mut self) -> Result<(), WriteError> {
        self.sender = None;
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(written)) => written,
            Some(Err(_)) => Err(WriteError::Panicked {
                path: mem::take(&mut self.path),
            }),
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // Whoever wants to know asks at the end.
        let _ = self.end();
    }
}

fn write(writer: Box<Writer>, receiver: Receiver<ToWrite>) -> Result<(), WriteError> {
    let mut waiting = receiver.into_iter();
    let written = waiting.try_fold(Some(writer), |left, what| match left {
        Some(writer) => take(writer, what),
        None => Ok(None),
    });
    // After an error whoever sends is to have room.
    waiting.for_each(drop);
    written.map(drop)
}

/// Gives the writer back, unless that was the end.
fn take(mut writer: Box<Writer>, what: ToWrite) -> Result<Option<Box<Writer>>, WriteError> {
    match what {
        ToWrite::Events(events) => events.iter().try_for_each(|event| writer.write(event))?,
        ToWrite::Flush => writer.flush()?,
        ToWrite::Finish(Some(summary)) => return writer.finish_with(&summary).map(|_| None),
        ToWrite::Finish(None) => return writer.finish().map(|_| None),
    }
    Ok(Some(writer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::random_events::events, store::recording::Reader};

    fn recorded(path: &std::path::Path) -> usize {
        let mut reader = Reader::open(path).unwrap();
        let mut count = 0;
        while let Some(batch) = reader.next_batch().unwrap() {
            count += batch.len();
        }
        count
    }

    #[test]
    fn what_was_taken_is_written_when_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("recording");
        let events = Arc::new(events(1));
        let mut recorder = Recorder::start(Writer::create(&path).unwrap());
        for _ in 0..10 {
            recorder.write(Arc::clone(&events));
        }
        recorder.flush();
        drop(recorder);
        assert_eq!(recorded(&path), 10 * events.len());
    }

    #[test]
    fn without_a_thread_the_recording_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let [here, there] = ["here", "there"].map(|name| directory.path().join(name));
        let writer = Writer::create(&here).unwrap();
        let first = Recorder::Here(Ok(Some(Box::new(writer))));
        let second = Recorder::start(Writer::create(&there).unwrap());
        for mut recorder in [first, second] {
            recorder.write(Arc::new(events(1)));
            recorder.flush();
            recorder.write(Arc::new(events(2)));
            assert!(recorder.finish(Some(vec![7])).is_ok());
        }
        assert_eq!(recorded(&here), recorded(&there));
        assert!(recorded(&here) > 0);
        assert_eq!(Reader::open(&here).unwrap().summary(), Some(vec![7]));
    }

    #[test]
    fn a_panic_of_the_thread_is_a_failure_of_the_recording() {
        let thread = std::thread::spawn(|| panic!("in a test"));
        let recorder = Recorder::There(Writing {
            path: "there".into(),
            sender: None,
            thread: Some(thread),
        });
        let failure = recorder.finish(None);
        assert!(matches!(failure, Err(WriteError::Panicked { .. })));
    }
}
