//! What the daemon says that it costs, which its budget is kept by.

use std::process::Command;

use memtrace_tests::child::Running;
use memtrace_tests::daemon::Daemon;
use memtrace_tests::expect::number;
use memtrace_tests::vm::is_vm;
use memtrace_tests::workload::workload;

#[test]
fn programs_and_traps_cost_what_the_program_that_pays_for_them_takes_longer() {
    let program = workload("cost.c");
    let mut daemon = Daemon::start();
    daemon.stop();
    let mut command = daemon.command();
    let verbose = Running::start(command.arg("-vv"));
    verbose.stderr_has("msg=\"ready\"");
    let mut pairs = Command::new(&program);
    pairs.args(["pairs", "64", "1", "0", "2000000"]);
    let mut pairs = daemon.cgroup.start(&mut pairs);
    let pid = pairs.pid();
    daemon.line(pid, |_| true);
    daemon
        .ask(&["heap", "on", "-p", &pid.to_string()])
        .exited(0);
    pairs.send(b"\n");
    let told = pairs.finish();
    told.exited(0);
    // A malloc and free takes some nanoseconds by itself: this is what was added.
    let added_ns = number(&told.object(), "cpu_ns") as f64;
    // Its costs are read once it is told that the program ended.
    daemon.ended(1, |one| program.to_str() == Some(one.exe.as_str()));
    verbose.signal(nix::sys::signal::Signal::SIGTERM);
    let said = verbose.finish().messages();
    let sums = said.split("its programs took ").skip(1).map(|rest| {
        let number = rest.split(' ').next().expect("a number");
        number.parse::<f64>().expect("a number")
    });
    let sums: Vec<f64> = sums.collect();
    let programs_ns = sums.last().expect("a last one") - sums[0];
    // What a trap is taken to cost is that of a real processor.
    let least = if is_vm() { 0.0 } else { 0.5 };
    assert!(
        (least * added_ns..1.2 * added_ns).contains(&programs_ns),
        "{programs_ns} of {added_ns} ns"
    );
}
