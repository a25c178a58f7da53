//! Leaks are named by the function that made them.

use memtrace::report::document::Leak;
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
