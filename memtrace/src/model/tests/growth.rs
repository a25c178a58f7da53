//! Growth of processes that fork.

use super::*;

const PARENT: Pid = 10;
const CHILD: Pid = 11;

fn touch(trace: &mut Trace, time: u64, pid: Pid, page: u64) {
    let kind = EventKind::Touch {
        address: BASE + page * PAGE,
        stack: 7,
        faults: 1,
    };
    trace.event(time, pid, kind);
}

fn held(trace: &Trace, pid: Pid) -> u64 {
    let growth = trace.0.growth(pid).map(|(growth, _)| growth);
    let sites = growth.iter().flat_map(|growth| &growth.sites);
    sites.map(|site| site.bytes / PAGE).sum()
}

#[test]
fn pages_that_are_copied_after_a_fork_are_no_growth() {
    let mut trace = Trace::new();
    trace.start(PARENT, false);
    trace.mmap(10 * MS, PARENT, BASE, 4);
    touch(&mut trace, 11 * MS, PARENT, 0);
    trace.fork(20 * MS, PARENT, CHILD, false);
    for pid in [PARENT, CHILD] {
        trace.mmap(30 * MS, pid, BASE + 100 * PAGE, 4);
        touch(&mut trace, 40 * MS, pid, 1);
        touch(&mut trace, 41 * MS, pid, 100);
    }
    assert_eq!((held(&trace, PARENT), held(&trace, CHILD)), (2, 1));
    trace.exec(50 * MS, CHILD);
    touch(&mut trace, 60 * MS, PARENT, 2);
    assert_eq!(held(&trace, PARENT), 3, "nobody shares its pages any more");
}

#[test]
fn what_is_not_followed_any_more_is_not_told() {
    let mut trace = Trace::new();
    trace.start(PARENT, false);
    trace.mmap(10 * MS, PARENT, BASE, 4);
    let sampling = |trace: &mut Trace, time: u64, on: bool, kept: bool| {
        trace.event(time, PARENT, EventKind::TouchSampling { on, kept });
    };
    sampling(&mut trace, 11 * MS, true, true);
    touch(&mut trace, 12 * MS, PARENT, 0);
    sampling(&mut trace, 13 * MS, false, true);
    assert_eq!(held(&trace, PARENT), 1, "what is given back is told yet");
    sampling(&mut trace, 14 * MS, false, false);
    assert!(!trace.0.has_growth(PARENT));
    sampling(&mut trace, 15 * MS, true, true);
    touch(&mut trace, 16 * MS, PARENT, 1);
    assert_eq!(held(&trace, PARENT), 1);
}

/// The mappings of such a process are read, and may be as old as what it shares with its child.
#[test]
fn where_mappings_are_not_told_a_fork_makes_those_that_are_read_old() {
    let mut trace = Trace(Model::sampled(Limits::default()));
    trace.start(PARENT, false);
    trace.fork(20 * MS, PARENT, CHILD, false);
    let heap = BASE - 100 * PAGE;
    trace.smaps(30 * MS, PARENT, &[(heap, 4, "[heap]"), (BASE, 4, "")]);
    touch(&mut trace, 40 * MS, PARENT, 1);
    let kind = EventKind::Touch {
        address: heap,
        stack: 7,
        faults: 1,
    };
    trace.event(41 * MS, PARENT, kind);
    assert_eq!(held(&trace, PARENT), 0);
    trace.mmap(50 * MS, PARENT, BASE + 4 * PAGE, 4);
    touch(&mut trace, 60 * MS, PARENT, 4);
    // The kernel has made one of both.
    trace.smaps(70 * MS, PARENT, &[(heap, 4, "[heap]"), (BASE, 8, "")]);
    touch(&mut trace, 80 * MS, PARENT, 5);
    assert_eq!(held(&trace, PARENT), 2);
}
