//! Faults are those that the kernel counted, and each has a latency.

use std::time::{Duration, Instant};

use memtrace::report::document::{Faults, Process};
use memtrace_tests::child::deadline;
use memtrace_tests::expect::{number, within};
use memtrace_tests::workload::{tool, workload};
use memtrace_tests::{Running, Scratch, Traced, memtrace, trace, trace_with};
use serde_json::Value;

fn faults(arguments: &[&str]) -> (Traced, Value) {
    let program = workload("faults.c");
    let mut command = vec![program.to_str().expect("a path in UTF-8")];
    command.extend(arguments);
    let traced = trace(&command);
    traced.finished.exited(0);
    let counted = traced.finished.object();
    (traced, counted)
}

/// Faults whose latency could not be counted, as memtrace names them.
fn untimed(traced: &Traced) -> u64 {
    traced
        .document
        .coverage
        .lost_by_reason
        .get("fault_histogram_missing")
        .copied()
        .unwrap_or(0)
}

/// Asserts what holds for the faults of any process.
fn assert_whole(faults: &Faults, untimed: u64) {
    let latency = faults.latency_ns.as_ref().expect("latencies");
    let total = faults.minor + faults.major;
    assert!(
        latency.count <= total && latency.count + untimed >= total,
        "{} of {total} timed",
        latency.count
    );
    assert_eq!(
        latency
            .buckets
            .iter()
            .map(|bucket| bucket.count)
            .sum::<u64>(),
        latency.count,
        "the histogram"
    );
    within(
        0.5,
        faults.user + faults.kernel,
        total,
        "user and kernel mode",
    );
    let by_kind = faults
        .by_kind
        .values()
        .map(|kind| kind.minor + kind.major)
        .sum::<u64>();
    assert!(by_kind <= total, "{by_kind} by kind of {total}");
    let percentiles = [
        latency.min,
        latency.p50,
        latency.p90,
        latency.p99,
        latency.p999,
        latency.max,
    ];
    assert!(percentiles.is_sorted(), "{percentiles:?}");
    assert!(
        latency.min <= latency.mean && latency.mean <= latency.max,
        "{latency:?}"
    );
}

#[test]
fn minor_faults_equal_the_kernels_count() {
    let (traced, counted) = faults(&["anonymous", "512"]);
    let faults = &traced.first().faults;
    within(
        0.5,
        faults.minor + faults.major,
        number(&counted, "minor") + number(&counted, "major"),
        "faults",
    );
    within(
        1.0,
        faults.by_kind["anonymous"].minor,
        (512 << 20) / 4096,
        "anonymous faults",
    );
    assert_whole(faults, untimed(&traced));
}

#[test]
fn the_sum_of_minor_latencies_is_within_the_system_time() {
    let (traced, counted) = faults(&["anonymous", "1024"]);
    let latency = traced
        .first()
        .faults
        .latency_ns
        .as_ref()
        .expect("latencies");
    // The kernel splits user and system time by the tick: ten per cent is its error, not memtrace's.
    let system = number(&counted, "system_ns");
    assert!(
        latency.minor_sum <= system + system / 10,
        "{} ns in faults, {system} ns in the system",
        latency.minor_sum
    );
    assert!(
        latency.minor_sum >= latency.count * latency.min,
        "{latency:?}"
    );
}

#[test]
fn faults_taken_in_kernel_mode_are_counted_as_such() {
    let (traced, counted) = faults(&["kernel", "256"]);
    let faults = &traced.first().faults;
    within(
        0.5,
        faults.minor + faults.major,
        number(&counted, "minor") + number(&counted, "major"),
        "faults",
    );
    within(
        1.0,
        faults.kernel,
        (256 << 20) / 4096,
        "faults in copy_to_user",
    );
    within(
        1.0,
        traced.first().address_space.by_kind["anonymous"].committed_bytes,
        256 << 20,
        "committed by them",
    );
    assert_whole(faults, untimed(&traced));
}

#[test]
fn a_file_whose_pages_were_dropped_gives_major_faults() {
    let scratch = Scratch::on_disk();
    let file = scratch.write("data", vec![b'x'; 64 << 20]);
    let (traced, counted) = faults(&["file", "64", file.to_str().expect("a path in UTF-8")]);
    let majors = number(&counted, "major");
    assert!(
        majors >= 1000,
        "the kernel counts {majors} major faults: is target/ on a disk?"
    );
    let faults = &traced.first().faults;
    assert_eq!(faults.major, majors);
    within(
        1.0,
        faults.by_kind["file"].major,
        1024,
        "major faults in the file",
    );
    let latency = faults.latency_ns.as_ref().expect("latencies");
    assert!(
        latency.major_sum > 0 && latency.max >= latency.major_sum / majors,
        "{latency:?}"
    );
    assert_whole(faults, untimed(&traced));
}

