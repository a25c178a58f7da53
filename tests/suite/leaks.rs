//! Leaks are named by the function that made them.

use std::collections::BTreeMap;

use memtrace::report::document::Leak;
use memtrace::report::stack::title;
use memtrace_tests::workload::{build, workload};
use memtrace_tests::{Traced, trace, trace_with};

/// A site as (function, bytes, blocks).
fn site(leak: &Leak) -> (String, u64, u64) {
    let function = leak.stack.first().and_then(|frame| frame.function.clone());
    (
        function.unwrap_or_else(|| format!("{:?}", leak.stack)),
        leak.bytes,
        leak.blocks,
    )
}

fn sites(traced: &Traced) -> Vec<(String, u64, u64)> {
    traced.first().leaks.iter().map(site).collect()
}

fn large() -> (String, u64, u64) {
    ("leak_large".to_owned(), 10 << 20, 10)
}

fn small() -> (String, u64, u64) {
    ("leak_small".to_owned(), 64_000, 1000)
}

#[test]
fn exactly_the_leaking_functions_are_named_largest_first() {
    let traced = trace(&[workload("leaks.c").as_os_str(), "drop".as_ref()]);
    traced.finished.exited(0);
    assert_eq!(sites(&traced), [large(), small()]);
    assert_eq!(traced.heap().live_bytes, (10 << 20) + 64_000);
}

#[test]
fn a_cache_that_is_kept_is_a_site_of_its_own() {
    let traced = trace(&[workload("leaks.c").as_os_str(), "keep".as_ref()]);
    let cache: u64 = (0..500).map(|entry| 100 + entry).sum();
    assert_eq!(
        sites(&traced),
        [large(), ("grow_cache".to_owned(), cache, 500), small()]
    );
}

#[test]
fn a_stack_goes_from_the_allocating_line_up_to_main() {
    let traced = trace(&[workload("leaks.c").as_os_str(), "drop".as_ref()]);
    for leak in &traced.first().leaks {
        let functions: Vec<_> = leak
            .stack
            .iter()
            .filter_map(|frame| frame.function.as_deref())
            .collect();
        assert_eq!(functions.get(1), Some(&"main"), "{functions:?}");
        let frame = &leak.stack[0];
        assert!(
            frame
                .file
                .as_deref()
                .is_some_and(|file| file.ends_with("leaks.c")),
            "{frame:?}"
        );
        assert!(frame.line.is_some_and(|line| line > 0), "{frame:?}");
        assert!(
            frame.module.is_some() && frame.build_id.is_some() && frame.offset.is_some(),
            "{frame:?}"
        );
        assert!(leak.oldest_age_ns >= leak.newest_age_ns, "{leak:?}");
    }
}

#[test]
fn a_position_dependent_program_is_named_too() {
    let program = build("leaks.c", "gcc", &["-no-pie"], "gcc");
    let traced = trace(&[program.as_os_str(), "drop".as_ref()]);
    assert_eq!(sites(&traced), [large(), small()]);
}

#[test]
fn a_static_program_is_named_too() {
    let program = build("leaks.c", "gcc", &["-static"], "libc6-dev");
    let traced = trace(&[program.as_os_str(), "drop".as_ref()]);
    // libc's own start-up may keep some small blocks here.
    assert_eq!(sites(&traced)[..2], [large(), small()]);
}

#[test]
fn without_stacks_bytes_and_blocks_are_the_same() {
    let traced = trace_with(
        &["--no-stacks"],
        &[workload("leaks.c").as_os_str(), "drop".as_ref()],
    );
    let heap = traced.heap();
    assert_eq!(
        (heap.live_bytes, heap.live_blocks),
        ((10 << 20) + 64_000, 1010)
    );
    assert!(
        traced
            .first()
            .leaks
            .iter()
            .all(|leak| leak.stack.is_empty())
    );
}

#[test]
fn a_site_is_called_after_the_caller_and_not_the_plumbing() {
    let traced = trace(&[workload("plumbing.cpp")]);
    traced.finished.exited(0);
    let ours = [
        "build_text",
        "fill_map",
        "fill_vector",
        "keep_share",
        "make_object",
        "use_wrappers",
    ];
    let mut callers = BTreeMap::new();
    for leak in &traced.first().leaks {
        let title = title(&leak.stack);
        let name = title.split(['(', ' ']).next().unwrap_or_default();
        // libstdc++ allocates a pool of its own before main.
        if !ours.contains(&name) {
            continue;
        }
        *callers.entry(name.to_owned()).or_insert(0) += leak.bytes;
        // What is not in the headline is in the stack.
        let innermost = leak.stack[0].function.as_deref().unwrap_or_default();
        assert!(
            innermost.starts_with("operator new") || innermost.starts_with("xmalloc"),
            "{leak:?}"
        );
    }
    let found: Vec<&str> = callers.keys().map(String::as_str).collect();
    assert_eq!(found, ours, "{:?}", traced.first().leaks);
    assert_eq!(callers["make_object"], 1000);
    assert_eq!(callers["use_wrappers"], 777);
    // 512 values and their vector of three pointers.
    assert_eq!(callers["fill_vector"], 512 * 4 + 24);
}
