//! What a thing that is traced takes of memtrace's own memory, by an allocator that counts.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use memtrace::{
    event::{Event, EventKind, Started, Syscall},
    model::{Limits, Model},
};
use memtrace_common::{heap::Function, record::Call};

/// Bytes that were allocated and not given back.
static LIVE: AtomicUsize = AtomicUsize::new(0);
/// Most of them at a time since it was last set.
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn grown(bytes: usize) {
    MOST.fetch_max(LIVE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: the system's allocator does the work, called with what this one was called with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // In place, or by moving pages: the kernel's mremap, which needs no second copy.
        LIVE.fetch_sub(layout.size(), Relaxed);
        grown(size);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn event(time_ns: u64, kind: EventKind) -> Event {
    Event {
        time_ns,
        pid: 7,
        tid: 7,
        kind,
    }
}

fn traced() -> Model {
    let mut model = Model::new(Limits::default());
    let started = Started {
        parent: 1,
        start_ns: 1,
        comm: "traced".into(),
        exe: "/bin/traced".into(),
        already_running: false,
    };
    model.apply(&event(1, EventKind::Started(Box::new(started))));
    model
}

fn alloc(address: u64, stack: u64) -> EventKind {
    EventKind::Alloc {
        function: Function::Malloc,
        address,
        size: 48,
        stack,
    }
}

/// Bytes that each of `count` events takes: those that stay, and at most while they came.
fn taken(count: u64, kinds: impl Fn(u64) -> Vec<EventKind>) -> (f64, f64) {
    let mut model = traced();
    // Tables of fixed size, made at the first use.
    for address in 1..=100_000 {
        model.apply(&event(2, alloc(16 * address, 0)));
        model.apply(&event(
            2,
            EventKind::Free {
                address: 16 * address,
            },
        ));
    }
    let before = LIVE.load(Relaxed);
    MOST.store(before, Relaxed);
    for number in 0..count {
        for kind in kinds(number) {
            model.apply(&event(3 + number, kind));
        }
    }
    let each = |bytes: usize| (bytes - before) as f64 / count as f64;
    (each(LIVE.load(Relaxed)), each(MOST.load(Relaxed)))
}

/// One test, since its parts would count each other's memory.
#[test]
fn blocks_stacks_and_mappings_take_what_was_promised() {
    let near = taken(1_000_000, |number| {
        vec![alloc(0x5555_0000_0000 + 64 * number, 1)]
    });
    assert!(
        near.0 <= 32.0 && near.1 <= 33.0,
        "a block takes {near:?} bytes"
    );
    let far = taken(300_000, |number| {
        vec![alloc(0x7000_0000_0000 + (number << 21), 1)]
    });
    assert!(
        far.0 <= 32.0,
        "a block of its own pages takes {far:?} bytes"
    );

    // Ten frames in two libraries, as a program has them; no two stacks are alike.
    let stacks = taken(200_000, |number| {
        let library = |at: u64, base: u64| base + (number * 7919 * at) % 0x18_0000;
        let frames = (0..10).map(|at| match at {
            0..4 => library(at + 1, 0x7f3a_1200_0000),
            _ => library(at + 1, 0x5581_2340_0000),
        });
        let stack = EventKind::Stack {
            id: number + 2,
            frames: frames.collect(),
            end: memtrace_common::unwind::End::Start,
        };
        vec![
            stack,
            alloc(16, number + 2),
            EventKind::Free { address: 16 },
        ]
    });
    assert!(stacks.0 <= 200.0, "a stack takes {stacks:?} bytes");

    for (name, place) in [("up", 1), ("down", -1i64)] {
        let mappings = taken(100_000, |number| {
            let start = 0x6000_0000_0000u64.wrapping_add_signed(place * 0x4000 * number as i64);
            let call = Syscall {
                call: Call::Mmap,
                entered_ns: 2 + number,
                result: start as i64,
                arguments: [0, 0x2000, 3, 0x22, u64::MAX],
                offset: 0,
            };
            vec![EventKind::Syscall(Box::new(call))]
        });
        assert!(
            mappings.0 <= 100.0,
            "a mapping, {name}, takes {mappings:?} bytes"
        );
    }
}
