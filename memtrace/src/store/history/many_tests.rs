//! More processes than an answer has room for.

use super::{
    Batch, Reader, Span, Writer,
    tests::{KEEP, START, batch, ended, named, row, writer},
};

const SHORT: u32 = 10_500;

const SPAN: Span = Span {
    since_ms: START,
    until_ms: START + 60_000,
};

/// A server, and children that end; the second of these is large.
fn history(path: &std::path::Path) -> Reader {
    let mut writer = writer(path);
    let server = vec![named(row(10, 1), "server")];
    writer.write(&batch(1, server)).unwrap();
    let mut children: Vec<_> = (0..SHORT).map(|index| ended(100 + index, 2)).collect();
    children[1].peak_committed = 1 << 30;
    let all = Batch {
        ended: children,
        ..batch(2, Vec::new())
    };
    writer.write(&all).unwrap();
    Reader::open(path).unwrap()
}

#[test]
fn who_runs_and_who_was_largest_are_told_and_the_others_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let reader = history(&directory.path().join("h"));
    let document = reader.report(SPAN, &[], |_| true).unwrap();
    let pids: Vec<u32> = document.processes.iter().map(|one| one.pid).collect();
    assert_eq!(pids.len(), 10_000);
    assert_eq!(&pids[..2], &[10, 101], "the first ones met");
    let omitted = document.coverage.lost_by_reason["processes_not_told"];
    assert_eq!(omitted, u64::from(SHORT) + 1 - 10_000);
}

#[test]
fn who_is_asked_for_is_found_among_any_number() {
    let directory = tempfile::tempdir().unwrap();
    let reader = history(&directory.path().join("h"));
    for pid in [10, 100, 100 + SHORT - 1] {
        let document = reader.report(SPAN, &[pid], |_| true).unwrap();
        let pids: Vec<u32> = document.processes.iter().map(|one| one.pid).collect();
        assert_eq!(pids, [pid]);
        assert!(document.coverage.lost_by_reason.is_empty());
    }
    let nobody = reader.report(SPAN, &[], |cgroup| cgroup != "/g").unwrap();
    assert!(nobody.processes.is_empty());
}

#[test]
fn who_ran_when_a_daemon_ended_is_told_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("h");
    history(&path);
    // The next daemon closes what was left open.
    drop(Writer::open(&path, KEEP, START + 5000).unwrap());
    let document = Reader::open(&path)
        .unwrap()
        .report(SPAN, &[], |_| true)
        .unwrap();
    let pids: Vec<u32> = document.processes.iter().map(|one| one.pid).collect();
    assert_eq!(&pids[..2], &[10, 101]);
}
