//! Reads a recording in a thread of its own, so that one processor decodes while another applies.

use std::{panic, sync::mpsc::sync_channel, thread};

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
    thread::scope(|scope| {
        let reading = scope.spawn(move || {
            while let Some(events) = reader.next_batch()? {
                if sender.send((events, reader.position())).is_err() {
                    break;
                }
            }
            Ok(reader.truncated())
        });
        for (events, position) in receiver {
            take(events, position);
        }
        reading
            .join()
            .unwrap_or_else(|cause| panic::resume_unwind(cause))
    })
}
