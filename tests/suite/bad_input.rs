//! Bad input: one clear line, the exit status of the contract, and nobody harmed.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use memtrace_tests::binary::{memtrace, path, trace};
use memtrace_tests::child::run;
use memtrace_tests::oracle::uprobes_of;
use memtrace_tests::steps::Steps;
use memtrace_tests::workload::{tool, workload};
use memtrace_tests::{Running, Scratch};
use nix::sys::signal::Signal;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// memtrace as a user without privileges.
fn as_nobody(scratch: &Scratch, arguments: &[&str]) -> Command {
    let binary = scratch.copy(&path(), "memtrace", 0o755);
    let mut command = Command::new(tool("setpriv", "util-linux"));
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(binary)
        .args(arguments);
    command
}

#[test]
fn without_root_run_fails_before_the_command_starts() {
    let scratch = Scratch::new();
    let finished = run(&mut as_nobody(&scratch, &["run", "--", "echo", "started"]));
    finished.exited(125).one_line();
    assert!(finished.stdout.is_empty(), "the command did not run");
}

#[test]
fn without_root_attach_fails() {
    let scratch = Scratch::new();
    let steps = Steps::start(0);
    run(&mut as_nobody(
        &scratch,
        &["attach", "-p", &steps.pid().to_string()],
    ))
    .exited(1)
    .one_line();
    steps.end(0);
}

#[test]
fn no_such_process() {
    // A process that has ended and was waited for: its number is free, and not given again soon.
    let gone = Running::start(&mut Command::new("true"));
    let pid = gone.pid().to_string();
    gone.finish();
    let line = run(&mut memtrace(&["attach", "-p", &pid]))
        .exited(1)
        .one_line();
    assert!(line.contains(&pid), "the line names the process: {line}");
}

#[test]
fn a_command_that_is_not_found() {
    let line = run(&mut memtrace(&["run", "--", "no-such-command-anywhere"]))
        .exited(127)
        .one_line();
    assert!(line.contains("no-such-command-anywhere"), "{line}");
    run(&mut memtrace(&["run", "--", "/no/such/path"]))
        .exited(127)
        .one_line();
}

#[test]
fn a_command_that_cannot_be_executed() {
    let scratch = Scratch::new();
    let data = scratch.write("data", "no program");
    let line = run(&mut memtrace(&["run", "--", text(&data)]))
        .exited(126)
        .one_line();
    assert!(line.contains(text(&data)), "{line}");
    run(&mut memtrace(&["run", "--", "/tmp"]))
        .exited(126)
        .one_line();
    let garbage = scratch.copy(
        &scratch.write("bytes", b"\x7fELF no program"),
        "garbage",
        0o755,
    );
    run(&mut memtrace(&["run", "--", text(&garbage)]))
        .exited(126)
        .one_line();
}

#[test]
fn wrong_usage_of_any_subcommand_is_2() {
    // Nothing at all is answered with the help.
    let finished = run(&mut memtrace::<&str>(&[]));
    finished.exited(2);
    assert!(
        finished.messages().contains("Usage:") && finished.stdout.is_empty(),
        "{finished:?}"
    );
    let wrong: &[&[&str]] = &[
        &["no-such-subcommand"],
        &["run"],
        &["run", "--no-such-option", "--", "true"],
        &["run", "--format", "no-such-format", "--", "true"],
        &["run", "--fail-on", "nonsense", "--", "true"],
        &["attach"],
        &["attach", "-p", "word"],
        &["attach", "-p", "1", "--duration", "soon"],
        &["report", "no-such-kind", "--from", "x"],
        &["diff", "one"],
        &["explain", "--no-such-option"],
        &["doctor", "no-such-argument"],
    ];
    for arguments in wrong {
        let finished = run(&mut memtrace(arguments));
        finished.exited(2).one_line();
        assert!(finished.stdout.is_empty(), "{finished:?}");
    }
}

