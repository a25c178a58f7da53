//! Heap numbers equal what the workload itself counted.

use memtrace::report::document::Heap;
use memtrace_tests::expect::number;
use memtrace_tests::oracle::same_as_untraced;
use memtrace_tests::workload::workload;
use memtrace_tests::{Traced, trace};
use serde_json::Value;

/// Traces the workload with and without its calls: the difference is the calls alone, without what libc allocates for
/// start-up and threads.
fn difference(threads: &str, calls: &str) -> (Heap, Heap, Value, Traced) {
    let program = workload("heap.c");
    let program = program.to_str().expect("a path in UTF-8");
    let idle = trace(&[program, threads, "0"]);
    let busy = trace(&[program, threads, calls]);
    idle.finished.exited(0);
    busy.finished.exited(0);
    busy.nothing_lost();
    (idle.heap(), busy.heap(), busy.finished.object(), busy)
}

fn assert_counts(idle: Heap, busy: Heap, counted: &Value) {
    let expected = |key: &str, idle: u64, busy: u64| {
        assert_eq!(
            busy - idle,
            number(counted, key),
            "{key}: {busy} less {idle} at rest"
        );
    };
    expected("allocations", idle.allocations, busy.allocations);
    expected("frees", idle.frees, busy.frees);
    expected("reallocations", idle.reallocations, busy.reallocations);
    expected("failed", idle.failed, busy.failed);
    expected(
        "bytes_allocated",
        idle.bytes_allocated,
        busy.bytes_allocated,
    );
    expected("live_blocks", idle.live_blocks, busy.live_blocks);
    expected("live_bytes", idle.live_bytes, busy.live_bytes);
    assert_eq!((busy.invalid_frees, busy.double_frees), (Some(0), Some(0)));
}

#[test]
fn eight_threads_and_a_million_and_a_half_calls_are_counted_exactly() {
    let (idle, busy, counted, traced) = difference("8", "200000");
    assert_eq!(number(&counted, "calls"), 1_600_000);
    assert_counts(idle, busy, &counted);
    assert_eq!(traced.document.coverage.unmatched_frees, 0);
    assert_eq!(traced.document.processes.len(), 1, "one process");
}

#[test]
fn the_peak_is_that_of_the_moment_and_not_of_the_end() {
    let (idle, busy, counted, _) = difference("0", "50000");
    assert_counts(idle, busy, &counted);
    assert_eq!(
        busy.peak_live_bytes - idle.live_bytes,
        number(&counted, "peak_live_bytes")
    );
}

#[test]
fn a_thousand_threads_are_counted_exactly() {
    let (idle, busy, counted, _) = difference("1000", "100");
    assert_counts(idle, busy, &counted);
}

#[test]
fn the_sums_of_the_report_agree_with_each_other() {
    let (_, busy, _, traced) = difference("2", "20000");
    assert_eq!(busy.allocations - busy.frees, busy.live_blocks);
    let process = traced.first();
    let leaked = process.leaks.iter().fold((0, 0), |sum, leak| {
        (sum.0 + leak.bytes, sum.1 + leak.blocks)
    });
    assert_eq!(
        leaked,
        (busy.live_bytes, busy.live_blocks),
        "leaks are the live blocks, by site"
    );
    let last = process.timeline.last().expect("a timeline");
    assert!(
        last.heap_live_bytes
            .is_some_and(|bytes| bytes <= busy.peak_live_bytes),
        "{last:?}"
    );
}

/// glibc ends such a program; what it did is in the report all the same.
#[test]
fn bad_frees_are_told_apart() {
    let program = workload("bad_free.c");
    for (how, invalid, double) in [("double", 0, 1), ("invalid", 1, 0)] {
        let (_, traced) = same_as_untraced(&[program.as_os_str(), how.as_ref()]);
        traced.finished.exited(134);
        let heap = traced.heap();
        assert_eq!(
            (heap.invalid_frees, heap.double_frees),
            (Some(invalid), Some(double)),
            "{how}: {heap:?}"
        );
        assert_eq!(
            heap.frees + heap.live_blocks,
            heap.allocations,
            "{how}: {heap:?}"
        );
    }
}
