//! Reads a recording in a thread of its own, so that one processor decodes while another applies.

use std::{
    panic,
    sync::mpsc::sync_channel,
    thread::{self, Builder},
};

use super::{ReadError, Reader};
use crate::event::Event;

/// Batches that wait to be taken; each has some megabytes.
const AHEAD: usize = 2;

/// Gives `take` every event in order, a batch at a time with the bytes read so far. Tells whether the recording was
/// truncated. After an error what was given is good.
pub fn read_ahead(
    mut reader: Reader,
    mut take: impl FnMut(Vec<Event>, u64),
) -> Result<bool, ReadError> {
    let (sender, receiver) = sync_channel(AHEAD);
    let ahead = &mut reader;
    let read = thread::scope(|scope| {
        let give = move |events, position| sender.send((events, position)).is_ok();
        let reading = Builder::new().spawn_scoped(scope, move || each_batch(ahead, give));
        for (events, position) in receiver {
            take(events, position);
        }
        let joined = reading.ok()?.join();
        Some(joined.unwrap_or_else(|cause| panic::resume_unwind(cause)))
    });
    // Where no thread can be started nothing was read.
    read.unwrap_or_else(|| {
        each_batch(&mut reader, |events, position| {
            take(events, position);
            true
        })
    })
}

fn each_batch(
    reader: &mut Reader,
    mut give: impl FnMut(Vec<Event>, u64) -> bool,
) -> Result<bool, ReadError> {
    while let Some(events) = reader.next_batch()? {
        let position = Reader::position(reader);
        if !give(events, position) {
            break;
        }
    }
    Ok(reader.truncated())
}
