//! Trees of processes, however short they live.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use memtrace::report::document::Process;
use memtrace_tests::binary::{heap, read};
use memtrace_tests::child::deadline;
use memtrace_tests::expect::number;
use memtrace_tests::workload::{build, workload};
use memtrace_tests::{Running, Scratch, Traced, memtrace, trace, trace_with};
use nix::sys::signal::Signal;

fn text(path: &std::path::Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// A child of a shell of a shell, too short for anything that polls.
#[test]
fn a_grandchild_of_milliseconds_is_counted_from_its_first_instruction() {
    let program = text(&workload("counts.c"));
    let script = format!("sh -c '{program} 0; {program} 1000; true'; true");
    let traced = trace(&["sh", "-c", &script]);
    traced.finished.exited(0);
    let counted = traced.finished.objects();
    let process = |run: usize| traced.process(number(&counted[run], "pid"));
    let (idle, busy) = (heap(process(0)), heap(process(1)));
    assert_eq!(
        busy.allocations - idle.allocations,
        number(&counted[1], "allocations")
    );
    assert_eq!(
        busy.reallocations - idle.reallocations,
        number(&counted[1], "reallocations")
    );
    assert_eq!(busy.frees - idle.frees, number(&counted[1], "frees"));
}

/// A static program: its allocator is in no library.
fn with_an_allocator_of_its_own(scratch: &Scratch) -> String {
    let program = build("counts.c", "musl-gcc", &["-static"], "musl-tools");
    text(&scratch.copy(&program, "own", 0o755))
}

/// It is probed before it is there, wherever the command line or a script in it names it.
#[test]
fn a_program_that_the_arguments_name_is_counted_from_its_first_instruction() {
    let scratch = Scratch::new();
    let program = with_an_allocator_of_its_own(&scratch);
    let words = format!("sleep 0; {program} 1000; true");
    let script = scratch.write("script", "#!/bin/sh\nd=${0%/*}\n$d/own 1000\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let script = text(&script);
    let commands: [&[&str]; 4] = [
        &["env", "A=b", &program, "1000"],
        &["env", "sh", "-c", &words],
        &["sh", &script],
        &[&script],
    ];
    for command in commands {
        let traced = trace(command);
        traced.finished.exited(0);
        let said = traced.finished.object();
        let process = traced.process(number(&said, "pid"));
        assert_eq!(process.heap_reason, None, "{command:?}");
        let heap = heap(process);
        assert_eq!(heap.frees, number(&said, "frees"), "{command:?}");
        assert!(
            heap.allocations >= number(&said, "allocations"),
            "{command:?}"
        );
    }
}

/// Nothing told of the allocator in these grandchildren: its probes come while the first of them run. Each is counted
/// whole or says that it is not, and the last, a second after the first, is counted whole.
#[test]
fn a_grandchild_with_an_unforeseen_allocator_is_counted_whole_or_says_that_it_is_not() {
    let scratch = Scratch::new();
    let program = with_an_allocator_of_its_own(&scratch);
    let directory = program.trim_end_matches("/own");
    let script = format!("d={directory}; for n in 1 2 3 4 5; do $d/own 1000; sleep 0.2; done");
    let traced = trace(&["sh", "-c", &script]);
    traced.finished.exited(0);
    let counted = traced.finished.objects();
    assert_eq!(counted.len(), 5);
    for (index, said) in counted.iter().enumerate() {
        let process = traced.process(number(said, "pid"));
        let whole = process.heap_reason.is_none()
            && process.heap.is_some_and(|heap| {
                heap.allocations >= number(said, "allocations")
                    && heap.frees == number(said, "frees")
            });
        assert!(whole || process.heap_reason.is_some(), "{process:?}");
        assert!(whole || index < 4, "{process:?}");
    }
}

fn five_hundred(how: &str) -> (Traced, u64) {
    five_hundred_of(&[&text(&workload("children.c")), "500", how], 501)
}

fn five_hundred_of(command: &[&str], processes: usize) -> (Traced, u64) {
    let traced = trace(command);
    traced.finished.exited(0);
    assert_eq!(number(&traced.finished.object(), "failed"), 0);
    let parent = number(&traced.finished.object(), "pid");
    assert_eq!(
        traced.document.processes.len(),
        processes,
        "dropped: {}",
        traced.document.coverage.processes_dropped
    );
    traced.nothing_lost();
    (traced, parent)
}

fn children(traced: &Traced, parent: u64) -> impl Iterator<Item = &Process> {
    traced
        .document
        .processes
        .iter()
        .filter(move |process| u64::from(process.parent_pid) == parent)
}

#[test]
fn five_hundred_forked_children_each_have_their_allocations_and_the_heap_they_inherited() {
    let (traced, parent) = five_hundred("fork");
    assert_eq!(children(&traced, parent).count(), 500);
    let live = heap(traced.process(parent)).live_blocks;
    assert_eq!(live, 5);
    for child in children(&traced, parent) {
        let heap = heap(child);
        assert_eq!(
            (heap.allocations, heap.live_blocks),
            (10, live + 10),
            "{}",
            child.pid
        );
        assert_eq!(child.exit.and_then(|exit| exit.code), Some(0));
    }
}

#[test]
fn five_hundred_executed_children_each_have_their_allocations_and_no_other() {
    let (traced, parent) = five_hundred("exec");
    assert_each_has_its_own(&traced, parent);
}

/// Their parent is a child itself: all its events are inherited ones.
#[test]
fn five_hundred_executed_grandchildren_each_have_their_allocations_and_no_other() {
    let script = format!("{} 500 exec; true", text(&workload("children.c")));
    let (traced, parent) = five_hundred_of(&["sh", "-c", &script], 502);
    assert_each_has_its_own(&traced, parent);
}

#[track_caller]
fn assert_each_has_its_own(traced: &Traced, parent: u64) {
    assert_eq!(children(traced, parent).count(), 500);
    for child in children(traced, parent) {
        let heap = heap(child);
        assert_eq!(
            (heap.allocations, heap.live_blocks, heap.live_bytes),
            (10, 10, 1000),
            "{}",
            child.pid
        );
        assert!(
            child.faults.minor > 0 && child.address_space.reserved_bytes > 0,
            "{}",
            child.pid
        );
    }
}

/// Of a memtrace that was held up the ticks come one upon the other, with much unread between them.
#[test]
fn ends_that_wait_in_the_buffer_are_not_taken_for_lost() {
    let program = workload("children.c");
    let name = program.file_name().and_then(OsStr::to_str).expect("a name");
    let children = text(&program);
    let script = format!(
        "echo here; read go; for each in 1 2 3 4 5 6 7 8; do {children} 50 exec & done; wait; sleep 3; echo over; sleep 2"
    );
    let scratch = Scratch::new();
    let report = scratch.path("report.json");
    let mut command = memtrace(&["run", "--no-heap", "--format", "json", "--report-file"]);
    command.arg(&report).args(["--", "sh", "-c", &script]);
    let mut run = Running::start(&mut command);
    run.stdout_has("here");
    run.signal(Signal::SIGSTOP);
    run.send(b"go\n");
    run.stdout_has("over");
    run.signal(Signal::SIGCONT);
    let traced = read(run.finish(), &report);
    traced.finished.exited(0);
    traced.nothing_lost();
    assert_eq!(traced.running(name).len(), 8 * 51);
}

#[test]
fn processes_are_in_order_of_start_the_command_first() {
    let (traced, parent) = five_hundred("fork");
    let starts = traced
        .document
        .processes
        .iter()
        .map(|process| process.start_time_ns);
    assert!(starts.is_sorted());
    assert_eq!(u64::from(traced.first().pid), parent);
    let process = traced.first();
    assert_eq!(
        process.command_line[1..],
        ["500", "fork"],
        "{:?}",
        process.command_line
    );
    assert!(
        process.exe.contains("children") && process.cgroup.starts_with('/'),
        "{process:?}"
    );
}

#[test]
fn without_following_only_the_command_is_reported() {
    let program = text(&workload("children.c"));
    let traced = trace_with(&["--no-follow"], &[program.as_str(), "20", "fork"]);
    traced.finished.exited(0);
    assert_eq!(number(&traced.finished.object(), "failed"), 0);
    assert_eq!(traced.document.processes.len(), 1);
    assert_eq!(traced.heap().allocations, 5);
}

#[test]
fn exec_starts_a_new_heap_in_the_same_process() {
    let program = text(&workload("counts.c"));
    let traced = trace(&["sh", "-c", &format!("exec {program} 1000")]);
    traced.finished.exited(0);
    assert_eq!(traced.document.processes.len(), 1);
    let direct = trace(&[program.as_str(), "1000"]);
    assert_eq!(
        traced.heap().live_blocks,
        direct.heap().live_blocks,
        "blocks of the shell are gone"
    );
    assert_eq!(traced.heap().live_bytes, direct.heap().live_bytes);
}

#[test]
fn the_way_a_process_ended_is_reported() {
    let traced = trace(&["sh", "-c", "sh -c 'exit 9'; sh -c 'kill -USR1 $$'; exit 4"]);
    traced.finished.exited(4);
    let ends: Vec<_> = traced
        .document
        .processes
        .iter()
        .map(|process| process.exit.expect("ended"))
        .collect();
    let ends: Vec<_> = ends.iter().map(|exit| (exit.code, exit.signal)).collect();
    assert_eq!(ends, [(Some(4), None), (Some(9), None), (None, Some(10))]);
}

/// What memtrace keeps of processes that ended is bounded: once as many have ended as are kept, more of them cost nothing.
#[test]
fn a_storm_of_children_does_not_make_memtrace_grow() {
    let mut command = memtrace(&["run", "--no-heap", "--report-file", "/dev/null", "--"]);
    let mut run = Running::start(command.arg(workload("storm.c")));
    let status = format!("/proc/{}/status", run.pid());
    let resident_kib = || {
        let status = std::fs::read_to_string(&status).expect("memtrace runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let words = line.and_then(|line| line.split_whitespace().next());
        words
            .and_then(|word| word.parse::<u64>().ok())
            .expect("a number of KiB")
    };
    let mut storm = |order| {
        run.send(b"x");
        run.stdout_lines(order);
        // Until it has read all of it: then it stays as it is.
        let until = deadline();
        let mut before = 0;
        while before != resident_kib() {
            assert!(
                Instant::now() < until,
                "it never comes to rest: {before} KiB"
            );
            before = resident_kib();
            std::thread::sleep(Duration::from_millis(1200));
        }
        before
    };
    // Its tables have their size by then.
    let before = (1..=3).map(&mut storm).last().expect("three storms");
    let after = storm(4);
    assert!(
        after < before + 3 * 1024,
        "{before} KiB after 33,000 children, {after} KiB after 44,000"
    );
    run.finish().exited(0);
}
