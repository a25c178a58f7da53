//! A recording gives the very same report, whoever reads it, and however it was damaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use memtrace_tests::binary::{Traced, memtrace, path};
use memtrace_tests::child::run;
use memtrace_tests::workload::{tool, workload};
use memtrace_tests::{Finished, Scratch, trace_with};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Traces a command with a recording beside the report.
fn record(recording: &Path, command: &[&str]) -> Traced {
    let traced = trace_with(&["-o", text(recording)], command);
    traced.finished.exited(0);
    traced
}

fn small(recording: &Path) -> Traced {
    record(recording, &[text(&workload("leaks.c")), "keep"])
}

/// Large enough to be cut in many places, each past the head.
fn large(recording: &Path) -> Traced {
    record(recording, &[text(&workload("heap.c")), "4", "200000"])
}

fn replay(recording: &Path) -> Finished {
    run(&mut memtrace(&[
        "report",
        "--format",
        "json",
        "--from",
        text(recording),
    ]))
}

fn json(finished: &Finished) -> Value {
    serde_json::from_slice(&finished.exited(0).stdout).expect("the report is JSON")
}

/// The report less what a finished trace and an open recording may say differently.
fn comparable(mut report: Value) -> Value {
    report["coverage"]
        .as_object_mut()
        .expect("coverage")
        .remove("truncated");
    report
}

fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new(tool("setpriv", "util-linux"));
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program);
    command
}

#[test]
fn replay_equals_live() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    let live = large(&recording);
    assert_eq!(comparable(json(&replay(&recording))), comparable(live.json));
}

#[test]
fn replay_of_a_tree_equals_live() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    let live = record(&recording, &[text(&workload("children.c")), "30", "exec"]);
    assert_eq!(comparable(json(&replay(&recording))), comparable(live.json));
}

/// Another machine: no root, and the traced program is gone.
#[test]
fn replay_as_nobody_and_without_the_program_equals_live() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    let program = scratch.copy(&workload("leaks.c"), "leaks", 0o755);
    let live = record(&recording, &[text(&program), "keep"]);
    fs::remove_file(&program).expect("remove the program");
    let binary = scratch.copy(&path(), "memtrace", 0o755);
    let readable = scratch.copy(&recording, "readable", 0o644);
    let finished =
        run(as_nobody(&binary).args(["report", "--format", "json", "--from", text(&readable)]));
    assert_eq!(comparable(json(&finished)), comparable(live.json));
}

#[test]
fn replay_where_no_thread_can_be_started_equals_live() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    let live = record(&recording, &[text(&workload("children.c")), "30", "exec"]);
    let binary = scratch.copy(&path(), "memtrace", 0o755);
    let readable = scratch.copy(&recording, "readable", 0o644);
    let alone = ["--nproc=1", text(&binary)];
    let report = ["report", "--format", "json", "--from", text(&readable)];
    let mut command = as_nobody(&tool("prlimit", "util-linux"));
    let finished = run(command.args(alone).args(report));
    assert_eq!(comparable(json(&finished)), comparable(live.json));
}

#[test]
fn a_recording_says_that_it_is_whole() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    let live = small(&recording);
    assert_eq!(
        json(&replay(&recording))["coverage"]["truncated"],
        Value::Bool(false)
    );
    assert_eq!(live.json["coverage"]["truncated"], Value::Bool(false));
}

/// The recording ends with what the summary is made of: damaged events do not matter to it.
#[test]
fn the_summary_is_that_of_a_replay_and_takes_none() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    record(&recording, &[text(&workload("children.c")), "3", "exec"]);
    let whole = fs::read(&recording).expect("the recording");
    let summary = |bytes: &[u8]| {
        let altered = scratch.write("altered", bytes);
        run(&mut memtrace(&["report", "--from", text(&altered)]))
    };
    let told = summary(&whole).exited(0).output();
    // docs/RECORDING.md: length of the contents, their checksum, and a mark of eight bytes.
    let tail = &whole[whole.len() - 16..];
    let length = u32::from_le_bytes(tail[..4].try_into().expect("four bytes"));
    let events = &whole[..whole.len() - 16 - length as usize];
    assert_eq!(summary(events).exited(0).output(), told);
    let mut damaged = whole.clone();
    damaged[events.len() / 2] ^= 1;
    assert_eq!(summary(&damaged).exited(0).output(), told);
    assert_ne!(summary(&damaged[..events.len()]).code, Some(0));
}

#[test]
fn every_prefix_opens_and_says_that_it_is_truncated() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    let live = large(&recording);
    let whole = fs::read(&recording).expect("the recording");
    let mut events = 0;
    for part in 1..=20 {
        let prefix = scratch.write("prefix", &whole[..whole.len() * part / 21]);
        let report = json(&replay(&prefix));
        assert_eq!(
            report["coverage"]["truncated"],
            Value::Bool(true),
            "{part} of 21 parts"
        );
        let seen = report["coverage"]["events"]
            .as_u64()
            .expect("a number of events");
        assert!(
            seen >= events,
            "{part} of 21 parts: {seen} events after {events}"
        );
        events = seen;
    }
    assert!(
        events > live.document.coverage.events / 2,
        "{events} events of the whole"
    );
}

#[test]
fn a_recording_cut_within_its_head_is_an_error_and_no_panic() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    small(&recording);
    let whole = fs::read(&recording).expect("the recording");
    for length in [0, 1, 4, 7, 8, 16, 63, 200] {
        let finished = replay(&scratch.write("prefix", &whole[..length]));
        assert!(
            matches!(finished.code, Some(0 | 1)),
            "{length} bytes: {finished:?}"
        );
        if finished.code == Some(1) {
            finished.one_line();
        }
    }
}

#[test]
fn a_flipped_byte_gives_an_answer_or_an_error_and_no_panic() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    small(&recording);
    let whole = fs::read(&recording).expect("the recording");
    let mut seed: u64 = 88_172_645_463_325_252;
    for _ in 0..200 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let mut damaged = whole.clone();
        let at = usize::try_from(seed >> 16).expect("a 64-bit machine") % damaged.len();
        damaged[at] ^= u8::try_from(seed & 0xff).expect("a byte").max(1);
        let finished = replay(&scratch.write("damaged", damaged));
        let messages = finished.messages();
        assert!(
            matches!(finished.code, Some(0 | 1)),
            "byte {at}: {:?} {:?} {messages}",
            finished.code,
            finished.signal
        );
        assert!(!messages.contains("panicked"), "byte {at}: {messages}");
    }
}

#[test]
fn what_memtrace_did_not_write_is_named_as_no_recording() {
    let scratch = Scratch::new();
    let files: [(&str, Vec<u8>); 4] = [
        ("empty", Vec::new()),
        ("words", b"this is no recording\n".repeat(1000)),
        ("zeros", vec![0; 100_000]),
        ("program", fs::read("/bin/true").expect("a program")),
    ];
    for (name, bytes) in files {
        let file: PathBuf = scratch.write(name, bytes);
        let finished = replay(&file);
        let line = finished.exited(1).one_line();
        assert!(line.contains(name), "the line names the file: {line}");
        assert!(finished.stdout.is_empty(), "{}", finished.output());
    }
}