#[test]
fn the_commands_own_status_is_passed_on() {
    for status in [0, 1, 3, 77, 125, 255] {
        let traced = trace(&["sh", "-c", &format!("exit {status}")]);
        traced.finished.exited(status);
        assert_eq!(traced.first().exit.and_then(|exit| exit.code), Some(status));
    }
}

#[test]
fn a_signal_is_passed_on_as_128_and_its_number() {
    for signal in [
        Signal::SIGTERM,
        Signal::SIGKILL,
        Signal::SIGSEGV,
        Signal::SIGINT,
    ] {
        let number = signal as i32;
        let traced = trace(&["sh", "-c", &format!("kill -{number} $$")]);
        traced.finished.exited(128 + number);
        assert_eq!(
            traced.first().exit.and_then(|exit| exit.signal),
            Some(number)
        );
    }
}

#[test]
fn a_recording_that_is_not_there() {
    let line = run(&mut memtrace(&["report", "--from", "/no/such/recording"]))
        .exited(1)
        .one_line();
    assert!(line.contains("/no/such/recording"), "{line}");
    run(&mut memtrace(&["report", "--from", "/tmp"]))
        .exited(1)
        .one_line();
}

#[test]
fn a_recording_that_cannot_be_made() {
    let finished = run(&mut memtrace(&[
        "run",
        "-o",
        "/no/such/directory/file",
        "--",
        "echo",
        "started",
    ]));
    finished.exited(125).one_line();
    assert!(finished.stdout.is_empty(), "the command did not run");
}

/// The trace failed, the command did not: it ran to its end.
#[test]
fn a_full_disk_under_the_recording() {
    let program = workload("counts.c");
    let report = Scratch::new();
    let mut command = memtrace(&["run", "-o", "/dev/full", "--report-file"]);
    command
        .arg(report.path("report"))
        .args(["--", text(&program), "1000"]);
    let finished = run(&mut command);
    finished.exited(125);
    assert!(
        finished.one_line().contains("/dev/full"),
        "{}",
        finished.messages()
    );
    assert!(
        finished.stdout.is_empty() || finished.output().contains("\"allocations\": 1000"),
        "{finished:?}"
    );
}

#[test]
fn a_full_disk_under_the_report() {
    let finished = run(&mut memtrace(&[
        "run",
        "--report-file",
        "/dev/full",
        "--",
        "echo",
        "whole",
    ]));
    assert!(
        finished.exited(125).one_line().contains("/dev/full"),
        "{}",
        finished.messages()
    );
    assert_eq!(finished.output(), "whole\n");
}

#[test]
fn a_full_disk_under_stdout() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    run(&mut memtrace(&[
        "run",
        "-o",
        text(&recording),
        "--",
        "true",
    ]))
    .exited(0);
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    let mut command = memtrace(&["report", "--from", text(&recording)]);
    Running::start_with_stdout(&mut command, Stdio::from(full))
        .finish()
        .exited(1)
        .one_line();
}

#[test]
fn a_closed_pipe_under_stdout_is_no_panic() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    run(&mut memtrace(&[
        "run",
        "-o",
        text(&recording),
        "--",
        "true",
    ]))
    .exited(0);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = memtrace(&["report", "--format", "json", "--from", text(&recording)]);
    let finished = Running::start_with_stdout(&mut command, Stdio::from(writer)).finish();
    assert!(
        finished.messages().lines().count() <= 1,
        "{}",
        finished.messages()
    );
    assert!(
        !finished.messages().contains("panicked") && finished.code != Some(101),
        "{finished:?}"
    );
}

/// A terminal sends Ctrl-C to both; the command decides what it is to it.
#[test]
fn ctrl_c_twice_ends_a_command_that_minds_it_once_with_a_report() {
    let scratch = Scratch::new();
    let report = scratch.path("report.json");
    let mut command = memtrace(&[
        "run",
        "-v",
        "--format",
        "json",
        "--report-file",
        text(&report),
        "--",
    ]);
    let traced = Running::start(command.args(["sh", "-c", "echo started; read line"]));
    traced.stdout_has("started");
    traced.signal_group(Signal::SIGINT);
    traced.signal_group(Signal::SIGINT);
    let pid = traced.pid();
    let finished = traced.finish();
    assert!(
        !finished.messages().contains("panicked"),
        "{}",
        finished.messages()
    );
    finished.exited(130);
    assert_eq!(uprobes_of(pid), Vec::<String>::new());
}

