//! A traced program behaves as if it were not traced.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use memtrace_tests::binary::{Attached, heap};
use memtrace_tests::child::{deadline, run};
use memtrace_tests::expect::number;
use memtrace_tests::oracle::same_as_untraced;
use memtrace_tests::steps::{Steps, assert_rounds};
use memtrace_tests::workload::{build, build_go, library, tool, workload};
use memtrace_tests::{Finished, Running, Scratch, Traced, trace};
use nix::sys::signal::Signal;

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

fn same(source: &str, arguments: &[&str]) -> (Finished, Traced) {
    let mut command = vec![text(&workload(source))];
    command.extend(arguments.iter().map(|&argument| argument.to_owned()));
    same_as_untraced(&command)
}

#[test]
fn a_bad_alloc_is_still_caught() {
    let (untraced, traced) = same("bad_alloc.cpp", &["200"]);
    untraced.exited(0);
    assert_eq!(number(&untraced.object(), "caught"), 1000);
    let heap = traced.heap();
    assert!(
        heap.allocations >= 200,
        "those that succeed are counted: {heap:?}"
    );
}

#[test]
fn a_bad_alloc_is_still_caught_with_other_allocators() {
    for (library, package) in [
        ("-ltcmalloc_minimal", "libgoogle-perftools-dev"),
        ("-ljemalloc", "libjemalloc-dev"),
        ("-static", "g++"),
    ] {
        let program = build(
            "bad_alloc.cpp",
            "g++",
            &["-Wl,--no-as-needed", library],
            package,
        );
        let (untraced, _) = same_as_untraced(&[text(&program), "50".to_owned()]);
        assert_eq!(
            number(&untraced.exited(0).object(), "caught"),
            250,
            "{library}"
        );
    }
}

#[test]
fn fork_vfork_clone_posix_spawn_threads_and_system_succeed() {
    let child = text(&workload("counts.c"));
    let (untraced, traced) = same("spawners.c", &["/bin/true", &child]);
    let failed = traced.finished.object();
    for way in ["fork", "vfork", "clone", "spawn", "thread", "system"] {
        assert_eq!(
            (number(&failed, way), number(&untraced.object(), way)),
            (0, 0),
            "{way}"
        );
    }
    // Without exec there is one process for each fork and clone, and none for those that share its memory for good.
    assert!(
        traced.document.processes.len() > 100,
        "{}",
        traced.document.processes.len()
    );
}

/// The child's allocator is one that memtrace could not foresee: a tracer that holds it would be seen.
#[test]
fn a_parent_that_waits_for_stops_sees_none() {
    let scratch = Scratch::new();
    let foreign = build("counts.c", "musl-gcc", &["-static"], "musl-tools");
    let foreign = text(&scratch.copy(&foreign, "foreign", 0o755));
    for child in [vec!["/bin/true"], vec!["sh", "-c", &foreign]] {
        let (untraced, traced) = {
            let stops = text(&workload("stops.c"));
            let command: Vec<&str> = std::iter::once(stops.as_str()).chain(child).collect();
            (
                run(Command::new(command[0]).args(&command[1..])),
                trace(&command),
            )
        };
        assert_eq!(number(&untraced.exited(0).object(), "ends"), 20);
        assert_eq!(
            traced.finished.object(),
            untraced.object(),
            "stops, continues, ends and signals"
        );
    }
}

#[test]
fn a_job_control_shell_sees_no_stops() {
    let child = text(&workload("set_uid.c"));
    let script =
        format!("set -m; for i in 1 2 3; do {child} >/dev/null & wait $!; echo $?; done; jobs");
    tool("bash", "bash");
    same_as_untraced(&["bash", "-c", &script]);
}

#[test]
fn epoll_and_sleeps_are_not_interrupted_while_libraries_are_loaded() {
    let mimalloc = library("libmimalloc.so.2", "libmimalloc2.0");
    let (_, traced) = same("interrupted.c", &[&mimalloc, "libm.so.6", "libstdc++.so.6"]);
    assert_eq!(number(&traced.finished.object(), "interruptions"), 0);
}

#[test]
fn epoll_and_sleeps_are_not_interrupted_by_attaching() {
    let mut command = Command::new(workload("interrupted.c"));
    let mut interrupted = Running::start(command.args(["libm.so.6", "libstdc++.so.6"]));
    let trace = Attached::to(interrupted.pid());
    interrupted.send(b"123");
    let finished = interrupted.finish();
    trace.wait();
    assert_eq!(number(&finished.exited(0).object(), "interruptions"), 0);
}

/// A kernel drops what is scoped to a process when it gains privileges: the report is right or says that it is not.
#[test]
fn a_set_uid_child_runs_with_its_privileges() {
    let scratch = Scratch::new();
    let program = text(&scratch.copy(&workload("set_uid.c"), "set_uid", 0o4755));
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    tool("setpriv", "util-linux");
    let (_, traced) = same_as_untraced(&[&nobody[..], &[&program]].concat());
    let said = traced.finished.exited(0).object();
    assert_eq!(
        (number(&said, "real"), number(&said, "effective")),
        (65534, 0)
    );
    let process = traced.process(number(&said, "pid"));
    match process.heap {
        Some(heap) => assert!(
            heap.allocations >= 500 && heap.live_blocks >= 500,
            "{heap:?}"
        ),
        None => assert!(process.heap_reason.is_some(), "no heap and no reason"),
    }
    assert!(
        process.faults.minor >= 450,
        "its pages were faulted in: {}",
        process.faults.minor
    );
}

