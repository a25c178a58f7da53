//! Blocks, sites and heaps that are not seen.

use super::*;

#[test]
fn a_leak_has_its_site_ages_and_names() {
    let mut trace = Trace::new();
    trace.mapped(8, 10, BASE, "/lib/leaky.so");
    let frames = Box::new([BASE + 0x10, 0x99]);
    let stack = EventKind::Stack {
        id: 7,
        frames,
        end: End::Start,
    };
    trace.event(8, 10, stack);
    trace.alloc(10, 10, 0x100, 64, 7);
    trace.alloc(30, 10, 0x200, 64, 7);
    trace.alloc(40, 10, 0x300, 1000, 8);
    assert_eq!(trace.0.unnamed(10), [0x99, BASE + 0x10]);
    let function = |name: &str| SymbolFunction {
        name: name.into(),
        file: Some("leak.c".into()),
        line: Some(3),
    };
    let symbol = Symbol {
        frame: 0x99,
        module: None,
        build_id: None,
        offset: Some(4),
        functions: Box::new([function("inner"), function("outer")]),
    };
    trace.event(45, 10, EventKind::Symbol(Box::new(symbol)));
    trace.event(50, 0, EventKind::End);
    trace.event(90, 10, EventKind::ThreadExit);
    assert_eq!(trace.0.unnamed(10), [BASE + 0x10]);
    let row = trace.row(10);
    assert_eq!((row.leaks[0].bytes, row.leaks[0].stack.len()), (1000, 0));
    let leak = &row.leaks[1];
    assert_eq!((leak.bytes, leak.blocks), (128, 2));
    assert_eq!(
        (leak.oldest_age_ns, leak.newest_age_ns),
        (40, 20),
        "as of End"
    );
    let told: Vec<_> = leak
        .stack
        .iter()
        .map(|frame| (frame.function.as_deref(), frame.inlined))
        .collect();
    let expected = [(None, false), (Some("inner"), true), (Some("outer"), false)];
    assert_eq!(told, expected);
    assert_eq!(leak.stack[0].module.as_deref(), Some("/lib/leaky.so"));
    assert_eq!(leak.stack[0].offset, Some(0x1010));
    assert_eq!(leak.stack[0].build_id.as_deref(), Some("ab01"));
}

#[test]
fn a_wrong_free_is_the_programs_only_if_all_was_seen() {
    let run = |trace: &mut Trace| {
        trace.alloc(10, 10, 0x100, 64, 0);
        for address in [0x100, 0x100, 0x500] {
            trace.free(11, 10, address);
        }
        let document = trace.document();
        let heap = document.processes[0].heap.unwrap();
        (
            heap.invalid_frees,
            heap.double_frees,
            document.coverage.unmatched_frees,
        )
    };
    assert_eq!(run(&mut Trace::new()), (Some(1), Some(1), 0));
    for pid in [0, 10] {
        let mut lossy = Trace::new();
        lossy.lose(pid);
        assert_eq!(run(&mut lossy), (Some(0), Some(0), 2));
    }
    let mut attached = Trace::bare();
    attached.start(10, true);
    attached.seen(10);
    assert_eq!(run(&mut attached), (Some(0), Some(0), 2));
    assert!(attached.row(10).heap_reason.is_some());
}

#[test]
fn a_heap_that_is_not_seen_is_null_with_a_reason() {
    let mut trace = Trace::bare();
    trace.start(10, false);
    assert_eq!(trace.row(10).heap, None);
    assert!(trace.row(10).heap_reason.is_some());
    trace.seen(10);
    assert!(trace.row(10).heap.is_some());
    let stripped = EventKind::HeapProbes {
        allocator: "unknown".into(),
        unavailable: Some("stripped".into()),
        late: false,
    };
    trace.event(20, 10, stripped);
    let row = trace.row(10);
    assert_eq!(
        (row.heap, row.heap_reason.as_deref()),
        (None, Some("stripped"))
    );
    assert_eq!(row.timeline.last().unwrap().heap_live_bytes, None);
}

#[test]
fn a_heap_that_was_not_seen_for_a_while_begins_anew() {
    let mut trace = Trace::new();
    let probes = |unavailable: Option<&str>, late| EventKind::HeapProbes {
        allocator: "glibc".into(),
        unavailable: unavailable.map(Into::into),
        late,
    };
    trace.alloc(10, 10, 0x100, 64, 0);
    trace.event(11, 10, probes(Some("off"), false));
    assert_eq!(trace.row(10).heap, None);
    trace.event(12, 10, probes(None, true));
    trace.alloc(13, 10, 0x200, 32, 0);
    trace.free(14, 10, 0x100);
    let row = trace.row(10);
    let heap = row.heap.unwrap();
    assert_eq!((heap.allocations, heap.live_bytes), (1, 32));
    assert_eq!((heap.invalid_frees, heap.double_frees), (Some(0), Some(0)));
    assert!(row.heap_reason.is_some());
}

#[test]
fn where_blocks_are_sampled_a_touch_tells_so_as_well_as_a_call() {
    let mut trace = Trace::new();
    trace.event(8, 0, EventKind::Sampling { bytes: 64 });
    let (address, stack, faults) = (BASE, 0, 1);
    let touch = EventKind::Touch {
        address,
        stack,
        faults,
    };
    trace.event(9, 10, touch);
    assert_eq!(trace.row(10).heap.unwrap().invalid_frees, None);
}
