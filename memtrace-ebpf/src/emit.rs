//! Records on their way to the reader: when it is woken, and the counters of what did not fit.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::map,
    maps::Array,
};
use memtrace_common::{
    counter::Counter,
    frame::MAX_WORDS,
    record::{Header, Kind, PYTHON_LINES_BYTES, PythonCode, Stack},
};

use crate::ring::Ring;

/// Values of [`Counter`], by index.
#[map]
static COUNTERS: Array<u64> = Array::with_max_entries(32, 0);

/// 1 while the reader acts on programs, libraries and ends of processes at once: it has probes to place.
#[map]
static AWAITED: Array<u32> = Array::with_max_entries(1, 0);

/// Whether the reader has to act on a record soon.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// The reader's timer is soon enough, unless the buffer fills.
    Usual,
    /// The same for records that come by the million: a thread numbers them, and looks at one in
    /// [`LOOK_EVERY`] how full the buffer is. What passes between two looks is little beside the buffer.
    Frequent(u32),
    /// Wake the reader now, if it awaits such records ([`AWAITED`]). To wake it takes longer than all else that is done
    /// for a record.
    Awaited,
    /// Wake the reader now.
    Now,
}

/// Of so many frequent records, one looks how full the buffer is; so the reader is not woken by each of them either,
/// where it is late.
const LOOK_EVERY: u32 = 32;

/// Counts one occurrence. The map is shared between CPUs, so the addition is atomic.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to a live, aligned u64 of an array map.
        unsafe { add(value, 1) };
    }
}

/// Adds to a map's value atomically. An instruction of its own: core offers no read-modify-write atomics for
/// this target, whose first version could not compare and swap.
///
/// # Safety
/// `value` points to an aligned u64 of a map.
#[inline(always)]
pub unsafe fn add(value: *mut u64, amount: u64) {
    // SAFETY: BPF_ATOMIC | BPF_ADD on a map value, as the caller promises.
    unsafe {
        asm!("lock *(u64 *)({value} + 0) += {amount}", value = in(reg) value, amount = in(reg) amount);
    }
}

/// The common part of a record about the current thread, as of now.
#[inline(always)]
pub fn header(kind: Kind) -> Header {
    header_of(kind, bpf_get_current_pid_tgid())
}

/// The same, where the thread's ids are at hand: process above, thread below.
#[inline(always)]
pub fn header_of(kind: Kind, ids: u64) -> Header {
    header_at(kind, ids, now_ns())
}

/// The same, as of a moment.
#[inline(always)]
pub fn header_at(kind: Kind, ids: u64, time_ns: u64) -> Header {
    Header {
        kind: kind as u16,
        flags: 0,
        pid: (ids >> 32) as u32,
        tid: ids as u32,
        extra: 0,
        time_ns,
    }
}

/// The time that records have, `CLOCK_MONOTONIC` in nanoseconds. The reader relies on it to be read before there is room
/// for the record, and after all that the record refers to was put into a buffer.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_ktime_get_ns() }
}

/// Puts a record into a ring buffer, or counts it as lost. True if it went in.
#[inline(always)]
pub fn emit<T: 'static>(record: T, lost: Counter, urgency: Urgency) -> bool {
    let ring = Ring::here();
    let Some((ring, mut entry)) = ring.and_then(|ring| Some((ring, ring.reserve::<T>()?))) else {
        count(lost);
        return false;
    };
    entry.write(record);
    entry.submit(wakeup(ring, urgency));
    true
}

/// The same for a record that is too large for the BPF stack.
#[inline(always)]
pub fn emit_copy<T>(record: &T, lost: Counter, urgency: Urgency) {
    emit_bytes(record, size_of::<T>() as u64, lost, urgency);
}

/// Puts a stack of so many words, fewer than [`MAX_WORDS`], into a ring buffer, or counts it as lost. True if it went in.
#[inline(always)]
pub fn emit_stack(record: &Stack, count_words: u64) -> bool {
    const HEAD: u64 = (size_of::<Stack>() - 8 * MAX_WORDS) as u64;
    const { assert!(MAX_WORDS == 256) };
    let mut words = count_words;
    // SAFETY: arithmetic on a register. As a comparison it would not bound, for the verifier of 6.1, what is loaded
    // once more behind it.
    unsafe { asm!("{0} &= 0xff", inout(reg) words, options(pure, nomem, nostack)) };
    emit_bytes(record, HEAD + 8 * words, Counter::LostStack, Urgency::Usual)
}

/// Puts a code object whose line table has so many bytes, fewer than fit, into a ring buffer, or counts it as lost.
/// True if it went in.
#[inline(always)]
pub fn emit_python(record: &PythonCode, lines: u64) -> bool {
    const HEAD: u64 = (size_of::<PythonCode>() - PYTHON_LINES_BYTES) as u64;
    const { assert!(PYTHON_LINES_BYTES == 4096) };
    let mut lines = lines;
    // SAFETY: as above.
    unsafe { asm!("{0} &= 0xfff", inout(reg) lines, options(pure, nomem, nostack)) };
    emit_bytes(record, HEAD + lines, Counter::LostStack, Urgency::Usual)
}

/// Puts so many bytes of a record, at most its size, into a ring buffer, or counts it as lost. True if they went in.
#[inline(always)]
fn emit_bytes<T>(record: &T, bytes: u64, lost: Counter, urgency: Urgency) -> bool {
    let sent = Ring::here().is_some_and(|ring| ring.output(record, bytes, wakeup(ring, urgency)));
    if !sent {
        count(lost);
    }
    sent
}

/// Reserves a large record, has it filled, as of the moment that is given with it, and submits it; not where half of the
/// buffer is taken already.
#[inline(always)]
pub fn emit_with<T: 'static>(fill: impl FnOnce(*mut T, u64)) -> bool {
    let Some(ring) = Ring::here() else {
        return false;
    };
    let time_ns = now_ns();
    if ring.is_half_full() {
        return false;
    }
    let Some(mut entry) = ring.reserve::<T>() else {
        return false;
    };
    fill(entry.as_mut_ptr(), time_ns);
    entry.submit(wakeup(ring, Urgency::Usual));
    true
}

/// Flags for a submission: waking the reader costs more than the record, so it is woken by fill level.
#[inline(always)]
fn wakeup(ring: Ring, urgency: Urgency) -> u64 {
    let looks = match urgency {
        Urgency::Now => return u64::from(BPF_RB_FORCE_WAKEUP),
        Urgency::Awaited if AWAITED.get(0) == Some(&1) => return u64::from(BPF_RB_FORCE_WAKEUP),
        Urgency::Usual | Urgency::Awaited => true,
        Urgency::Frequent(number) => number % LOOK_EVERY == 0,
    };
    u64::from(if looks && ring.is_to_be_read() {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    })
}
