//! What others measure: heaptrack, the kernel, tracefs.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use crate::child::{Finished, run};
use crate::scratch::Scratch;
use crate::workload::{tool, workload};

/// What heaptrack says about a command.
#[derive(Debug)]
pub struct Heaptrack {
    /// "calls to allocation functions"
    pub calls: u64,
    /// "peak heap memory consumption", which it rounds to two decimals of its unit.
    pub peak_bytes: u64,
    /// Half of the last decimal of that figure.
    pub peak_rounding: u64,
}

/// Runs `command` under heaptrack, and takes away what heaptrack's own library adds to a program that is not linked
/// with the C++ library: the reserve that this one allocates when it is loaded.
pub fn heaptrack<S: AsRef<OsStr>>(command: &[S], environment: &[(&str, &str)]) -> Heaptrack {
    let own = measure(&[workload("counts.c").as_os_str(), "0".as_ref()], &[]);
    let mut measured = measure(command, environment);
    measured.calls -= own.calls;
    measured.peak_bytes -= own.peak_bytes;
    measured
}

/// Runs `command` under heaptrack; the recording lies in `scratch`.
pub fn record<S: AsRef<OsStr>>(
    command: &[S],
    environment: &[(&str, &str)],
    scratch: &Scratch,
) -> PathBuf {
    let output = scratch.path("heaptrack");
    let mut record = Command::new(tool("heaptrack", "heaptrack"));
    record
        .arg("-o")
        .arg(&output)
        .args(command)
        .envs(environment.iter().copied());
    run(&mut record).exited(0);
    let recording = ["zst", "gz"].map(|extension| output.with_extension(extension));
    let recording = recording.into_iter().find(|path| path.exists());
    recording.expect("heaptrack leaves a recording")
}

fn measure<S: AsRef<OsStr>>(command: &[S], environment: &[(&str, &str)]) -> Heaptrack {
    let scratch = Scratch::new();
    let recording = record(command, environment, &scratch);
    let print = run(Command::new(tool("heaptrack_print", "heaptrack")).arg(recording));
    let text = print.exited(0).output();
    let field = |name: &str| {
        let line = text.lines().rev().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("heaptrack_print has no {name:?}"))
            .trim()
            .to_owned()
    };
    let calls = field("calls to allocation functions:");
    let calls = calls
        .split(' ')
        .next()
        .and_then(|number| number.parse().ok())
        .expect("a number of calls");
    let (peak_bytes, peak_rounding) = bytes(&field("peak heap memory consumption:"));
    Heaptrack {
        calls,
        peak_bytes,
        peak_rounding,
    }
}

/// heaptrack's `1.23M`, a decimal unit, and half of its last digit.
fn bytes(text: &str) -> (u64, u64) {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "B" | "" => 1.0,
        "K" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        unit => panic!("heaptrack's unit {unit} is unknown"),
    };
    let value: f64 = digits.parse().expect("a number of bytes");
    ((value * unit) as u64, (unit * 0.005).ceil() as u64)
}

/// The uprobes that the memtrace of this pid has defined, as tracefs lists them: each in a group that is named after
/// its owner, so that a test sees its own alone. tracefs is mounted for this one command.
pub fn uprobes_of(pid: u32) -> Vec<String> {
    let script = "mount -t tracefs none /mnt && cat /mnt/uprobe_events";
    let mut command = Command::new(tool("unshare", "util-linux"));
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    let group = format!("memtrace_{pid}/");
    let text = run(&mut command).exited(0).output();
    text.lines()
        .filter(|line| line.contains(&group))
        .map(str::to_owned)
        .collect()
}

/// Runs the same command untraced and traced, and asserts that nobody outside can tell them apart.
#[track_caller]
pub fn same_as_untraced<S: AsRef<OsStr>>(command: &[S]) -> (Finished, crate::Traced) {
    let untraced = run(Command::new(command[0].as_ref()).args(&command[1..]));
    let traced = crate::trace(command);
    let status = (traced.finished.code, traced.finished.signal);
    // memtrace cannot die of its command's signal; it says so in its status.
    let expected = untraced.code.or(untraced.signal.map(|signal| 128 + signal));
    assert_eq!(status, (expected, None), "{}", traced.finished.messages());
    assert_eq!(
        without_pids(&traced.finished),
        without_pids(&untraced),
        "stdout under trace"
    );
    assert_eq!(
        traced.finished.messages(),
        untraced.messages(),
        "stderr under trace"
    );
    (untraced, traced)
}

/// The output, less what differs from run to run: the pid that a workload names.
fn without_pids(finished: &Finished) -> String {
    let keep = |line: &str| match line.split_once("\"pid\": ") {
        Some((before, after)) => format!(
            "{before}{}",
            after.trim_start_matches(|c: char| c.is_ascii_digit())
        ),
        None => line.to_owned(),
    };
    finished
        .output()
        .lines()
        .map(keep)
        .collect::<Vec<_>>()
        .join("\n")
}
