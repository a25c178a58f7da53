//! The kernel side's ring buffers, read and decoded as one.

use std::{
    os::fd::{AsFd, BorrowedFd},
    thread,
    time::Duration,
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::{
    decode::{self, Decoded},
    merge::{Left, Merge, Next, Source},
};
use crate::{
    probe::{Error, ring::Ring},
    seed,
};

/// How often, and how long at a time, a record is waited for that is being written and holds the others up.
const PAUSES: u32 = 7;
const PAUSE: Duration = Duration::from_micros(50);

/// All ring buffers.
pub struct Rings {
    merge: Merge<Reader>,
    /// Becomes readable when one of them does.
    any: Epoll,
}

impl Rings {
    /// Of these buffers.
    pub fn new(rings: Vec<Ring>) -> Result<Self, Error> {
        let any = watch(&rings).map_err(|error| Error::Map {
            name: "RINGS",
            reason: error.to_string(),
        })?;
        let readers = rings.into_iter().map(|ring| Reader {
            ring,
            undecodable: 0,
        });
        Ok(Self {
            merge: Merge::new(readers),
            any,
        })
    }

    /// Takes records that are there by now, up to so many. Waits a little for one that is being written: it takes a
    /// microsecond, unless whoever writes it lost the processor.
    pub fn take(&mut self, most: usize, into: &mut Vec<Decoded>) -> Left {
        let mut left = self.merge.take(seed::now_ns(), most, into);
        for _ in 0..PAUSES {
            if left != Left::Held {
                break;
            }
            thread::sleep(PAUSE);
            left = self.merge.take(seed::now_ns(), most, into);
        }
        left
    }

    /// Records that could not be read, since the last call.
    pub fn take_undecodable(&mut self) -> u64 {
        let counts = self.merge.sources_mut();
        counts
            .map(|reader| std::mem::take(&mut reader.undecodable))
            .sum()
    }
}

impl AsFd for Rings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.any.0.as_fd()
    }
}

fn watch(rings: &[Ring]) -> nix::Result<Epoll> {
    let any = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for ring in rings {
        any.add(ring, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    }
    Ok(any)
}

/// A ring buffer, decoded.
struct Reader {
    ring: Ring,
    undecodable: u64,
}

impl Source for Reader {
    fn next(&mut self) -> Next {
        let mut looked_again = false;
        loop {
            if let Some(record) = self.ring.take() {
                match decode::decode(&record) {
                    Ok(decoded) => return Next::Record(decoded),
                    Err(error) => {
                        log::debug!("{error}");
                        self.undecodable += 1;
                    }
                }
            } else if !self.ring.has_more() {
                return Next::Nothing;
            } else if looked_again {
                return Next::Unfinished;
            } else {
                looked_again = true;
            }
        }
    }
}
