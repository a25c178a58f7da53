//! A daemon that measures the latency of a sample of the faults: each is counted all the same.

use std::process::Command;

use memtrace::report::document::Process;
use memtrace_tests::daemon::Daemon;
use memtrace_tests::expect::{number, within};
use memtrace_tests::workload::{tool, workload};

const ONE_IN_EIGHT: &str = "fault_latency_sample = 8";

fn ran(program: &str) -> impl Fn(&Process) -> bool {
    let path = workload(program);
    move |process| process.exe == path.to_str().expect("a path in UTF-8")
}

#[test]
fn faults_of_a_tree_are_those_that_the_kernel_counted() {
    tool("gcc", "gcc");
    let daemon = Daemon::with(ONE_IN_EIGHT);
    let source = daemon
        .scratch
        .write("many.c", super::programs::generated_source(100));
    let object = daemon.scratch.path("many.o");
    let mut command = Command::new(workload("rusage.c"));
    command
        .args(["gcc", "-O1", "-c", "-o"])
        .arg(object)
        .arg(source);
    let finished = daemon.cgroup.run(&mut command);
    finished.exited(0);
    let counted = finished.object();
    let parent = number(&counted, "pid");
    let is_child = |process: &Process| u64::from(process.pid) != parent;
    // The driver, the compiler, the assembler.
    let ended = daemon.ended(3, is_child);
    let seen = ended.iter().map(|process| process.faults.minor).sum();
    // A thread's last faults come after its end is told.
    within(
        0.1,
        seen,
        number(&counted, "minor"),
        "minor faults of the tree",
    );
    let majors: u64 = ended.iter().map(|process| process.faults.major).sum();
    assert_eq!(majors, number(&counted, "major"));
}

#[test]
fn faults_of_threads_are_counted_while_they_run_and_when_they_have_ended() {
    tool("python3", "python3");
    let daemon = Daemon::with(ONE_IN_EIGHT);
    let script = "\
import resource, sys, threading
def work(size): kept.append(bytearray(size))
kept = []
for line in sys.stdin:
    for _ in range(8):
        thread = threading.Thread(target=work, args=(int(line),))
        thread.start(); thread.join()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt, flush=True)
";
    let mut command = Command::new("/usr/bin/python3");
    let mut python = daemon.cgroup.start(command.args(["-c", script]));
    python.send(b"8000000\n");
    let minor: u64 = python.stdout_lines(1).trim().parse().expect("a number");
    // The program's own count has those between fork and the cgroup, too.
    let like = |counted: u64| (minor - 500..minor + 100).contains(&counted);
    daemon.line(python.pid(), |line| like(line.minor));
    let pid = python.pid();
    python.finish().exited(0);
    let ended = daemon.ended(1, |process| process.pid == pid);
    // At its end it gives back and touches some more.
    let last = ended[0].faults.minor;
    assert!(
        (minor - 500..minor + 1000).contains(&last),
        "{last}, {minor} before"
    );
}

/// A sample that prefers short faults, or loses long ones, would tell another mean than the program's own clock.
#[test]
fn the_latencies_of_the_sample_stand_for_all() {
    let daemon = Daemon::with(ONE_IN_EIGHT);
    let mut command = Command::new(workload("rusage.c"));
    command.arg(workload("cost.c"));
    let mut cost = daemon.cgroup.start(command.args(["faults", "4096", "250"]));
    cost.stdout_has("ready");
    cost.send(b"\n");
    let finished = cost.finish();
    finished.exited(0);
    let [told, counted] = &finished.objects()[..] else {
        panic!("{}", finished.output());
    };
    let faults = number(counted, "minor");
    let ended = daemon.ended(1, ran("cost.c"));
    let seen = &ended[0].faults;
    // Huge pages make them few, and a vfork child's first are its parent's program's.
    assert!(
        seen.minor.abs_diff(faults) < 50,
        "{} faults, the kernel counted {faults}",
        seen.minor
    );
    let latency = seen.latency_ns.as_ref().expect("latencies");
    // 2 seconds are some 25 windows.
    let share = latency.count as f64 / faults as f64;
    assert!((0.02..0.5).contains(&share), "{share} of all are timed");
    let mean_ns = (latency.minor_sum + latency.major_sum) / latency.count;
    let own_ns = number(told, "cpu_ns") / faults;
    // The exception's way in and out is the program's time and no latency; what the tracer adds is the program's time.
    assert!(
        mean_ns > own_ns / 4 && latency.p50 < own_ns * 3 / 2,
        "mean {mean_ns} ns, median {} ns; the program's own: {own_ns} ns",
        latency.p50
    );
    let said = daemon.report(&["--since", "1h"]).coverage.left_out;
    assert!(
        said.iter()
            .any(|one| one.what.starts_with("latencies of 7 in 8 faults")),
        "{said:?}"
    );
}
