//! Stacks reach the thread's start, whatever the code was compiled with.
//!
//! The oracle is libgcc's unwinder in the workload itself: it prints each block's stack, address by address.

use std::{collections::HashMap, process::Command};

use memtrace::report::document::Leak;
use memtrace_tests::binary::Attached;
use memtrace_tests::workload::{build, tool};
use memtrace_tests::{Running, Traced, trace};

/// Blocks by stack.
type Stacks = HashMap<Vec<u64>, Blocks>;

#[derive(Debug, Default, PartialEq)]
struct Blocks {
    bytes: u64,
    blocks: u64,
}

fn workload(flags: &[&str]) -> std::path::PathBuf {
    build("stacks.cpp", "g++", flags, "g++")
}

const NO_FRAME_POINTERS: &[&str] = &["-O2", "-fomit-frame-pointer"];

/// The stacks that the workload printed, without their first frames: the calls of malloc and of the unwinder
/// are not the same.
fn printed(output: &str) -> Stacks {
    let mut stacks = Stacks::new();
    for line in output.lines() {
        let mut words = line.split(' ');
        let size: u64 = words.next().expect("a size").parse().expect("a number");
        let address = |word: &str| u64::from_str_radix(&word[2..], 16).expect("an address");
        let blocks = stacks.entry(words.map(address).collect()).or_default();
        blocks.bytes += size;
        blocks.blocks += 1;
    }
    stacks
}

/// Return addresses of a leak behind its first.
fn callers(leak: &Leak) -> Vec<u64> {
    let real = leak.stack.iter().filter(|frame| !frame.inlined);
    real.skip(1).map(|frame| frame.address).collect()
}

fn reported(traced: &Traced) -> Stacks {
    let mut stacks = Stacks::new();
    for leak in &traced.first().leaks {
        let blocks = stacks.entry(callers(leak)).or_default();
        blocks.bytes += leak.bytes;
        blocks.blocks += leak.blocks;
    }
    stacks
}

/// Allocations whose stacks ended early, by reason.
fn cut(traced: &Traced) -> HashMap<String, u64> {
    let reasons = traced.document.coverage.lost_by_reason.iter();
    let ends = [
        "stack_truncated",
        "unwind_no_rules",
        "unwind_unreadable",
        "unwind_unsupported_rule",
        "unwind_no_mapping",
        "unwind_stack_pointer",
        "unwind_not_copied",
        "unwind_scratch_busy",
    ];
    reasons
        .filter(|(reason, _)| ends.contains(&reason.as_str()))
        .map(|(reason, count)| (reason.clone(), *count))
        .collect()
}

#[track_caller]
fn assert_same(output: &str, traced: &Traced, blocks: u64) {
    traced.nothing_lost();
    let (printed, reported) = (printed(output), reported(traced));
    assert_eq!(printed.values().map(|one| one.blocks).sum::<u64>(), blocks);
    for (stack, expected) in &printed {
        assert_eq!(
            reported.get(stack),
            Some(expected),
            "{stack:x?} is not among {reported:x?}"
        );
    }
}

#[track_caller]
fn assert_reach_the_start(traced: &Traced) {
    traced.nothing_lost();
    let (cut, allocations) = (cut(traced), traced.heap().allocations);
    let early: u64 = cut.values().sum();
    assert!(
        allocations > 1000 && early * 200 <= allocations,
        "{early} of {allocations}: {cut:?}"
    );
}

#[test]
fn a_thousand_stacks_without_frame_pointers_equal_those_of_libgcc() {
    let traced = trace(&[workload(NO_FRAME_POINTERS).as_os_str(), "paths".as_ref()]);
    traced.finished.exited(0);
    assert_same(&traced.finished.output(), &traced, 1000);
    assert_eq!(cut(&traced), HashMap::new());
}

#[test]
fn stacks_of_a_program_at_fixed_addresses_and_of_a_static_one_are_whole() {
    for flags in [&["-no-pie"][..], &["-static"], &["-static-pie"], &["-s"]] {
        let flags = [NO_FRAME_POINTERS, flags].concat();
        let traced = trace(&[workload(&flags).as_os_str(), "paths".as_ref()]);
        traced.finished.exited(0);
        assert_same(&traced.finished.output(), &traced, 1000);
    }
}

#[test]
fn a_signal_handler_on_another_stack_is_followed_to_what_it_interrupted() {
    let mut command = Command::new(workload(NO_FRAME_POINTERS));
    let mut program = Running::start(command.arg("signal"));
    let trace = Attached::to(program.pid());
    program.send(b"\n");
    let traced = trace.wait();
    let finished = program.finish();
    assert_same(&finished.exited(0).output(), &traced, 1);
    assert_eq!(cut(&traced), HashMap::new());
}

#[test]
fn a_stack_deeper_than_the_walk_is_cut_and_counted() {
    let flags = ["-O1", "-fomit-frame-pointer"];
    let traced = trace(&[workload(&flags).as_os_str(), "deep".as_ref()]);
    traced.finished.exited(0);
    let printed = printed(&traced.finished.output());
    let expected = printed.keys().next().expect("a stack");
    assert!(expected.len() > 200, "{}", expected.len());
    let leaks = &traced.first().leaks;
    let deep = leaks.iter().map(callers).find(|stack| stack.len() > 100);
    assert_eq!(deep.as_deref(), expected.get(..127));
    assert!(cut(&traced)["stack_truncated"] >= 1, "{:?}", cut(&traced));
}

#[test]
fn stacks_of_stock_programs_reach_the_start() {
    let python = "import json; x = [json.dumps({'a': i}) for i in range(5000)]";
    let sqlite = "create table t(a); with recursive n(i) as (select 1 union all select i + 1 from n \
                  where i < 5000) insert into t select printf('%d', i) from n; select count(*) from t;";
    let python3 = std::path::Path::new("/usr/bin/python3");
    let traced = trace(&[
        "env",
        "PYTHONMALLOC=malloc",
        "/usr/bin/python3",
        "-c",
        python,
    ]);
    assert!(python3.exists(), "install the package python3");
    traced.finished.exited(0);
    assert_reach_the_start(&traced);
    let sqlite3 = tool("sqlite3", "sqlite3");
    let traced = trace(&[sqlite3.as_os_str(), ":memory:".as_ref(), sqlite.as_ref()]);
    traced.finished.exited(0);
    assert_reach_the_start(&traced);
}