#[test]
fn strict_seccomp_lets_a_traced_program_live() {
    let (untraced, _) = same("seccomp.c", &["strict"]);
    untraced.exited(7);
}

#[test]
fn a_seccomp_filter_that_kills_lets_a_traced_program_live() {
    let (untraced, _) = same("seccomp.c", &["filter"]);
    untraced.exited(7);
}

#[test]
fn a_longjmp_out_of_a_handler_leaves_program_and_counts_right() {
    let (untraced, traced) = same("jump.c", &["1000"]);
    let counted = untraced.exited(0).object();
    assert_eq!(number(&counted, "jumped"), 1000);
    let heap = traced.heap();
    assert_eq!(heap.allocations, number(&counted, "allocations"));
    assert_eq!(heap.frees, number(&counted, "frees"));
    assert_eq!(
        (heap.reallocations, heap.invalid_frees, heap.double_frees),
        (0, Some(0), Some(0)),
        "none returned"
    );
}

#[test]
fn go_with_cgo_runs_and_its_c_allocations_are_counted() {
    let program = text(&build_go("cgo.go"));
    let (untraced, traced) = same_as_untraced(&[program, "20000".to_owned()]);
    assert_eq!(number(&untraced.exited(0).object(), "pairs"), 20_000);
    let heap = traced.heap();
    assert!(
        heap.allocations >= 20_000 && heap.frees >= 20_000,
        "{heap:?}"
    );
    assert!(heap.live_blocks < 1000, "pairs leave nothing: {heap:?}");
}

#[test]
fn gdb_works_beside_memtrace() {
    let mut steps = Steps::start(5);
    let trace = Attached::to(steps.pid());
    steps.round();
    let mut gdb = Command::new(tool("gdb", "gdb"));
    gdb.args([
        "-nx",
        "-batch",
        "-p",
        &steps.pid().to_string(),
        "-ex",
        "backtrace",
        "-ex",
        "detach",
    ]);
    let finished = run(&mut gdb);
    assert!(
        finished.exited(0).output().contains("main"),
        "{}{}",
        finished.output(),
        finished.messages()
    );
    steps.round();
    let traced = trace.stop();
    steps.round();
    steps.end(5);
    assert_rounds(&traced, 2);
}

/// bpftrace places its probes by inode, on a copy of libc that only this test's process maps.
#[test]
fn bpftrace_on_the_same_symbol_sees_and_is_seen_right() {
    let scratch = Scratch::new();
    let libc = scratch.copy(
        Path::new(&library("libc.so.6", "libc6")),
        "libc.so.6",
        0o755,
    );
    let mut command = Command::new(workload("steps.c"));
    let mut steps = Steps::of(command.arg("5").env("LD_LIBRARY_PATH", scratch.path("")));
    let maps =
        std::fs::read_to_string(format!("/proc/{}/maps", steps.pid())).expect("the process runs");
    assert!(maps.contains(&text(&libc)), "the copy is what it maps");

    let probe = format!(
        "uprobe:{}:malloc /@hits < 1/ {{ @hits = 1; printf(\"hit\\n\"); }}",
        libc.display()
    );
    let other = Running::start(
        Command::new(tool("bpftrace", "bpftrace")).args(["-B", "none", "-e", &probe]),
    );
    let deadline = deadline();
    while !other.stdout_has_now("hit") {
        assert!(Instant::now() < deadline, "bpftrace does not attach");
        steps.round();
    }
    let trace = Attached::to(steps.pid());
    steps.round();
    steps.round();
    other.signal(Signal::SIGINT);
    other.finish().exited(0);
    steps.round();
    let traced = trace.stop();
    steps.round();
    steps.end(5);
    assert_rounds(&traced, 3);
}

#[test]
fn standard_streams_and_descriptors_are_the_commands_own() {
    let script = "cat; ls -l /proc/self/fd | wc -l; echo problem >&2; ulimit -a; env | sort | grep -v ^_=; exit 11";
    let command = ["sh", "-c", script];
    let (untraced, _) = same_as_untraced(&command);
    untraced.exited(11);
    let mut memtrace = memtrace_tests::memtrace(&["run", "--report-file", "/dev/null", "--"]);
    let mut traced = Running::start(memtrace.args(["cat"]));
    traced.send(b"through\n");
    assert_eq!(
        traced.finish().exited(0).output(),
        "through\n",
        "stdin reaches the command"
    );
}

#[test]
fn the_signal_mask_and_dispositions_are_the_commands_own() {
    same_as_untraced(&[
        "sh",
        "-c",
        "grep -E '^(Sig|Shd|Cap|NoNewPrivs|Seccomp|Threads)' /proc/self/status",
    ]);
}

#[test]
fn a_forked_heap_is_the_parents_as_long_as_nobody_frees() {
    let child = trace(&[text(&workload("children.c")).as_str(), "3", "fork"]);
    let parent = number(&child.finished.object(), "pid");
    for process in &child.document.processes {
        let extra = if u64::from(process.pid) == parent {
            0
        } else {
            10
        };
        assert_eq!(heap(process).live_blocks, 5 + extra);
    }
}
