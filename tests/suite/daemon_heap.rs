//! Heap probes of the daemon: those that are chosen are counted, and nobody else is touched.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use memtrace::report::document::{Document, Process};
use memtrace_tests::child::deadline;
use memtrace_tests::daemon::Daemon;
use memtrace_tests::steps::{ALLOCATIONS, EARLY, FREES, LIVE_BYTES, REALLOCATIONS, Steps};
use memtrace_tests::workload::workload;
use nix::sys::signal::Signal;

fn steps(daemon: &Daemon) -> Steps {
    let steps = Steps::of(daemon.cgroup.holds(&mut Command::new(workload("steps.c"))));
    daemon.line(steps.pid(), |_| true);
    steps
}

#[track_caller]
fn heap(daemon: &Daemon, words: &[&str]) -> String {
    let told = daemon.ask(&[&["heap"], words].concat());
    told.exited(0);
    told.output()
}

/// Allocations, reallocations, frees and live bytes.
#[track_caller]
fn counts(process: &Process) -> [u64; 4] {
    let heap = process.heap.as_ref().unwrap_or_else(|| {
        panic!("{}: {:?}", process.pid, process.heap_reason);
    });
    assert_eq!((heap.invalid_frees, heap.double_frees), (Some(0), Some(0)));
    [
        heap.allocations,
        heap.reallocations,
        heap.frees,
        heap.live_bytes,
    ]
}

fn rounds(count: u64) -> [u64; 4] {
    [ALLOCATIONS, REALLOCATIONS, FREES, LIVE_BYTES].map(|each| each * count)
}

#[test]
fn who_is_chosen_is_counted_and_nobody_else_is_touched() {
    let daemon = Daemon::start();
    let (mut chosen, mut other) = (steps(&daemon), steps(&daemon));
    let pid = chosen.pid().to_string();
    assert_eq!(chosen.breakpoints(), 0);
    let told = heap(&daemon, &["on", "-p", &pid]);
    assert_eq!(told, "heap probes are on 1 process\n");
    assert!(chosen.breakpoints() > 0);
    assert_eq!(other.breakpoints(), 0);
    for _ in 0..2 {
        chosen.round();
        other.round();
    }
    chosen.free_early();
    let process = daemon.process_now(chosen.pid());
    let mut expected = rounds(2);
    expected[2] += EARLY;
    assert_eq!(counts(&process), expected);
    assert!(
        process.heap_reason.is_some(),
        "blocks of before are not known"
    );
    let unseen = daemon.process_now(other.pid());
    assert_eq!(unseen.heap, None);
    let reason = unseen.heap_reason.expect("a reason");
    assert!(reason.contains("memtrace heap on"), "{reason}");

    let leaks = daemon.ask(&["leaks", "-p", &pid, "--format", "json-line"]);
    leaks.exited(0);
    let sites = leaks.object()["processes"][0]["leaks"].clone();
    let site = &sites[0];
    assert_eq!(site["bytes"], 2 * LIVE_BYTES);
    let named = site["stack"].as_array().expect("a stack");
    let has = |name: &str| named.iter().any(|frame| frame["function"] == name);
    assert!(has("one_round") && has("main"), "{site}");

    heap(&daemon, &["off", "-p", &pid]);
    assert_eq!(chosen.breakpoints(), 0);
    assert_eq!(daemon.process_now(chosen.pid()).heap, None);
    daemon.ask(&["heap", "off", "-p", &pid]).exited(1);
    // What happened meanwhile is not known: the counts begin anew.
    chosen.round();
    heap(&daemon, &["on", "-p", &pid]);
    chosen.round();
    assert_eq!(counts(&daemon.process_now(chosen.pid())), rounds(1));
    chosen.end(0);
    other.end(0);
}

#[test]
fn a_command_is_chosen_when_it_starts_with_what_it_forks() {
    let program = workload("steps.c");
    let name = program
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name");
    let daemon = Daemon::with(&format!("[[heap]]\ncommand = {name:?}\n"));
    let mut parent = steps(&daemon);
    let until = deadline();
    while parent.breakpoints() == 0 {
        assert!(Instant::now() < until, "it was not chosen");
    }
    // The daemon answers when all of them are in place.
    daemon.ps();
    parent.round();
    let process = loop {
        let process = daemon.process_now(parent.pid());
        if process.heap.is_some() {
            break process;
        }
        assert!(Instant::now() < until, "{:?}", process.heap_reason);
    };
    let [allocations, reallocations, frees, _] = counts(&process);
    assert_eq!([reallocations, frees], [REALLOCATIONS, FREES]);
    // Chosen at its exec, it may have been ahead: then it says so.
    match &process.heap_reason {
        None => assert_eq!(allocations, ALLOCATIONS + EARLY),
        Some(reason) => assert!(
            (ALLOCATIONS..=ALLOCATIONS + EARLY).contains(&allocations),
            "{reason}"
        ),
    }
    parent.fork();
    parent.round();
    parent.round();
    let document = daemon.report(&[]);
    let is_child = |process: &&Process| process.parent_pid == parent.pid();
    let child = document.processes.iter().find(is_child).expect("a child");
    let [allocations, reallocations, frees, _] = counts(child);
    assert_eq!([allocations, reallocations, frees], rounds(2)[..3]);
    heap(&daemon, &["off", "--command", name]);
    assert_eq!(parent.breakpoints(), 0, "the child has none left");
    parent.end(0);
}

