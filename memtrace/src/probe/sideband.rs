//! What the kernel itself says of new mappings: PERF_RECORD_MMAP2.
//!
//! exec and the program loader map without system calls of the process's own, and a system call names a
//! descriptor, not a path. These records carry path, build ID and offset, even for a process that lives one
//! millisecond; they cost nothing to other processes.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use perf_event_open_sys::{
    bindings::{
        PERF_FLAG_FD_CLOEXEC, PERF_RECORD_LOST, PERF_RECORD_MISC_MMAP_BUILD_ID, PERF_RECORD_MMAP2,
        PERF_SAMPLE_TID, PERF_SAMPLE_TIME, perf_event_attr, perf_event_mmap_page,
    },
    ioctls,
};

use super::{
    Error,
    area::{self, Area},
    perf,
    points::event_error,
};
use crate::event::{Event, EventKind, FileMapped};

/// Data pages of a CPU's buffer, at least: 256 KiB, some 2,000 records.
const FEWEST_PAGES: usize = 64;
/// At most. An exec writes some 2 KiB of records, and a shell script may be hundreds ahead of the reader.
const MOST_PAGES: usize = 1024;
/// Shared by the CPUs, where that leaves each its least.
const ALL_PAGES: usize = 8192;
const PAGE: usize = 4096;

/// The records of some threads, on all CPUs.
pub struct Sideband {
    buffers: Vec<Buffer>,
    events: Vec<OwnedFd>,
}

/// One CPU's buffer, shared with the kernel.
struct Buffer {
    cpu: u32,
    /// Data pages, a power of two.
    pages: usize,
    event: Option<OwnedFd>,
    map: Option<NonNull<u8>>,
}

impl Sideband {
    /// Buffers for every CPU that is online, none followed yet.
    pub fn new() -> Result<Self, Error> {
        let online = area::online_cpus()?;
        let pages = pages(online.len());
        Ok(Self {
            buffers: online.iter().map(|&cpu| Buffer::of(cpu, pages)).collect(),
            events: Vec::new(),
        })
    }

    /// Follows the mappings of a thread and of all that it makes from now on.
    pub fn follow(&mut self, tid: u32, inherit: bool) -> Result<(), Error> {
        for buffer in &mut self.buffers {
            let opened = open(tid, buffer.cpu, inherit).and_then(|event| buffer.add(event));
            match opened {
                Ok(Some(extra)) => self.events.push(extra),
                Ok(None) => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                Err(source) => {
                    return Err(event_error(format!("mmap records of thread {tid}"), source));
                }
            }
        }
        Ok(())
    }

    /// Follows the executable mappings of an area on these CPUs and on no others (what else is mapped is read from /proc
    /// where it is asked for): called again as CPUs come and go. `out` takes
    /// what was left in the buffers of those that went; the result is the number of records that they lost.
    pub fn follow_area(
        &mut self,
        area: &Area,
        online: &[u32],
        out: &mut Vec<Event>,
    ) -> Result<u64, Error> {
        let mut lost = 0;
        self.buffers.retain_mut(|buffer| {
            let stays = online.contains(&buffer.cpu);
            if !stays {
                lost += buffer.drain(out);
            }
            stays
        });
        let pages = pages(online.len());
        for &cpu in online {
            if !self.buffers.iter().any(|buffer| buffer.cpu == cpu) {
                self.buffers.push(Buffer::of(cpu, pages));
            }
        }
        for buffer in self.buffers.iter_mut().filter(|one| one.event.is_none()) {
            let opened = perf::open_with(attributes(false), area.on(buffer.cpu))
                .and_then(|event| buffer.add(event));
            match opened {
                // A CPU may go between its listing and this call.
                Err(error) if error.raw_os_error() != Some(libc::ENODEV) => {
                    let name = format!("mmap records of CPU {}", buffer.cpu);
                    return Err(event_error(name, error));
                }
                _ => {}
            }
        }
        Ok(lost)
    }

    /// Takes all records that are there. Mappings come as events, lost records as a count.
    pub fn drain(&mut self, out: &mut Vec<Event>) -> u64 {
        self.buffers
            .iter_mut()
            .map(|buffer| buffer.drain(out))
            .sum()
    }
}

/// Data pages of each of so many CPUs.
fn pages(cpus: usize) -> usize {
    let share = (ALL_PAGES / cpus.max(1)).clamp(FEWEST_PAGES, MOST_PAGES);
    1 << share.ilog2()
}

/// `data`: of mappings that are not executable, too. They are five of six, and each costs its process 1 to 2 µs.
fn attributes(data: bool) -> perf_event_attr {
    let mut attr = perf::dummy();
    attr.set_mmap(1);
    attr.set_mmap_data(u64::from(data));
    attr.set_mmap2(1);
    attr.set_build_id(1);
    attr.set_sample_id_all(1);
    attr.sample_type = u64::from(PERF_SAMPLE_TID | PERF_SAMPLE_TIME);
    attr.set_use_clockid(1);
    attr.clockid = libc::CLOCK_MONOTONIC;
    attr
}