#[test]
fn one_ctrl_c_that_the_command_ignores_ends_nothing() {
    let scratch = Scratch::new();
    let report = scratch.path("report.json");
    let mut command = memtrace(&[
        "run",
        "--format",
        "json",
        "--report-file",
        text(&report),
        "--",
    ]);
    let mut steps = Steps::of(command.arg(workload("steps.c")).arg("9"));
    steps.round();
    steps.process().signal_group(Signal::SIGINT);
    steps.round();
    steps.end(9);
    assert!(report.exists(), "the report is there");
}

#[test]
fn ctrl_c_twice_leaves_the_target_of_attach_running() {
    let mut steps = Steps::start(4);
    let attach = Running::start(&mut memtrace(&["attach", "-p", &steps.pid().to_string()]));
    attach.stderr_has("memtrace: tracing");
    steps.round();
    attach.signal_group(Signal::SIGINT);
    attach.signal_group(Signal::SIGINT);
    let pid = attach.pid();
    let finished = attach.finish();
    assert!(
        matches!(finished.code, Some(0 | 1 | 130)) && !finished.messages().contains("panicked"),
        "{finished:?}"
    );
    assert_eq!(uprobes_of(pid), Vec::<String>::new());
    steps.round();
    steps.end(4);
}

/// The target ends at any moment of attaching: before, within or after.
#[test]
fn a_process_that_ends_while_memtrace_attaches() {
    for _ in 0..10 {
        let steps = Steps::start(2);
        let attach = Running::start(&mut memtrace(&[
            "attach",
            "--format",
            "json",
            "-p",
            &steps.pid().to_string(),
        ]));
        steps.end(2);
        let finished = attach.finish();
        match finished.code {
            Some(0) => assert!(!finished.stdout.is_empty(), "a report"),
            _ => assert!(!finished.exited(1).one_line().is_empty()),
        }
    }
}

#[test]
fn a_failed_command_leaves_an_earlier_recording_alone() {
    let scratch = Scratch::new();
    let recording = scratch.write("recording", "an earlier one");
    let file = text(&recording);
    let failing: &[(&[&str], i32)] = &[
        (&["run", "-o", file, "no-such-command-anywhere"], 127),
        (&["run", "-o", file, "--report-file", file, "true"], 2),
        (&["attach", "-o", file, "-p", "2147483647"], 1),
        (&["report", "--from", file, "--report-file", file], 2),
    ];
    for (arguments, status) in failing {
        run(&mut memtrace(arguments)).exited(*status);
        let kept = std::fs::read_to_string(&recording).expect("the recording");
        assert_eq!(kept, "an earlier one", "{arguments:?}");
    }
    run(&mut as_nobody(&scratch, &["run", "-o", file, "true"])).exited(125);
    let kept = std::fs::read_to_string(&recording).expect("the recording");
    assert_eq!(kept, "an earlier one");
}

#[test]
fn an_empty_word_and_a_script_that_names_no_interpreter() {
    run(&mut memtrace(&["run", ""])).exited(127).one_line();
    let scratch = Scratch::new();
    let script = scratch.copy(&scratch.write("text", "exit $1\n"), "script", 0o755);
    run(&mut memtrace(&[
        "run",
        "--report-file",
        "/dev/null",
        text(&script),
        "7",
    ]))
    .exited(7);
}

#[test]
fn a_heap_that_was_not_measured_fails_its_condition() {
    let finished = run(&mut memtrace(&[
        "run",
        "--no-heap",
        "--report-file",
        "/dev/null",
        "--fail-on",
        "leaked-bytes=1GiB",
        "true",
    ]));
    finished.exited(3);
    assert!(finished.messages().contains("not measured"), "{finished:?}");
}
