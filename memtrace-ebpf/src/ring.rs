//! The ring buffers that records go through.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    Global,
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE},
    btf_maps::{ArrayOfMaps, RingBuf},
    helpers::{bpf_get_smp_processor_id, bpf_ringbuf_output, bpf_ringbuf_query},
    macros::{btf_map, map},
    maps::{RingBuf as RingBufMap, ring_buf::RingBufEntry},
};
use memtrace_common::record::MAX_RINGS;

/// The buffers in use. A CPU has that whose number the lowest bits of its own are, so CPUs do not wait for each other's
/// locks. The reader puts the records in order.
#[btf_map]
static RINGS: ArrayOfMaps<Buffer, MAX_RINGS> = ArrayOfMaps::new();

/// What the verifier is shown in their place.
type Buffer = RingBuf<u64, SMALLEST>;

/// The largest page size that Linux has, and so the smallest buffer.
const SMALLEST: usize = 1 << 16;

/// What [`RINGS`] is made of. The loader sets their sizes, and which are in use.
macro_rules! buffers {
    ($($name:ident),*) => {$(
        #[map]
        static $name: RingBufMap = RingBufMap::with_byte_size(SMALLEST as u32, 0);
    )*};
}

buffers!(
    RING_0, RING_1, RING_2, RING_3, RING_4, RING_5, RING_6, RING_7
);

/// Number of buffers in use less one; they are a power of two.
#[unsafe(no_mangle)]
static RING_MASK: Global<u32> = Global::new(0);

/// Bytes in a buffer at which the reader is woken; below, its timer finds them.
#[unsafe(no_mangle)]
static WAKEUP_BYTES: Global<u64> = Global::new(1 << 20);

/// A buffer.
#[derive(Clone, Copy)]
pub struct Ring(&'static Buffer);

impl Ring {
    /// That of this CPU. There always is one; the verifier does not know.
    #[inline(always)]
    pub fn here() -> Option<Self> {
        // SAFETY: the helper takes no argument.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        RINGS.get(cpu & RING_MASK.load()).map(Self)
    }

    /// Room for a record; `None` where it is full.
    #[inline(always)]
    pub fn reserve<T: 'static>(self) -> Option<RingBufEntry<T>> {
        self.0.reserve_untyped::<T>(0)
    }

    /// Copies so many bytes of a record, at most its size. False where it is full.
    #[inline(always)]
    pub fn output<T>(self, record: &T, bytes: u64, flags: u64) -> bool {
        let from = ptr::from_ref(record).cast_mut().cast();
        // SAFETY: the record is readable, and the verifier proves that no more of it is read.
        unsafe { bpf_ringbuf_output(self.map(), from, bytes, flags) == 0 }
    }

    /// Whether the reader is to look at it now.
    #[inline(always)]
    pub fn is_to_be_read(self) -> bool {
        self.query(BPF_RB_AVAIL_DATA) >= WAKEUP_BYTES.load()
    }

    #[inline(always)]
    pub fn is_half_full(self) -> bool {
        self.query(BPF_RB_AVAIL_DATA) > self.query(BPF_RB_RING_SIZE) / 2
    }

    #[inline(always)]
    fn query(self, what: u32) -> u64 {
        // SAFETY: the map is a ring buffer.
        unsafe { bpf_ringbuf_query(self.map(), u64::from(what)) }
    }

    #[inline(always)]
    fn map(self) -> *mut c_void {
        ptr::from_ref(self.0).cast_mut().cast()
    }
}
