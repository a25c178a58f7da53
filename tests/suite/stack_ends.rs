//! Each stack says why it ended, and each frame how it was found.

use memtrace::report::document::{FoundBy, Leak, StackEnd};
use memtrace_tests::child::run;
use memtrace_tests::{Scratch, memtrace, trace_with, workload::workload};

#[test]
fn a_stack_without_rules_goes_on_by_the_frame_pointer_or_says_that_it_is_cut() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    let options = ["-o".as_ref(), recording.as_os_str()];
    let traced = trace_with(&options, &[workload("no_rules.c")]);
    traced.finished.exited(0);
    traced.nothing_lost();
    let leak = |bytes: u64| -> &Leak {
        let mut leaks = traced.first().leaks.iter();
        leaks.find(|leak| leak.bytes == bytes).expect("a leak")
    };
    let names = |leak: &Leak| -> Vec<(String, FoundBy)> {
        let frames = leak.stack.iter();
        frames
            .map(|frame| (frame.function.clone().unwrap_or_default(), frame.found_by))
            .collect()
    };
    let framed = leak(1001);
    assert_eq!(
        names(framed)[..3],
        [
            ("keep_framed".to_owned(), FoundBy::Rules),
            ("framed".to_owned(), FoundBy::Rules),
            ("main".to_owned(), FoundBy::FramePointer),
        ]
    );
    assert_eq!(framed.stack_end, Some(StackEnd::Start));
    let bare = leak(1002);
    assert_eq!(
        names(bare),
        [
            ("keep_bare".to_owned(), FoundBy::Rules),
            ("bare".to_owned(), FoundBy::Rules),
        ]
    );
    assert_eq!(bare.stack_end, Some(StackEnd::NoRules));
    let report = run(memtrace(&["report", "leaks", "--from"]).arg(&recording));
    let text = report.exited(0).output();
    assert!(
        text.contains("        … cut: no unwind rules in no_rules"),
        "{text}"
    );
    assert!(text.contains(" [by frame pointer]\n"), "{text}");
}
