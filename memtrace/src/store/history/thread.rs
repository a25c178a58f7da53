//! The thread that writes. Whoever hands a batch over never waits for the disk.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
};

use super::{batch::Batch, error::HistoryError, retention::Retention, writer::Writer};

/// Batches on their way at most; further ones are merged until there is room.
const QUEUE: usize = 4;

/// Is told whether something is written by now.
pub type Written = Box<dyn FnOnce(Result<(), HistoryError>) + Send>;

enum Message {
    Batch(Box<Batch>),
    Mark {
        name: String,
        time_ms: i64,
        written: Written,
    },
    Verify {
        time_ms: i64,
    },
    Stop,
}

/// A history being written.
pub struct History {
    path: PathBuf,
    sender: SyncSender<Message>,
    waiting: Option<Batch>,
    thread: JoinHandle<()>,
}

impl History {
    /// Opens or makes the database and starts the thread.
    pub fn begin(path: &Path, retention: Retention, now_ms: i64) -> Result<Self, HistoryError> {
        let writer = Writer::open(path, retention, now_ms)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || write(writer, &receiver))
            .map_err(|source| HistoryError::Thread { source })?;
        Ok(Self {
            path: path.to_owned(),
            sender,
            waiting: None,
            thread,
        })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands a batch over.
    pub fn write(&mut self, batch: Batch) {
        let batch = match self.waiting.take() {
            Some(mut waiting) => {
                waiting.absorb(batch);
                waiting
            }
            None => batch,
        };
        match self.sender.try_send(Message::Batch(Box::new(batch))) {
            Ok(()) => {}
            Err(TrySendError::Full(Message::Batch(batch))) => self.waiting = Some(*batch),
            Err(_) => log::error!("the history is written no more: its thread has ended"),
        }
    }

    /// Names a moment, and tells when it is written: who asks for it then finds it.
    pub fn mark(&self, name: String, time_ms: i64, written: Written) {
        let message = Message::Mark {
            name,
            time_ms,
            written,
        };
        let sent = self.sender.try_send(message);
        if let Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) = sent
            && let Message::Mark { written, .. } = message
        {
            written(Err(HistoryError::Behind));
        }
    }

    /// For those who read and find damage.
    pub fn suspicion(&self) -> Suspicion {
        Suspicion(self.sender.clone())
    }

    /// Writes what is on its way, and ends.
    pub fn finish(mut self) {
        if let Some(batch) = self.waiting.take() {
            let _ = self.sender.send(Message::Batch(Box::new(batch)));
        }
        // Readers may hold copies of the sender.
        let _ = self.sender.send(Message::Stop);
        if self.thread.join().is_err() {
            log::error!("the history's thread failed");
        }
    }
}

/// Lets a reader that found damage tell the writer.
pub struct Suspicion(SyncSender<Message>);

impl Suspicion {
    /// The file is looked at, and begun anew where it is damaged.
    pub fn tell(&self, time_ms: i64) {
        if self.0.try_send(Message::Verify { time_ms }).is_err() {
            log::debug!("the history's thread is busy: the next reader will tell it of the damage");
        }
    }
}

fn write(mut writer: Writer, receiver: &Receiver<Message>) {
    let mut unwritten: Option<Batch> = None;
    let mut last_ms = 0;
    for message in receiver {
        match message {
            Message::Batch(batch) => {
                last_ms = batch.time_ms;
                let failed_before = unwritten.is_some();
                let batch = match unwritten.take() {
                    Some(mut earlier) => {
                        earlier.absorb(*batch);
                        earlier
                    }
                    None => *batch,
                };
                match writer.write(&batch) {
                    Ok(()) if failed_before => log::warn!("the history is written again"),
                    Ok(()) => {}
                    Err(error) => {
                        // Said once, not every second.
                        if !failed_before {
                            log::error!("{error}; it is tried again every second");
                        }
                        unwritten = Some(batch);
                    }
                }
            }
            Message::Stop => break,
            Message::Verify { time_ms } => {
                if let Err(error) = writer.verify(time_ms) {
                    log::error!("{error}");
                }
            }
            Message::Mark {
                name,
                time_ms,
                written,
            } => {
                last_ms = time_ms;
                written(writer.mark(&name, time_ms));
            }
        }
    }
    if let Err(error) = writer.stop(last_ms) {
        log::error!("{error}");
    }
}