/// The records of one thread on one CPU.
fn open(tid: u32, cpu: u32, inherit: bool) -> io::Result<OwnedFd> {
    let mut attr = attributes(true);
    attr.set_inherit(u64::from(inherit));
    perf::open_raw(attr, tid as i32, cpu as i32, PERF_FLAG_FD_CLOEXEC)
}

impl Buffer {
    /// One that no event writes into yet.
    fn of(cpu: u32, pages: usize) -> Self {
        Self {
            cpu,
            pages,
            event: None,
            map: None,
        }
    }

    /// The first event of a CPU owns the buffer, the others write into it.
    fn add(&mut self, event: OwnedFd) -> io::Result<Option<OwnedFd>> {
        if let Some(first) = &self.event {
            set_output(event.as_fd(), first.as_fd())?;
            return Ok(Some(event));
        }
        // SAFETY: a fresh shared mapping of the event's own buffer: one header page and the data pages.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                (self.pages + 1) * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.map = NonNull::new(address.cast());
        self.event = Some(event);
        Ok(None)
    }

    fn drain(&mut self, out: &mut Vec<Event>) -> u64 {
        let Some(map) = self.map else { return 0 };
        let header = map.cast::<perf_event_mmap_page>().as_ptr();
        // SAFETY: the header page is mapped while self lives; head and tail are the shared, aligned words of
        // the protocol in include/uapi/linux/perf_event.h: acquire head, release tail.
        let (head, tail) = unsafe {
            (
                AtomicU64::from_ptr(&raw mut (*header).data_head),
                AtomicU64::from_ptr(&raw mut (*header).data_tail),
            )
        };
        let end = head.load(Ordering::Acquire);
        let mut position = tail.load(Ordering::Relaxed);
        let mut lost = 0;
        let mut record = Vec::new();
        while position < end {
            self.copy(map, position, 8, &mut record);
            let size = u16::from_ne_bytes([record[6], record[7]]) as usize;
            if size < 8 || position + size as u64 > end {
                break;
            }
            self.copy(map, position, size, &mut record);
            lost += parse(&record, out);
            position += size as u64;
        }
        tail.store(end, Ordering::Release);
        lost
    }

    /// Copies `length` bytes at a position, across the end of the buffer where need be.
    fn copy(&self, map: NonNull<u8>, position: u64, length: usize, to: &mut Vec<u8>) {
        let bytes = self.pages * PAGE;
        let start = position as usize % bytes;
        let first = length.min(bytes - start);
        to.clear();
        // SAFETY: both parts lie within the data pages, behind the header page; the kernel does not write
        // between tail and head.
        unsafe {
            let data = map.as_ptr().add(PAGE);
            to.extend_from_slice(std::slice::from_raw_parts(data.add(start), first));
            to.extend_from_slice(std::slice::from_raw_parts(data, length - first));
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(map) = self.map {
            // SAFETY: the mapping made in `add`, with its length; nothing points into it any more.
            unsafe { libc::munmap(map.as_ptr().cast(), (self.pages + 1) * PAGE) };
        }
    }
}

fn set_output(event: BorrowedFd<'_>, output: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an ioctl on two descriptors that are open.
    let done = unsafe { ioctls::SET_OUTPUT(event.as_raw_fd(), output.as_raw_fd()) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Reads one record; the result is the number of records that the kernel says it lost.
fn parse(record: &[u8], out: &mut Vec<Event>) -> u64 {
    let kind = u32_at(record, 0).unwrap_or(0);
    if kind == PERF_RECORD_LOST {
        return u64_at(record, 16).unwrap_or(0);
    }
    if kind == PERF_RECORD_MMAP2
        && let Some(event) = mapping(record)
    {
        out.push(event);
    }
    0
}

/// `PERF_RECORD_MMAP2`: pid, tid, addr, len, pgoff, 24 bytes of build ID or inode, prot, flags, filename,
/// and, since sample_id_all is set, tid and time at the end.
fn mapping(record: &[u8]) -> Option<Event> {
    let misc = u16::from_ne_bytes(record.get(4..6)?.try_into().ok()?);
    let build_id = if u32::from(misc) & PERF_RECORD_MISC_MMAP_BUILD_ID != 0 {
        let size = usize::from(*record.get(40)?).min(20);
        record.get(44..44 + size)?
    } else {
        &[]
    };
    let name = record.get(72..record.len().checked_sub(16)?)?;
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Some(Event {
        time_ns: u64_at(record, record.len() - 8)?,
        pid: u32_at(record, 8)?,
        tid: u32_at(record, 12)?,
        kind: EventKind::FileMapped(Box::new(FileMapped {
            start: u64_at(record, 16)?,
            length: u64_at(record, 24)?,
            offset: u64_at(record, 32)?,
            protection: u32_at(record, 64)?,
            flags: u32_at(record, 68)?,
            path: String::from_utf8_lossy(name).into(),
            build_id: build_id.into(),
        })),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_powers_of_two_and_shrink_as_cpus_grow() {
        assert_eq!(
            [0, 1, 8, 9, 100, 128, 1000].map(pages),
            [1024, 1024, 1024, 512, 64, 64, 64]
        );
    }
}
