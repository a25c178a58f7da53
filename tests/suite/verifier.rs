//! What the kernel's verifier has to do before a trace begins.

use memtrace_tests::child::run;
use memtrace_tests::memtrace;

/// A start waits for the verifier: a million instructions take it a second or more, and no program may take more.
const MOST: u64 = 50_000;

#[test]
fn programs_are_small_enough_to_start_at_once() {
    let finished = run(&mut memtrace(&["-vv", "run", "--", "true"]));
    finished.exited(0);
    let messages = finished.messages();
    let walked: Vec<(&str, u64)> = messages
        .lines()
        .filter_map(|line| {
            let (program, count) = line.split_once(": the verifier walked ")?;
            let count = count.strip_suffix(" instructions")?.parse().ok()?;
            Some((program, count))
        })
        .collect();
    assert!(walked.len() >= 14, "one line a program: {messages}");
    for (program, count) in walked {
        assert!((1..=MOST).contains(&count), "{program}: {count}");
    }
}
