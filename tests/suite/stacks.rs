//! Stacks reach the thread's start, whatever the code was compiled with.
//!
//! The oracle is libgcc's unwinder in the workload itself: it prints each block's stack, address by address.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    process::Command,
};

use memtrace::report::document::Leak;
use memtrace_tests::binary::Attached;
use memtrace_tests::expect::number;
use memtrace_tests::stacks::{Stacks, addresses, cut};
use memtrace_tests::workload::{build, build_go, build_rust};
use memtrace_tests::{Running, Scratch, Traced, trace, trace_with};

fn workload(flags: &[&str]) -> PathBuf {
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
        blocks.add(1, size);
    }
    stacks
}

/// Return addresses of a leak behind its first.
fn callers(leak: &Leak) -> Vec<u64> {
    addresses(&leak.stack).split_off(1)
}

fn reported(traced: &Traced) -> Stacks {
    let mut stacks = Stacks::new();
    for leak in &traced.first().leaks {
        let blocks = stacks.entry(callers(leak)).or_default();
        blocks.add(leak.blocks, leak.bytes);
    }
    stacks
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

/// Functions of a leak's stack up to main, innermost first.
fn functions(leak: &Leak) -> Vec<&str> {
    let names = leak.stack.iter().map(|frame| frame.function.as_deref());
    let mut names: Vec<&str> = names.map(|name| name.unwrap_or("?")).collect();
    if let Some(main) = names.iter().position(|name| *name == "main") {
        names.truncate(main + 1);
    }
    names
}

#[test]
fn frames_that_are_hard_to_leave_are_left_or_counted_by_the_reason() {
    let count = 7;
    let program = memtrace_tests::workload::workload("frames.c");
    let traced = trace(&[program.as_os_str(), count.to_string().as_ref()]);
    traced.finished.exited(0);
    traced.nothing_lost();
    let sizes = traced.finished.object();
    let stack = |name: &str| {
        let bytes = number(&sizes, name) * count;
        let leaks = &traced.first().leaks;
        let leak = leaks.iter().find(|leak| leak.bytes == bytes);
        functions(leak.unwrap_or_else(|| panic!("no leak of {name}")))
    };
    assert_eq!(stack("framed"), ["framed", "through_framed", "main"]);
    assert_eq!(stack("tiny"), ["tiny", "through_tiny", "main"]);
    let inlined = ["innermost", "middle", "outer", "main"];
    assert_eq!(stack("inlined"), inlined);
    for cut in ["lost", "beyond", "still", "escape", "nowhere", "coroutine"] {
        assert_eq!(stack(cut), [cut]);
    }
    let reasons = [
        ("unwind_no_rules", count),
        ("unwind_unreadable", 2 * count),
        ("unwind_stack_pointer", count),
        ("unwind_unsupported_rule", count),
        ("unwind_no_mapping", count),
    ];
    let reasons = reasons.map(|(reason, count)| (reason.to_owned(), count));
    assert_eq!(cut(&traced), HashMap::from(reasons));
}

/// Traces a program that loads each of two libraries in place of the other, a hundred times, and asserts that it did.
/// What it leaks below them is known by the size, 1,000 bytes for the first and 1,001 for the second.
fn reload(first: &Path, second: &Path) -> Traced {
    let program = build("reload.c", "gcc", &["-ldl"], "gcc");
    let traced = trace(&[
        program.as_os_str(),
        RELOADS.to_string().as_ref(),
        first.as_ref(),
        "first".as_ref(),
        second.as_ref(),
        "second".as_ref(),
    ]);
    traced.finished.exited(0);
    traced.nothing_lost();
    let same = number(&traced.finished.object(), "same");
    assert_eq!(same, RELOADS, "loaded at one place");
    traced
}

const RELOADS: u64 = 100;

fn library(name: &str, space: u32, ahead: u32) -> PathBuf {
    let name = format!("-DNAME={name}");
    let [space, ahead] =
        [("SPACE", space), ("AHEAD", ahead)].map(|(key, value)| format!("-D{key}={value}"));
    let flags = ["-shared", "-fPIC", &name, &space, &ahead];
    build(
        "reload_library.c",
        "gcc",
        &[NO_FRAME_POINTERS, &flags].concat(),
        "gcc",
    )
}

/// Blocks of a size that were leaked on a stack.
fn blocks_on(traced: &Traced, size: u64, stack: &[&str]) -> u64 {
    let leaks = traced.first().leaks.iter();
    let of_size = leaks.filter(|leak| leak.bytes == leak.blocks * size);
    let on_it = of_size.filter(|leak| functions(leak) == stack);
    on_it.map(|leak| leak.blocks).sum()
}

/// Asserts that as many addresses are counted as are named after both libraries: those of frames, and instructions that
/// took a fault.
#[track_caller]
fn assert_ambiguous_are_counted(traced: &Traced, frames: usize) {
    let process = traced.first();
    let of_both = |stacks: &mut dyn Iterator<Item = &Vec<u32>>| -> HashSet<u64> {
        let frames = stacks.flat_map(|stack| process.stack(stack));
        let both = frames.filter(|frame| {
            let function = frame.function.as_deref().unwrap_or_default();
            function.starts_with('[') && function.contains(" or ")
        });
        both.map(|frame| frame.address).collect()
    };
    let allocating = of_both(&mut process.sites.iter().map(|site| &site.stack));
    let faulting = of_both(&mut process.fault_sites.iter().map(|site| &site.stack));
    assert_eq!(allocating.len(), frames);
    let reasons = &traced.document.coverage.lost_by_reason;
    let counted = reasons.get("frame_ambiguous").copied().unwrap_or(0);
    assert_eq!(counted, allocating.union(&faulting).count() as u64);
}

#[test]
fn a_library_in_place_of_another_of_the_same_layout_is_left_by_its_own_rules_and_named_as_one_of_both()
 {
    let (first, second) = (library("first", 1000, 0), library("second", 2000, 0));
    let traced = reload(&first, &second);
    let name = |path: &Path| path.file_name().expect("a name").display().to_string();
    let either = format!("[{} or {}]", name(&first), name(&second));
    let expected = ["leak", &either, "through", "main"];
    let blocks = [1000, 1001].map(|size| blocks_on(&traced, size, &expected));
    assert_eq!(blocks, [RELOADS; 2], "{:?}", cut(&traced));
    assert_ambiguous_are_counted(&traced, 1);
}

#[test]
fn a_library_in_place_of_another_is_named_where_no_call_ends_there_in_the_other() {
    let traced = reload(&library("first", 1000, 0), &library("second", 2000, 17));
    let blocks = [(1000, "first"), (1001, "second")]
        .map(|(size, function)| blocks_on(&traced, size, &["leak", function, "through", "main"]));
    assert_eq!(blocks, [RELOADS; 2], "{:?}", traced.first().leaks);
    assert_ambiguous_are_counted(&traced, 0);
}

/// Thrice as many rules as there is room for, each library's in the place of others'.
#[test]
fn libraries_that_come_and_go_do_not_use_up_the_room_for_unwind_rules() {
    const ROOM: u32 = 100_000;
    const LIBRARIES: u64 = 50;
    const TURNS: u64 = 3;
    let scratch = Scratch::new();
    let kinds = [1000, 2000, 3000].map(|space| {
        let space = format!("-DSPACE={space}");
        let flags = ["-shared", "-fPIC", "-DNAME=first", "-DOTHERS=3000", &space];
        build(
            "reload_library.c",
            "gcc",
            &[NO_FRAME_POINTERS, &flags].concat(),
            "gcc",
        )
    });
    let libraries: Vec<PathBuf> = (0..LIBRARIES as usize)
        .map(|index| scratch.copy(&kinds[index % kinds.len()], &format!("{index}.so"), 0o755))
        .collect();
    let program = build("reload.c", "gcc", &["-ldl"], "gcc");
    let turns = TURNS.to_string();
    let mut command = vec![program.as_os_str(), turns.as_ref()];
    for library in &libraries {
        command.extend([library.as_os_str(), "first".as_ref()]);
    }
    let room = ROOM.to_string();
    let options = ["--unwind-rows", &room];
    let traced = trace_with(&options, &command);
    traced.finished.exited(0);
    traced.nothing_lost();
    let same = number(&traced.finished.object(), "same");
    assert_eq!(same, TURNS * (LIBRARIES - 1), "loaded at one place");
    assert_eq!(cut(&traced), HashMap::new());
    let reasons = &traced.document.coverage.lost_by_reason;
    assert_eq!(reasons.get("unwind_tables_full"), None);
    let leaks = traced.first().leaks.iter();
    let whole = leaks.filter(|leak| {
        let functions = functions(leak);
        matches!(functions[..], ["leak", library, "through", "main"] if library.starts_with("[0.so or "))
    });
    assert_eq!(
        whole.map(|leak| leak.blocks).sum::<u64>(),
        TURNS * LIBRARIES
    );
}

#[test]
fn stacks_of_rust_are_whole_whatever_a_panic_does() {
    for strategy in ["panic=abort", "panic=unwind"] {
        let program = build_rust("unwinding.rs", &["-C", strategy]);
        let traced = trace(&[program.as_os_str(), "100".as_ref()]);
        traced.finished.exited(0);
        traced.nothing_lost();
        let printed = printed(&traced.finished.output());
        assert_eq!(printed.values().map(|one| one.blocks).sum::<u64>(), 100);
        let reported = reported(&traced);
        for (stack, expected) in &printed {
            // libgcc ends at main where that has no rules; memtrace goes on by the frame pointer.
            let seen = reported.iter().find(|(seen, _)| seen.starts_with(stack));
            assert_eq!(seen.map(|(_, blocks)| blocks), Some(expected), "{stack:x?}");
        }
    }
}

/// What a program was started from may be replaced while it runs: its rules are still those of what is mapped.
#[test]
fn a_program_that_was_replaced_on_disk_is_left_by_the_rules_of_what_runs() {
    let scratch = Scratch::new();
    let program = scratch.copy(&workload(NO_FRAME_POINTERS), "program", 0o755);
    let other = scratch.copy(&workload(&["-O0"]), "other", 0o755);
    let mut running = Running::start(Command::new(&program).arg("signal"));
    std::fs::rename(other, &program).expect("replace the program");
    let trace = Attached::to(running.pid());
    running.send(b"\n");
    let traced = trace.wait();
    let finished = running.finish();
    assert_same(&finished.exited(0).output(), &traced, 1);
    assert_eq!(cut(&traced), HashMap::new());
}

/// Go's own stack is another one, which only Go's runtime leads to.
#[test]
fn a_call_from_go_is_followed_to_the_switch_of_stacks_and_counted_as_cut_there() {
    let traced = trace(&[build_go("cgo.go").as_os_str(), "800".as_ref()]);
    traced.finished.exited(0);
    traced.nothing_lost();
    let pairs = number(&traced.finished.object(), "pairs");
    let process = traced.first();
    let from_go = process.sites.iter().filter(|site| {
        let names = process
            .stack(&site.stack)
            .map(|frame| frame.function.as_deref());
        let names: Vec<&str> = names.map(|name| name.unwrap_or("?")).collect();
        matches!(names[..], ["take", wrapper, "runtime.asmcgocall"] if wrapper.starts_with("_cgo_"))
    });
    let calls: u64 = from_go.map(|site| site.totals.allocations).sum();
    assert_eq!(calls, pairs);
    assert!(
        cut(&traced)["unwind_no_rules"] >= pairs,
        "{:?}",
        cut(&traced)
    );
}
