//! Options, help and the commands that need no trace.

use std::path::Path;
use std::process::Command;

use memtrace_tests::binary::memtrace;
use memtrace_tests::child::run;
use memtrace_tests::workload::workload;
use memtrace_tests::{Scratch, trace, trace_with};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn leaks_above_the_limit_fail_with_3_and_below_it_do_not() {
    let program = workload("leaks.c");
    let command = [text(&program), "drop"];
    trace_with(&["--fail-on", "leaked-bytes=1MiB"], &command)
        .finished
        .exited(3);
    trace_with(&["--fail-on", "leaked-bytes=1GiB"], &command)
        .finished
        .exited(0);
    trace_with(&["--fail-on", "leaked-bytes=10549760"], &command)
        .finished
        .exited(0);
    trace_with(&["--fail-on", "leaked-bytes=10549759"], &command)
        .finished
        .exited(3);
}

#[test]
fn a_suppressed_function_does_not_count_against_the_limit() {
    let scratch = Scratch::new();
    let program = workload("leaks.c");
    let rules = scratch.write("suppressions", "# a known one\nfunction leak_large\n");
    let options = [
        "--suppressions",
        text(&rules),
        "--fail-on",
        "leaked-bytes=64000",
    ];
    trace_with(&options, &[text(&program), "drop"])
        .finished
        .exited(0);
    let options = [
        "--suppressions",
        text(&rules),
        "--fail-on",
        "leaked-bytes=63999",
    ];
    trace_with(&options, &[text(&program), "drop"])
        .finished
        .exited(3);
}

#[test]
fn without_heap_probes_the_heap_is_null_with_a_reason() {
    let traced = trace_with(&["--no-heap"], &[text(&workload("leaks.c")), "drop"]);
    assert!(traced.json["processes"][0]["heap"].is_null());
    assert!(traced.first().heap_reason.is_some());
    assert!(traced.first().faults.minor > 0);
}

#[test]
fn the_report_has_every_name_of_the_contract() {
    let traced = trace(&["true"]);
    let report = &traced.json;
    assert_eq!(report["schema"], 1);
    for key in ["memtrace", "kernel", "arch"] {
        assert!(
            report[key].as_str().is_some_and(|value| !value.is_empty()),
            "{key}"
        );
    }
    for key in [
        "events",
        "lost",
        "truncated",
        "lost_by_reason",
        "undecodable",
        "unmatched_frees",
        "probes",
    ] {
        assert!(!report["coverage"][key].is_null(), "coverage.{key}");
    }
    let process = report["processes"][0].as_object().expect("a process");
    let keys = "pid parent_pid start_time_ns end_time_ns comm exe command_line cgroup exit heap address_space faults \
                leaks regions timeline";
    for key in keys.split_whitespace() {
        assert!(process.contains_key(key), "processes.{key}");
    }
    let kernel =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    assert_eq!(report["kernel"], kernel.trim());
    assert!(
        report["coverage"]["probes"]
            .as_array()
            .is_some_and(|probes| !probes.is_empty())
    );
}

#[test]
fn every_text_report_names_what_it_shows() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    let program = workload("leaks.c");
    let mut command = memtrace(&[
        "run",
        "-o",
        text(&recording),
        "--report-file",
        "/dev/null",
        "--",
    ]);
    run(command.args([text(&program), "keep"])).exited(0);
    for (kind, word) in [
        ("summary", "leaks"),
        ("leaks", "leak_large"),
        ("lazy", "committed"),
        ("faults", "minor"),
        ("timeline", "heap"),
    ] {
        let finished = run(&mut memtrace(&["report", kind, "--from", text(&recording)]));
        let output = finished.exited(0).output();
        assert!(output.contains(word), "{kind} has no {word:?}:\n{output}");
        assert!(
            !output.contains('\x1b'),
            "{kind}: colour without a terminal"
        );
    }
}

#[test]
fn run_reports_to_stderr_and_leaves_stdout_to_the_command() {
    let program = workload("leaks.c");
    let finished =
        run(memtrace(&["run", "--report", "leaks", "--"]).args([text(&program), "keep"]));
    finished.exited(0);
    assert_eq!(
        finished.output().lines().count(),
        1,
        "the command's own line"
    );
    assert!(
        finished.messages().contains("leak_large"),
        "{}",
        finished.messages()
    );
}

#[test]
fn several_reports_in_one() {
    let program = workload("leaks.c");
    let finished =
        run(memtrace(&["run", "--report", "leaks,faults", "--"]).args([text(&program), "keep"]));
    let messages = finished.exited(0).messages();
    assert!(
        messages.contains("leak_large") && messages.contains("minor"),
        "{messages}"
    );
}

#[test]
fn run_says_when_it_traces() {
    let finished = run(&mut memtrace(&[
        "run",
        "-v",
        "--report-file",
        "/dev/null",
        "--",
        "true",
    ]));
    assert!(
        finished
            .exited(0)
            .messages()
            .lines()
            .any(|line| line.starts_with("memtrace: tracing"))
    );
}

#[test]
fn doctor_says_what_this_machine_can_do() {
    let output = run(&mut memtrace(&["doctor"])).exited(0).output();
    assert!(output.lines().count() >= 5, "{output}");
    let cpus = run(&mut Command::new("nproc")).exited(0).output();
    let rings = cpus
        .trim()
        .parse::<usize>()
        .expect("a number")
        .next_power_of_two()
        .min(8);
    assert!(
        output.contains("BTF") && output.contains(&format!("ring buffers: {rings}, ")),
        "{output}"
    );
}

#[test]
fn explain_tells_what_a_word_means() {
    for word in ["lazy", "committed", "reserved", "major"] {
        let output = run(&mut memtrace(&["explain", word])).exited(0).output();
        assert!(output.split_whitespace().count() >= 10, "{word}: {output}");
    }
    run(&mut memtrace(&["explain", "no-such-word"]))
        .exited(1)
        .one_line();
}

#[test]
fn every_subcommand_has_help_and_there_is_a_version() {
    for subcommand in ["run", "attach", "report", "explain", "doctor"] {
        let output = run(&mut memtrace(&[subcommand, "--help"]))
            .exited(0)
            .output();
        assert!(output.contains("Usage"), "{subcommand}: {output}");
    }
    let version = run(&mut memtrace(&["--version"])).exited(0).output();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}
