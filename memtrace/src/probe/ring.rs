//! The reading end of a ring buffer.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::{MapData, RingBuf, ring_buf::RingBufItem};

/// The smallest buffer that is one of several: a CPU may fill it before the reader has its turn.
const LEAST: u32 = 1 << 24;

/// How many buffers of what size share so many bytes, a power of two, on so many CPUs.
pub fn share(bytes: u32, cpus: u32) -> (u32, u32) {
    let wanted = cpus.clamp(1, memtrace_common::record::MAX_RINGS as u32);
    let rings = wanted.next_power_of_two().min((bytes / LEAST).max(1));
    (rings, bytes / rings)
}

/// Bytes for all buffers on so many CPUs, where nobody says.
pub fn default_bytes(cpus: u32) -> u32 {
    share(u32::MAX / 2 + 1, cpus).0.max(2) * LEAST
}

/// The ring buffer of some of the CPUs.
pub struct Ring {
    buffer: RingBuf<MapData>,
    positions: Positions,
}

impl Ring {
    /// Maps the buffer.
    pub fn new(buffer: RingBuf<MapData>) -> io::Result<Self> {
        let positions = Positions::map(buffer.as_fd())?;
        Ok(Self { buffer, positions })
    }

    /// The next record; `None` where there is none, or it is not written to its end.
    pub fn take(&mut self) -> Option<RingBufItem<'_>> {
        self.buffer.next()
    }

    /// Whether there is a record that was not taken: where [`Ring::take`] has none, one that is not written to its end,
    /// or came just now.
    pub fn has_more(&self) -> bool {
        self.positions.differ()
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.buffer.as_fd()
    }
}

/// The first pages of a ring buffer: how far it was read, and how far room was taken in it (kernel/bpf/ringbuf.c,
/// `struct bpf_ringbuf`, whose `consumer_pos` and `producer_pos` begin a page each).
struct Positions(NonNull<u8>);

const PAGE: usize = 4096;

impl Positions {
    fn map(buffer: BorrowedFd<'_>) -> io::Result<Self> {
        let (length, protection) = (2 * PAGE, libc::PROT_READ);
        // SAFETY: a fresh mapping of the buffer's own pages, which are only read.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                buffer.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast());
        address.map(Self).ok_or_else(io::Error::last_os_error)
    }

    fn differ(&self) -> bool {
        // SAFETY: both words are aligned and mapped while self lives; the kernel and the reader store to them
        // atomically.
        let [read, taken] = [0, PAGE].map(|at| unsafe {
            let word = AtomicU64::from_ptr(self.0.as_ptr().add(at).cast());
            word.load(Ordering::Acquire)
        });
        read != taken
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, with its length; nothing points into it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), 2 * PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_shared_by_processors_and_none_is_too_small() {
        const MIB: u32 = 1 << 20;
        assert_eq!(share(32 * MIB, 1), (1, 32 * MIB));
        assert_eq!(share(32 * MIB, 2), (2, 16 * MIB));
        assert_eq!(share(32 * MIB, 64), (2, 16 * MIB));
        assert_eq!(share(128 * MIB, 6), (8, 16 * MIB));
        assert_eq!(share(1024 * MIB, 64), (8, 128 * MIB));
        assert_eq!(share(4096, 64), (1, 4096));
        assert_eq!(
            [1, 2, 3, 64].map(default_bytes),
            [32, 32, 64, 128].map(|size| size * MIB)
        );
    }
}
