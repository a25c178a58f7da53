//! Estimates from a sample agree with what the workload counted, within the errors that are shown.

use std::ffi::OsStr;

use memtrace::report::document::{Leak, Process};
use memtrace_tests::{Traced, expect::number, trace_with, workload::workload};
use serde_json::Value;

const RUNS: usize = 20;
const ROUNDS: &str = "2000";

fn sampled(size: &str, arguments: &[&OsStr]) -> Traced {
    let traced = trace_with(&["--sample-bytes", size], arguments);
    traced.finished.exited(0);
    traced.nothing_lost();
    traced
}

/// Estimate, standard error and truth of every figure that has all three.
fn figures(process: &Process, counted: &Value) -> Vec<(&'static str, [f64; 3])> {
    let heap = process.heap.unwrap();
    let sampling = heap.sampling.unwrap();
    let site = |name: &str| {
        let is_it = |leak: &&Leak| {
            let mut functions = leak.stack.iter().map(|frame| frame.function.as_deref());
            functions.any(|function| function == Some(name))
        };
        let found: Vec<_> = process.leaks.iter().filter(is_it).collect();
        let sum = |of: fn(&Leak) -> u64| found.iter().map(|leak| of(leak) as f64).sum::<f64>();
        // Of sites that are independent of each other, variances add up.
        let error = |of: fn(&Leak) -> u64| {
            found
                .iter()
                .map(|leak| (of(leak) as f64).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        let bytes = [
            sum(|leak| leak.bytes),
            error(|leak| leak.bytes_error.unwrap()),
        ];
        let blocks = [
            sum(|leak| leak.blocks),
            error(|leak| leak.blocks_error.unwrap()),
        ];
        (bytes, blocks)
    };
    let (large_bytes, large_blocks) = site("keep_large");
    let (small_bytes, small_blocks) = site("keep_small");
    let live = number(counted, "small_bytes") + number(counted, "large_bytes");
    let truth = |key: &str| number(counted, key) as f64;
    let with = |[estimate, error]: [f64; 2], truth: f64| [estimate, error, truth];
    vec![
        (
            "live bytes",
            [
                heap.live_bytes as f64,
                sampling.live_bytes_error as f64,
                live as f64,
            ],
        ),
        (
            "bytes",
            [
                heap.bytes_allocated as f64,
                sampling.bytes_allocated_error as f64,
                truth("bytes"),
            ],
        ),
        (
            "allocations",
            [
                heap.allocations as f64,
                sampling.allocations_error as f64,
                truth("allocations"),
            ],
        ),
        ("large bytes", with(large_bytes, truth("large_bytes"))),
        ("large blocks", with(large_blocks, truth("large_blocks"))),
        ("small bytes", with(small_bytes, truth("small_bytes"))),
        ("small blocks", with(small_blocks, truth("small_blocks"))),
    ]
}

#[test]
fn estimates_are_right_on_average_and_scatter_as_their_errors_say() {
    let program = workload("sampled.c");
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let traced = sampled("4KiB", &[program.as_os_str(), ROUNDS.as_ref()]);
        let counted = traced.finished.object();
        runs.push(figures(traced.first(), &counted));
    }
    for figure in 0..runs[0].len() {
        let name = runs[0][figure].0;
        let of_run = |run: &Vec<(&str, [f64; 3])>| run[figure].1;
        let off: f64 = runs
            .iter()
            .map(of_run)
            .map(|[estimate, _, truth]| estimate - truth)
            .sum();
        let variance: f64 = runs
            .iter()
            .map(of_run)
            .map(|[_, error, _]| error * error)
            .sum();
        let deviations = off / variance.sqrt();
        assert!(
            variance > 0.0 && deviations.abs() < 4.0,
            "{name}: off by {deviations} deviations in sum"
        );
        let outside = runs
            .iter()
            .map(of_run)
            .filter(|[estimate, error, truth]| (estimate - truth).abs() > 2.0 * error);
        // One in 22 of a normal distribution: six or more of 20 have a chance of 1 in 7,000.
        assert!(outside.count() < 6, "{name}: {runs:?}");
    }
}

#[test]
fn a_sample_is_smaller_by_what_is_asked_for() {
    let program = workload("sampled.c");
    let arguments: &[&OsStr] = &[program.as_os_str(), ROUNDS.as_ref()];
    let traced = sampled("64KiB", arguments);
    let counted = traced.finished.object();
    let heap = traced.heap();
    let sampling = heap.sampling.unwrap();
    let expected = number(&counted, "bytes") as f64 / 65536.0;
    let samples = sampling.samples as f64;
    assert!(
        (samples - expected).abs() < 5.0 * expected.sqrt(),
        "{samples} of {expected}"
    );
    assert_eq!((heap.double_frees, heap.invalid_frees), (None, None));
    // Recorded whole, this is some 36,000 calls.
    let faults = &traced.first().faults;
    let others = traced.document.coverage.events - faults.minor - faults.major;
    assert!(others < 4000, "{others} events");
}

#[test]
fn every_block_is_in_a_sample_of_one_byte() {
    let program = workload("sampled.c");
    let traced = sampled("1B", &[program.as_os_str(), "100".as_ref()]);
    let counted = traced.finished.object();
    let heap = traced.heap();
    for (key, found) in [
        ("allocations", heap.allocations),
        ("frees", heap.frees),
        ("reallocations", heap.reallocations),
        ("bytes", heap.bytes_allocated),
    ] {
        let truth = number(&counted, key);
        // libc's own few calls, and the blocks of 16 bytes that are in the sample with 1 - e^-16.
        assert!(
            found.abs_diff(truth) <= truth / 1000 + 5,
            "{key}: {found} of {truth}"
        );
    }
    let live = number(&counted, "small_blocks") + number(&counted, "large_blocks");
    assert!(
        heap.live_blocks.abs_diff(live) <= 5,
        "{} of {live}",
        heap.live_blocks
    );
}
