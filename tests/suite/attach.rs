//! Processes that ran before memtrace did, and go on after it.

use std::path::Path;
use std::process::Command;

use memtrace_tests::binary::{Attached, heap, memtrace, read};
use memtrace_tests::expect::{number, within};
use memtrace_tests::oracle::uprobes_of;
use memtrace_tests::steps::{self, Steps, assert_rounds};
use memtrace_tests::workload::workload;
use memtrace_tests::{Running, Scratch};
use nix::sys::signal::Signal;

#[test]
fn only_what_happens_while_attached_is_counted() {
    let mut steps = Steps::start(0);
    steps.round();
    let trace = Attached::to(steps.pid());
    steps.round();
    steps.round();
    let traced = trace.stop();
    steps.round();
    steps.end(0);
    assert_rounds(&traced, 2);
    let process = traced.first();
    assert!(
        process.exit.is_none() && process.end_time_ns.is_none(),
        "it still ran: {:?}",
        process.exit
    );
}

#[test]
fn frees_of_blocks_from_before_are_unmatched_and_not_invalid() {
    let mut steps = Steps::start(0);
    let trace = Attached::to(steps.pid());
    steps.free_early();
    steps.round();
    let traced = trace.stop();
    steps.end(0);
    assert_eq!(traced.document.coverage.unmatched_frees, steps::EARLY);
    assert_eq!(
        (traced.heap().invalid_frees, traced.heap().double_frees),
        (Some(0), Some(0))
    );
    assert_eq!(traced.heap().live_bytes, steps::LIVE_BYTES);
}

#[test]
fn mappings_and_residency_from_before_are_in_the_report() {
    let mut steps = Steps::start(0);
    let trace = Attached::to(steps.pid());
    steps.round();
    let kilobytes = |field: &str| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", steps.pid()))
            .expect("the process runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .expect("a field of status");
        line.trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .expect("a number")
            * 1024
    };
    let (size, resident) = (kilobytes("VmSize:"), kilobytes("VmRSS:"));
    let traced = trace.stop();
    steps.end(0);
    let space = &traced.first().address_space;
    within(1.0, space.reserved_bytes, size, "reserved against VmSize");
    // Some pages are counted per CPU first: sixty-four of a small process are more than a per cent.
    assert!(
        space.committed_bytes.abs_diff(resident) <= resident / 100 + 512 * 1024,
        "{space:?} against {resident}"
    );
}

#[test]
fn a_target_that_ends_ends_the_trace_with_a_report() {
    let mut steps = Steps::start(6);
    let trace = Attached::to(steps.pid());
    steps.round();
    steps.end(6);
    let traced = trace.wait();
    assert_rounds(&traced, 1);
    assert_eq!(traced.first().exit.and_then(|exit| exit.code), Some(6));
}

#[test]
fn the_duration_ends_the_trace_and_not_the_target() {
    let mut steps = Steps::start(0);
    let trace = Attached::with(steps.pid(), &["--duration", "1s"]);
    let traced = trace.wait();
    steps.round();
    steps.end(0);
    assert_eq!(traced.document.processes.len(), 1);
}

#[test]
fn several_processes_are_traced_at_once() {
    let mut targets = [Steps::start(0), Steps::start(0)];
    let second = targets[1].pid().to_string();
    let trace = Attached::with(targets[0].pid(), &["-p", &second]);
    targets[0].round();
    targets[1].round();
    targets[1].round();
    let traced = trace.stop();
    for (target, rounds) in targets.iter().zip([1, 2]) {
        let heap = heap(traced.process(target.pid().into()));
        assert_eq!(heap.allocations, rounds * steps::ALLOCATIONS);
    }
    targets.into_iter().for_each(|target| target.end(0));
}

#[test]
fn two_memtraces_on_one_process_both_count_right() {
    let mut steps = Steps::start(0);
    let first = Attached::to(steps.pid());
    let second = Attached::to(steps.pid());
    steps.round();
    let second = second.stop();
    steps.round();
    let first = first.stop();
    steps.end(0);
    assert_rounds(&second, 1);
    assert_rounds(&first, 2);
}

#[test]
fn killing_memtrace_leaves_the_target_running_and_the_next_one_cleans_up() {
    let mut steps = Steps::start(8);
    let mut trace = Attached::to(steps.pid());
    trace.memtrace().signal(Signal::SIGKILL);
    while trace.memtrace().alive() {
        std::thread::yield_now();
    }
    for _ in 0..10 {
        steps.round();
    }
    let next = Attached::to(steps.pid());
    steps.round();
    assert_eq!(uprobes_of(trace.pid()), Vec::<String>::new());
    assert_rounds(&next.stop(), 1);
    steps.end(8);
}

#[test]
fn nothing_is_left_attached_after_a_trace() {
    let mut steps = Steps::start(0);
    let trace = Attached::to(steps.pid());
    steps.round();
    let memtrace = trace.pid();
    trace.stop();
    assert_eq!(uprobes_of(memtrace), Vec::<String>::new());
    steps.end(0);
}

const ROUNDS: usize = 1000;

/// Rounds at a time: what each waits for in the kernel is the same for all.
const AT_ONCE: usize = 4;

/// Untraced, its threads rest: they leave the machine to what traces.
#[test]
fn a_busy_process_survives_being_attached_to_a_thousand_times() {
    let mut busy = Running::start(Command::new(workload("busy.c")).args(["4", "1000"]));
    busy.stdout_has("ready");
    let mut lines = 1;
    let mut blocks = 0;
    let scratch = Scratch::new();
    for round in (0..ROUNDS).step_by(AT_ONCE) {
        let started: Vec<_> = (round..round + AT_ONCE)
            .map(|round| {
                let report = scratch.path(&format!("{round}.json"));
                (attach_for_a_moment(busy.pid(), &report), report)
            })
            .collect();
        for (memtrace, report) in started {
            assert_harmless(memtrace, &report);
        }
        busy.send(b"?");
        lines += 1;
        let text = busy.stdout_lines(lines);
        let now: serde_json::Value =
            serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        let now = number(&now, "blocks");
        assert!(now > blocks, "round {round}: it goes on");
        blocks = now;
    }
    let finished = busy.finish();
    finished.exited(0);
    assert_eq!(number(&finished.object(), "wrong"), 0);
}

fn attach_for_a_moment(pid: u32, report: &Path) -> Running {
    let mut command = memtrace(&["attach", "--format", "json", "--duration", "20ms", "-p"]);
    command.arg(pid.to_string());
    command.arg("--report-file").arg(report);
    Running::start(&mut command)
}

#[track_caller]
fn assert_harmless(memtrace: Running, report: &Path) {
    let pid = memtrace.pid();
    let traced = read(memtrace.finish(), report);
    assert_eq!(uprobes_of(pid), Vec::<String>::new());
    traced.finished.exited(0);
    let heap = traced.heap();
    assert_eq!((heap.invalid_frees, heap.double_frees), (Some(0), Some(0)));
}
