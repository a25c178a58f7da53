//! What can be traced, and what is refused in one line rather than reported as zeros.

use std::fs;
use std::process::Command;
use std::time::Instant;

use memtrace_tests::binary::memtrace;
use memtrace_tests::child::{deadline, run};
use memtrace_tests::workload::{tool, workload};
use memtrace_tests::{Running, Scratch};

/// The state letter of /proc/PID/stat.
fn state(pid: u64) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn a_zombie_is_refused() {
    // Nobody but this test can wait for it.
    let mut child = Command::new("true").spawn().expect("start true");
    let zombie = child.id();
    let deadline = deadline();
    while state(zombie.into()) != Some('Z') {
        assert!(Instant::now() < deadline, "pid {zombie} never ended");
        std::thread::yield_now();
    }
    let refused = run(&mut memtrace(&["attach", "-p", &zombie.to_string()]));
    child.wait().expect("wait for true");
    let line = refused.exited(1).one_line();
    assert!(line.contains(&zombie.to_string()), "{line}");
}

#[test]
fn the_id_of_a_thread_is_refused_and_its_process_named() {
    let busy = Running::start(Command::new(workload("busy.c")).arg("2"));
    let pid = busy.pid();
    let deadline = deadline();
    let thread = loop {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
        let ids = tasks
            .flatten()
            .filter_map(|task| task.file_name().into_string().ok());
        if let Some(thread) = ids.into_iter().find(|id| *id != pid.to_string()) {
            break thread;
        }
        assert!(Instant::now() < deadline, "no thread was made");
    };
    let line = run(&mut memtrace(&["attach", "-p", &thread]))
        .exited(1)
        .one_line();
    assert!(
        line.contains(&thread) && line.contains(&pid.to_string()),
        "{line}"
    );
}

#[test]
fn a_process_named_twice_is_reported_once() {
    let busy = Running::start(Command::new(workload("busy.c")).arg("1"));
    let pid = busy.pid().to_string();
    let scratch = Scratch::new();
    let report = scratch.path("report.json");
    let mut command = memtrace(&[
        "attach",
        "-p",
        &pid,
        "-p",
        &pid,
        "--duration",
        "100ms",
        "--format",
        "json",
    ]);
    run(command.arg("--report-file").arg(&report)).exited(0);
    let document: serde_json::Value =
        serde_json::from_slice(&fs::read(&report).expect("a report")).expect("JSON");
    let rows = document["processes"].as_array().expect("processes");
    assert_eq!(rows.len(), 1);
    assert!(rows[0]["heap"].is_object(), "{}", rows[0]["heap_reason"]);
}

/// There, pids are not the ones that the kernel's programs see: nothing would be traced.
#[test]
fn a_pid_namespace_of_its_own_is_refused() {
    let memtrace = memtrace(&["run", "true"]);
    let mut inside = Command::new(tool("unshare", "util-linux"));
    inside.args(["--pid", "--fork", "--mount-proc"]);
    inside.arg(memtrace.get_program()).args(memtrace.get_args());
    let line = run(&mut inside).exited(125).one_line();
    assert!(line.contains("namespace"), "{line}");
}
