//! What is left of a recording that was cut off, wherever that was, and whatever cut it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use memtrace::event::EventKind;
use memtrace::store::recording::Reader;
use memtrace_tests::binary::{Attached, path};
use memtrace_tests::child::run;
use memtrace_tests::expect::number;
use memtrace_tests::workload::{tool, workload};
use memtrace_tests::{Running, Scratch, trace_with};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A batch of a recording: where it ends, and its events.
#[derive(Clone, Copy, Debug, Default)]
struct Batch {
    end: u64,
    events: u64,
}

/// The number of events that can be read, and whether the recording says that it is truncated.
fn count(recording: &Path) -> (u64, bool) {
    let (batches, truncated) = batches(recording);
    (batches.iter().map(|batch| batch.events).sum(), truncated)
}

fn batches(recording: &Path) -> (Vec<Batch>, bool) {
    let mut reader = Reader::open(recording).expect("it opens");
    let mut batches: Vec<Batch> = Vec::new();
    while reader.next_event().expect("no damage").is_some() {
        let end = reader.position();
        if batches.last().is_none_or(|last| last.end != end) {
            batches.push(Batch { end, events: 0 });
        }
        batches.last_mut().expect("there is one").events += 1;
    }
    (batches, reader.truncated())
}

/// Numbers below `limit`, the same in every run (xorshift64).
fn numbers(limit: u64) -> impl Iterator<Item = u64> {
    let mut state: u64 = 88_172_645_463_325_252;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 8) % limit
    })
}

/// A prefix holds exactly the batches that lie in it whole.
///
/// Reading every prefix from its beginning would take hours. But whether a batch is whole is known before it is looked
/// into: so a cut within a batch is tried on the first batch and the part of this one. What a whole batch says leads on
/// from all before it.
#[test]
fn every_prefix_of_twenty_megabytes_holds_the_batches_that_lie_whole_in_it() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    let program = workload("faults.c");
    let command = [text(&program), "scattered", "18000"];
    trace_with(&["--no-heap", "-o", text(&recording)], &command)
        .finished
        .exited(0);
    let whole = fs::read(&recording).expect("the recording");
    assert!(whole.len() >= 20_000_000, "{} bytes", whole.len());
    let (batches, truncated) = batches(&recording);
    assert!(!truncated, "the recording itself");
    let (first, last) = (batches[0], batches[batches.len() - 1]);
    let at = |offset: u64| usize::try_from(offset).expect("a 64-bit machine");

    // What is left of the batch that is cut, behind the first batch.
    let cut_to = |length: u64| {
        let index = batches.partition_point(|batch| batch.end < length);
        let start = if index == 0 {
            0
        } else {
            batches[index - 1].end
        };
        let shared = &whole[..at(first.end.min(start))];
        let part = &whole[at(start)..at(length)];
        let seen = count(&scratch.write("prefix", [shared, part].concat()));
        let expected = if index == 0 { 0 } else { first.events };
        assert_eq!(seen, (expected, true), "cut to {length} bytes");
    };
    let mut expected = 0;
    for (index, batch) in batches.iter().enumerate() {
        cut_to(batch.end - 1);
        cut_to(batch.end + 1);
        expected += batch.events;
        if index % 8 == 0 {
            let seen = count(&scratch.write("prefix", &whole[..at(batch.end)]));
            assert_eq!(seen, (expected, true), "cut behind batch {index}");
        }
    }
    let head = Reader::open(&recording).expect("it opens").position();
    for length in numbers(last.end).filter(|&length| length > head).take(1000) {
        cut_to(length);
    }

    // The same for prefixes as they are, from the beginning.
    for length in numbers(last.end).filter(|&length| length > head).take(4) {
        let seen = count(&scratch.write("prefix", &whole[..at(length)]));
        let lying_in_it = batches.iter().filter(|batch| batch.end <= length);
        let expected = lying_in_it.map(|batch| batch.events).sum();
        assert_eq!(seen, (expected, true), "{length} bytes");
    }
}

fn now_ns() -> u64 {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock"));
    u64::try_from(now.as_nanos()).expect("less than 500 years")
}

/// Sizes of all blocks in a recording.
fn allocated(recording: &Path) -> BTreeSet<u64> {
    let reader = Reader::open(recording).expect("it opens");
    reader
        .filter_map(|event| match event.expect("no damage").kind {
            EventKind::Alloc { size, .. } => Some(size),
            _ => None,
        })
        .collect()
}

/// kill -9: what the process did up to two seconds before is there, by its own clock.
#[test]
fn a_killed_memtrace_leaves_all_but_the_last_two_seconds() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    let clock = Running::start(&mut Command::new(workload("clock.c")));
    clock.stdout_lines(1);
    let mut trace = Attached::with(clock.pid(), &["-o", text(&recording)]);
    let began = now_ns();
    std::thread::sleep(Duration::from_millis(5300));
    let killed = now_ns();
    trace.memtrace().signal(Signal::SIGKILL);
    let steps = clock.finish().exited(0).objects();
    while trace.memtrace().alive() {
        std::thread::yield_now();
    }
    let seen = allocated(&recording);
    let due = steps
        .iter()
        .filter(|step| (began..killed - 2_000_000_000).contains(&number(step, "ns")));
    let due: Vec<u64> = due.map(|step| number(step, "size")).collect();
    assert!(due.len() > 100, "{} steps in time", due.len());
    let missing: Vec<&u64> = due.iter().filter(|size| !seen.contains(size)).collect();
    assert!(
        missing.is_empty(),
        "{} of {}: {missing:?}",
        missing.len(),
        due.len()
    );
    assert!(count(&recording).1, "it says that it is truncated");
}

/// A full disk: what fitted on it is there, the trace says so, and the command ran to its end.
#[test]
fn a_full_disk_leaves_what_was_recorded_before() {
    let scratch = Scratch::new();
    let recording = scratch.path("recording");
    // A disk of its own, in a mount namespace that ends with the command.
    let script = "mount -t tmpfs -o size=1m none /mnt || exit 99
        \"$1\" run -o /mnt/recording --report-file /dev/null -- \"$2\" 4 100000
        status=$?
        cp /mnt/recording \"$3\" && exit $status";
    let mut command = Command::new(tool("unshare", "util-linux"));
    command.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
    ]);
    command.arg(path()).arg(workload("heap.c")).arg(&recording);
    let finished = run(&mut command);
    let line = finished.exited(125).one_line();
    assert!(line.contains("/mnt/recording"), "{line}");
    assert!(
        number(&finished.object(), "allocations") > 0,
        "the command's own output"
    );
    let size = fs::metadata(&recording).expect("the recording").len();
    assert!(size > 500_000, "{size} bytes of a full disk");
    let (events, truncated) = count(&recording);
    assert!(truncated && events > 50_000, "{events} events");
}