/// Runs a command below a parent that reads the kernel's counts for the whole tree, and compares the sums.
fn assert_tree(options: &[&str], command: &[&str]) -> Traced {
    let parent = workload("rusage.c");
    let mut whole = vec![parent.to_str().expect("a path in UTF-8")];
    whole.extend(command);
    let traced = trace_with(options, &whole);
    traced.finished.exited(0);
    let counted = traced.finished.object();
    assert_eq!(
        number(&counted, "status"),
        0,
        "{}",
        traced.finished.messages()
    );
    let parent = number(&counted, "pid");
    let children = || {
        traced
            .document
            .processes
            .iter()
            .filter(|process| u64::from(process.pid) != parent)
    };
    let sum = |count: fn(&Process) -> u64| children().map(count).sum::<u64>();
    let seen = sum(|process| process.faults.minor + process.faults.major);
    // Some faults have no registers and so no event: reading the arguments of an exec, a page populated.
    within(
        0.5,
        seen,
        number(&counted, "minor") + number(&counted, "major"),
        "faults of the tree",
    );
    for process in children() {
        assert_whole(&process.faults, untimed(&traced));
    }
    traced
}

#[test]
fn the_faults_of_an_interpreter_equal_the_kernels_count() {
    tool("python3", "python3");
    let script = "data = [bytes(5000) for _ in range(30000)]";
    assert_tree(&[], &["/usr/bin/python3", "-c", script]);
}

#[test]
fn the_faults_of_a_compilers_tree_equal_the_kernels_count() {
    tool("gcc", "gcc");
    let scratch = Scratch::new();
    let source = scratch.write("many.c", super::programs::generated_source(300));
    let object = scratch.path("many.o");
    let path = |path: &std::path::Path| path.to_str().expect("a path in UTF-8").to_owned();
    // The compiler's millions of allocations are another test's matter.
    let options = ["--no-heap"];
    let traced = assert_tree(
        &options,
        &["gcc", "-O2", "-c", &path(&source), "-o", &path(&object)],
    );
    assert_eq!(traced.running("cc1").len(), 1);
}

/// Runs a shell without privileges; `faults` and `set_uid` are the programs of these names for it, the latter set-uid.
fn shell_of_nobody(scratch: &Scratch, script: &str) -> Vec<String> {
    tool("setpriv", "util-linux");
    scratch.copy(&workload("faults.c"), "faults", 0o755);
    scratch.copy(&workload("faults.c"), "set_uid", 0o4755);
    let directory = scratch.path("");
    let script = format!("cd {} && {script}", directory.display());
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let words = [&["setpriv"], &nobody[..], &["sh", "-c", &script]].concat();
    words.into_iter().map(str::to_owned).collect()
}

/// The kernel ends what is scoped to a process when it gains privileges.
#[test]
fn the_faults_of_a_program_that_gains_privileges_have_latencies() {
    let scratch = Scratch::new();
    let script = "./set_uid anonymous 512 & ./faults anonymous 256; wait";
    let traced = trace(&shell_of_nobody(&scratch, script));
    traced.finished.exited(0);
    traced.nothing_lost();
    for counted in traced.finished.objects() {
        let process = traced.process(number(&counted, "pid"));
        let faults = &process.faults;
        let total = faults.minor + faults.major;
        let kernels = number(&counted, "minor") + number(&counted, "major");
        within(0.5, total, kernels, &process.exe);
        let latency = faults.latency_ns.as_ref().expect("latencies");
        let system = number(&counted, "system_ns");
        assert!(
            latency.minor_sum <= system + system / 10,
            "{}: {} ns in faults, {system} ns in the system",
            process.exe,
            latency.minor_sum
        );
        // Until its exec is known to memtrace, its first faults have no end; other processes miss none.
        let gained = process.exe.ends_with("set_uid");
        let least = if gained { total * 95 / 100 } else { total };
        assert!(
            (least..=total).contains(&latency.count),
            "{}: {} of {total} timed",
            process.exe,
            latency.count
        );
        assert_eq!(process.heap.is_none(), gained, "{}", process.exe);
    }
}

/// Others pay for events of all CPUs: they are open no longer than they are needed.
#[test]
fn events_of_all_cpus_go_with_the_program_that_needed_them() {
    let scratch = Scratch::new();
    let script = "echo ready; read a; ./set_uid anonymous 1; read b";
    let report = scratch.path("report.json");
    let mut command = memtrace(&["run", "--no-heap", "--format", "json", "--report-file"]);
    command.arg(&report).arg("--");
    let mut run = Running::start(command.args(shell_of_nobody(&scratch, script)));
    let descriptors = format!("/proc/{}/fd", run.pid());
    let events = || {
        let descriptors = std::fs::read_dir(&descriptors);
        let links = descriptors.expect("its descriptors").filter_map(Result::ok);
        let names = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        names
            .filter(|name| name.ends_with("anon_inode:[perf_event]"))
            .count()
    };
    let deadline = deadline();
    let until = |wanted: &dyn Fn(usize) -> bool, what: &str| loop {
        let now = events();
        if wanted(now) {
            return now;
        }
        assert!(Instant::now() < deadline, "{what}: {now} events");
        std::thread::sleep(Duration::from_millis(5));
    };
    run.stdout_has("ready");
    let own = events();
    run.send(b"a\n");
    until(&|now| now > own, "none was opened for set_uid");
    until(&|now| now == own, "they stay");
    run.send(b"b\n");
    run.finish().exited(0);
}
