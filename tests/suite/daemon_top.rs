//! `memtrace top` in a terminal of its own.

use std::process::Command;

use memtrace_tests::Running;
use memtrace_tests::daemon::Daemon;
use memtrace_tests::memtrace;
use memtrace_tests::steps::Steps;
use memtrace_tests::workload::{tool, workload};

#[test]
fn top_shows_processes_looks_into_one_and_gives_the_terminal_back() {
    let daemon = Daemon::start();
    let steps = Steps::of(daemon.cgroup.holds(&mut Command::new(workload("steps.c"))));
    let line = daemon.line(steps.pid(), |_| true);
    let top = memtrace::<&str>(&[]);
    let socket = daemon.socket();
    let command = format!(
        "stty rows 24 cols 80; stty -g; {} top --socket {}; echo status $?; stty -g",
        top.get_program().display(),
        socket.display()
    );
    // script(1) gives it a pseudo-terminal, and its input and output to us.
    let mut script = Command::new(tool("script", "bsdutils"));
    let mut terminal = Running::start(script.args(["-q", "-f", "-c", &command, "/dev/null"]));
    terminal.stdout_has("COMMITTED");
    terminal.stdout_has(&line.comm[..13]);
    terminal.send(b"\r");
    terminal.stdout_has(&format!("(pid {})", steps.pid()));
    terminal.send(b"m");
    terminal.stdout_has("mappings");
    terminal.stdout_has("libc.so.6");
    terminal.send(b"q");
    terminal.stdout_has("status 0");
    let lines = terminal.finish().output();
    let settings: Vec<&str> = lines
        .lines()
        .map(str::trim)
        .filter(|line| line.contains(":bf:"))
        .collect();
    assert_eq!(settings.len(), 2, "{lines}");
    assert_eq!(settings[0], settings[1], "the terminal is as it was");
    steps.end(0);
}

#[test]
fn top_needs_a_terminal() {
    let told = memtrace_tests::child::run(&mut memtrace(&["top"]));
    told.exited(1);
    assert!(
        told.one_line().contains("memtrace ps"),
        "{}",
        told.messages()
    );
}
