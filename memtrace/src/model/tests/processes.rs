//! Forks, execs, ends, and pids that come back.

use super::*;

#[test]
fn fork_inherits_blocks_mappings_and_names() {
    let mut trace = Trace::new();
    trace.mmap(8, 10, BASE, 4);
    trace.fault(9, 10, BASE, WRITE);
    trace.alloc(10, 10, 0x100, 64, 0);
    trace.fork(20, 10, 11, false);
    trace.free(21, 11, 0x100);
    trace.alloc(22, 11, 0x200, 10, 0);
    trace.fault(23, 11, BASE + PAGE, WRITE);
    let (parent, child) = (trace.row(10), trace.row(11));
    assert_eq!((live(&parent), live(&child)), ((1, 64), (1, 10)));
    let heap = child.heap.unwrap();
    assert_eq!(
        (heap.allocations, heap.frees, heap.peak_live_bytes),
        (1, 1, 64)
    );
    assert_eq!(parent.address_space.committed_bytes, PAGE);
    assert_eq!(child.address_space.committed_bytes, 2 * PAGE);
    assert_eq!((child.faults.minor, parent.faults.minor), (1, 1));
    assert_eq!(
        (child.parent_pid, child.exe.as_str()),
        (10, "/bin/launched")
    );
}

#[test]
fn a_vfork_child_lives_in_its_parent_until_it_execs() {
    let mut trace = Trace::new();
    trace.mmap(8, 10, BASE, 4);
    trace.alloc(10, 10, 0x100, 64, 0);
    trace.fork(20, 10, 11, true);
    trace.alloc(21, 11, 0x200, 10, 0);
    trace.free(22, 11, 0x100);
    assert_eq!(live(&trace.row(10)), (1, 10));
    assert_eq!(trace.row(11).heap, None);
    let kernel = Access {
        kernel: true,
        ..WRITE
    };
    trace.mapped(23, 11, BASE, "/bin/new");
    trace.fault(24, 11, BASE + PAGE, kernel);
    let mut last = totals(9);
    last.last = true;
    trace.event(24, 11, EventKind::Memory(Box::new(last)));
    trace.exec(25, 11);
    trace.alloc(26, 11, 0x100, 7, 0);
    let (parent, child) = (trace.row(10), trace.row(11));
    assert_eq!((live(&parent), live(&child)), ((1, 10), (1, 7)));
    assert_eq!(parent.regions.len(), 1);
    assert_eq!(
        parent.regions[0].path, None,
        "the new program is not in the parent"
    );
    assert_eq!(child.regions[0].path.as_deref(), Some("/bin/new"));
    assert_eq!(child.address_space.committed_bytes, PAGE);
    assert_eq!(
        (child.comm.as_str(), child.exe.as_str()),
        ("new", "/bin/new")
    );
    assert_eq!(parent.address_space.reserved_bytes, 4 * PAGE);
}

#[test]
fn exec_begins_anew_but_faults_go_on() {
    let mut trace = Trace::new();
    trace.mmap(8, 10, BASE, 4);
    trace.fault(9, 10, BASE, WRITE);
    trace.alloc(10, 10, 0x100, 64, 0);
    trace.exec(20, 10);
    let row = trace.row(10);
    assert_eq!((live(&row), row.heap.unwrap().allocations), ((0, 0), 0));
    assert_eq!(row.address_space.reserved_bytes, 0);
    assert_eq!(row.faults.minor, 1);
    assert_eq!(
        (row.start_time_ns, row.timeline[0].time_ns),
        (20, 20),
        "the launcher's copy is not the command's history"
    );
    trace.mmap(28, 10, BASE, 4);
    trace.fault(29, 10, BASE, WRITE);
    trace.exec(30, 10);
    let row = trace.row(10);
    assert_eq!(row.address_space.reserved_bytes, 0);
    assert_eq!(row.faults.minor, 2);
    assert_eq!((row.start_time_ns, row.timeline[0].time_ns), (20, 20));
}

#[test]
fn a_pid_that_comes_back_is_another_process() {
    let mut trace = Trace::new();
    trace.fork(20, 10, 11, false);
    trace.alloc(21, 11, 0x100, 64, 0);
    trace.exit(22, 11);
    trace.fork(30, 10, 11, false);
    let rows: Vec<_> = trace
        .document()
        .processes
        .iter()
        .map(|row| (row.pid, row.start_time_ns, row.end_time_ns, live(row).0))
        .collect();
    assert_eq!(
        rows,
        [(10, 5, None, 0), (11, 20, Some(22), 1), (11, 30, None, 0)]
    );
}