/// Runs `program` when it is told to, with its own stdin and stdout.
fn launcher(daemon: &Daemon, program: &Path) -> Steps {
    let script = "import os, subprocess, sys\n\
                  print('here', flush=True)\n\
                  os.read(0, 1)\n\
                  sys.exit(subprocess.run(sys.argv[1:]).returncode)\n";
    let mut command = Command::new("/usr/bin/python3");
    let steps = Steps::of(
        daemon
            .cgroup
            .holds(command.args(["-c", script]).arg(program)),
    );
    daemon.line(steps.pid(), |_| true);
    steps
}

#[test]
fn what_a_chosen_process_executes_is_chosen_with_a_cgroup_and_not_with_a_command() {
    let daemon = Daemon::start();
    let program = workload("steps.c");
    let child_of = |parent: &Steps| {
        let document = daemon.report(&[]);
        let mut processes = document.processes.into_iter();
        let is_child = |process: &Process| process.parent_pid == parent.pid();
        processes.find(is_child).expect("a child")
    };
    let unknown = daemon.ask(&["heap", "on", "--user", "memtrace-nobody"]);
    unknown.exited(1);
    assert!(
        unknown
            .one_line()
            .contains("there is no user memtrace-nobody")
    );

    let mut launched = launcher(&daemon, &program);
    let told = heap(&daemon, &["on", "--command", "python3"]);
    assert_eq!(told, "heap probes are on 1 process\n");
    launched.begin();
    launched.round();
    // The exec took the events; breakpoints go with them, or when they are hit.
    launched.round();
    let left = launched.breakpoints();
    launched.round();
    assert!(launched.breakpoints() <= left, "no new ones come");
    let child = child_of(&launched);
    assert_eq!(child.heap, None, "only its parent was chosen");
    launched.end(0);

    let mut launched = launcher(&daemon, &program);
    heap(&daemon, &["on", "--cgroup", &daemon.cgroup.path()]);
    launched.begin();
    launched.round();
    let child = child_of(&launched);
    let mut expected = rounds(1);
    expected[0] += EARLY;
    expected[3] += EARLY * 500;
    assert_eq!(counts(&child), expected);
    assert_eq!(child.heap_reason, None, "seen from its first block on");
    launched.end(0);
}

#[test]
fn over_its_budget_the_daemon_pauses_heap_probes_and_says_so() {
    // Nothing is free.
    let daemon = Daemon::with("[budget]\ncpu_percent = 0.0\n");
    let mut chosen = steps(&daemon);
    let pid = chosen.pid().to_string();
    heap(&daemon, &["on", "-p", &pid]);
    chosen.round();
    let until = deadline();
    while chosen.breakpoints() > 0 {
        assert!(Instant::now() < until, "it was not paused");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let document = daemon.report(&["-p", &pid]);
    let process = &document.processes[0];
    assert_eq!(process.heap, None);
    let reason = process.heap_reason.as_deref().expect("a reason");
    assert!(reason.contains("budget"), "{reason}");
    let whose = format!("(pid {pid}): ");
    let said = |document: &Document| {
        let mut left_out = document.coverage.left_out.iter();
        left_out.any(|one| one.what.contains(&whose) && one.what.contains("0 % are allowed"))
    };
    assert!(said(&document), "{:?}", document.coverage.left_out);
    let text = daemon.ask(&["report", "-p", &pid]).output();
    assert!(text.contains("LEFT OUT since @"), "{text}");
    // The history has it as well, a second later.
    while !said(&daemon.report(&["--since", "1h"])) {
        assert!(Instant::now() < until, "the history does not say it");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    chosen.end(0);
}

#[test]
fn what_a_tiny_buffer_loses_and_what_is_seen_are_what_the_program_did() {
    const ROUNDS: u64 = 20;
    let mut daemon = Daemon::with("ring_buffer = '4KiB'\n");
    let mut chosen = steps(&daemon);
    let pid = chosen.pid().to_string();
    heap(&daemon, &["on", "-p", &pid]);
    // Stopped, the daemon drains nothing.
    daemon.process().signal(Signal::SIGSTOP);
    for _ in 0..ROUNDS {
        chosen.round();
    }
    daemon.process().signal(Signal::SIGCONT);
    let until = deadline();
    loop {
        let document = daemon.report(&["-p", &pid]);
        let lost = |of: &str| {
            let reason = format!("ring_full_{of}");
            document
                .coverage
                .lost_by_reason
                .get(&reason)
                .copied()
                .unwrap_or(0)
        };
        let lost = ["allocation", "reallocation", "free"].map(lost);
        let seen = counts(&document.processes[0]);
        let sums: Vec<u64> = seen
            .iter()
            .zip(lost)
            .map(|(seen, lost)| seen + lost)
            .collect();
        if lost.iter().all(|&lost| lost > 0) && sums == rounds(ROUNDS)[..3] {
            break;
        }
        // What was lost is read once a second.
        assert!(Instant::now() < until, "seen {seen:?}, lost {lost:?}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    chosen.end(0);
}