#[test]
fn the_summary_of_an_exited_process_equals_its_last_row() {
    let mut trace = Trace::new();
    trace.fork(20, 10, 11, false);
    trace.mmap(21, 11, BASE, 8);
    trace.fault(22, 11, BASE, WRITE);
    trace.alloc(23, 11, 0x100, 64, 7);
    let mut last = totals(3);
    last.last = true;
    trace.event(24, 11, EventKind::Memory(Box::new(last)));
    trace.exit(25, 11);
    let before = trace.row(11);
    assert_eq!(before.address_space.committed_bytes, 3 * PAGE);
    assert_eq!(before.address_space.reserved_bytes, 100 * PAGE);
    assert_eq!(before.exit.unwrap().code, Some(0));
    trace.fault(5_000 * MS, 10, BASE, WRITE);
    assert!(trace.0.shards[0].spaces.len() == 1, "its maps are gone");
    assert_eq!(trace.row(11), before);
    let mut exact = FaultTotals {
        user: 3,
        kernel: 0,
        minor_sum_ns: 900,
        major_sum_ns: 0,
        minor_untimed: 2,
        major_untimed: 0,
        minor: [0; memtrace_common::histogram::BUCKETS],
        major: [0; memtrace_common::histogram::BUCKETS],
    };
    exact.minor[3] = 1;
    trace.event(5_001 * MS, 11, EventKind::FaultTotals(Box::new(exact)));
    assert_eq!(trace.row(11).faults.minor, 3);
    assert_eq!(trace.0.unnamed(11), [interrupted(0)]);
}

#[test]
fn exited_processes_are_capped() {
    let limits = Limits {
        exited_processes: 3,
        ..Limits::default()
    };
    let mut trace = Trace(Model::new(limits));
    trace.start(10, false);
    for child in 100..600 {
        trace.fork(u64::from(child) * MS, 10, child, false);
        trace.exit(u64::from(child) * MS + 1, child);
    }
    trace.fault(10_000 * MS, 10, BASE, WRITE);
    let document = trace.document();
    let pids: Vec<Pid> = document.processes.iter().map(|row| row.pid).collect();
    assert_eq!(pids, [10, 597, 598, 599]);
    assert_eq!(document.coverage.processes_dropped, 497);
    assert_eq!(trace.0.shards[0].spaces.len(), 1);
    assert_eq!(trace.0.pids().len(), 4);
    assert_eq!(trace.0.shards[0].images.len(), 1);
    assert_eq!(trace.0.running(), [10]);
    assert_eq!(trace.0.overview().len(), 4);
}

#[test]
fn whose_pid_is_taken_has_ended() {
    let mut trace = Trace::new();
    trace.fork(20, 10, 11, false);
    trace.fork(30, 10, 11, false);
    let rows = trace.document().processes;
    let ends: Vec<_> = rows.iter().map(|row| (row.pid, row.end_time_ns)).collect();
    assert_eq!(ends, [(10, None), (11, Some(30)), (11, None)]);
}

#[test]
fn the_command_comes_first() {
    let mut trace = Trace::bare();
    trace.start(20, true);
    trace.start(10, false);
    let rows = trace.document().processes;
    assert_eq!(rows.iter().map(|row| row.pid).collect::<Vec<_>>(), [10, 20]);
}

#[test]
fn strangers_are_taken_in() {
    let mut trace = Trace::bare();
    trace.fault(7, 77, BASE, WRITE);
    trace.free(8, 77, 0x100);
    trace.exit(9, 78);
    trace.fork(9, 79, 79, false);
    let document = trace.document();
    assert_eq!(document.processes.len(), 2);
    assert_eq!(document.processes[0].faults.by_kind["other"].minor, 1);
    assert_eq!(document.coverage.events, 4);
    assert_eq!(document.coverage.unmatched_frees, 1);
}

#[test]
fn the_command_begins_with_its_exec_whoever_tells_of_it_again() {
    let mut trace = Trace::new();
    trace.exec(20, 10);
    let again = Started {
        parent: 1,
        start_ns: 20,
        comm: "new".into(),
        exe: "/bin/new".into(),
        already_running: true,
    };
    trace.event(30, 10, EventKind::Started(Box::new(again)));
    let rows = trace.document().processes;
    let starts: Vec<_> = rows.iter().map(|row| row.start_time_ns).collect();
    assert_eq!(starts, [20]);
    trace.start(10, true);
    let rows = trace.document().processes;
    let starts: Vec<_> = rows.iter().map(|row| row.start_time_ns).collect();
    assert_eq!(starts, [20, 5], "who started at another time is another");
}

#[test]
fn stacks_of_one_that_was_summarised_are_not_kept() {
    let mut trace = Trace::new();
    trace.fork(20, 10, 11, false);
    trace.exit(21, 11);
    trace.free(5_000 * MS, 10, 0x100);
    let next = trace.0.coordinator.stacks.intern(1000);
    trace.alloc(5_001 * MS, 11, 0x100, 64, 77);
    let (address, stack, faults) = (BASE, 78, 1);
    let touch = EventKind::Touch {
        address,
        stack,
        faults,
    };
    trace.event(5_001 * MS, 11, touch);
    assert_eq!(trace.0.coordinator.stacks.intern(1001), next + 1);
}

/// In an area memory calls need not be told: then it is the execve itself that shows whose a mapping is.
#[test]
fn what_was_mapped_before_an_execve_stays_with_the_old_program() {
    let mut trace = Trace(Model::sampled(Limits::default()));
    trace.start(10, false);
    trace.mapped(5, 10, BASE, "/lib/old.so");
    let memory = |trace: &mut Trace, time: u64| {
        trace.event(time, 10, EventKind::Memory(Box::new(totals(1))));
    };
    memory(&mut trace, 10);
    trace.mapped(11, 10, 2 * BASE, "/bin/new");
    trace.exec(12, 10);
    memory(&mut trace, 13);
    let regions = trace.row(10).regions;
    let paths: Vec<_> = regions.iter().map(|one| one.path.as_deref()).collect();
    assert_eq!(paths, [Some("/bin/new")]);
}
