//! The wall clock is set, far and near, forward and back: the daemon lives on, and what it tells of the past stays so.
//!
//! libfaketime sets it for the daemon alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use memtrace::report::document::Document;
use memtrace_tests::Running;
use memtrace_tests::child::deadline;
use memtrace_tests::daemon::Daemon;
use memtrace_tests::workload::workload;
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;

/// Longer than anything is kept by default.
const FORTY_DAYS: i64 = 40 * 86_400;

/// The daemon's clock.
struct Clock(PathBuf);

impl Clock {
    /// So many seconds off.
    fn set(&self, seconds: i64) {
        let next = self.0.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n")).expect("write the offset");
        fs::rename(next, &self.0).expect("put it in its place");
    }

    fn rules(&self, command: &mut Command) {
        let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
        assert!(
            fs::exists(library).expect("look for it"),
            "{library} is missing: install the package libfaketime"
        );
        command
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.0)
            .env("FAKETIME_NO_CACHE", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
}

/// Waits for a report that fits.
#[track_caller]
fn report(daemon: &Daemon, arguments: &[&str], fits: impl Fn(&Document) -> bool) -> Document {
    let until = deadline();
    loop {
        let document = daemon.report(arguments);
        if fits(&document) {
            return document;
        }
        assert!(
            Instant::now() < until,
            "{arguments:?}: {:?} {:?}",
            document.coverage,
            document.processes
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn committed(document: &Document) -> Option<u64> {
    let [process] = &document.processes[..] else {
        return None;
    };
    Some(process.address_space.committed_bytes)
}

fn gaps(document: &Document) -> u64 {
    let lost = &document.coverage.lost_by_reason;
    lost.get("history_gap").copied().unwrap_or(0)
}

#[test]
fn a_clock_that_is_set_changes_nothing_that_was_seen() {
    let mut daemon = Daemon::start();
    daemon.stop().exited(0);
    let clock = Clock(daemon.scratch.path("clock"));
    clock.set(0);
    let mut command = daemon.command();
    clock.rules(&mut command);
    let under = Running::start(&mut command);
    under.stderr_has("msg=\"ready\"");

    let script = "import sys\nfor line in sys.stdin:\n    block = bytearray(int(line))\n    print('done', flush=True)\n";
    let mut python = Command::new("/usr/bin/python3");
    let mut python = daemon.cgroup.start(python.args(["-c", script]));
    let pid = python.pid().to_string();
    python.send(b"104857600\n");
    python.stdout_lines(1);
    daemon.line(python.pid(), |line| line.committed_bytes > 100 * MIB);
    let mut faults = Command::new(workload("faults.c"));
    daemon.cgroup.run(faults.args(["anonymous", "1"])).exited(0);
    let is_short = |one: &memtrace::report::document::Process| one.comm.starts_with("faults");
    let short = daemon.ended(1, is_short).remove(0);
    daemon.ask(&["mark", "here"]).exited(0);
    report(&daemon, &["--since", "1h", "-p", &pid], |document| {
        committed(document).is_some_and(|bytes| bytes > 100 * MIB)
    });

    // Forward: what was seen is old, and is kept. The new time has its points.
    let before = gaps(&daemon.report(&["--since", "1h"]));
    clock.set(FORTY_DAYS);
    let ahead = report(&daemon, &["--since", "1m", "-p", &pid], |document| {
        committed(document).is_some_and(|bytes| bytes > 100 * MIB)
    });
    assert!(gaps(&ahead) > 0, "{:?}", ahead.coverage);
    daemon.line(python.pid(), |_| true);
    clock.set(0);
    // It is the only process that has ended, in a history that had 40 days to forget it.
    let back = report(&daemon, &["--since", "1h"], |document| {
        gaps(document) > before
    });
    let kept: Vec<_> = back.processes.iter().filter(|one| is_short(one)).collect();
    assert_eq!((kept.len(), kept[0].exit), (1, short.exit));
    assert_eq!(kept[0].faults.minor, short.faults.minor);

    // Half a minute back, in which the process gives its memory back; then right again: the large one is not its last
    // state, though its time is later.
    clock.set(-30);
    python.send(b"1\n");
    python.stdout_lines(2);
    daemon.line(python.pid(), |line| line.committed_bytes < 60 * MIB);
    report(&daemon, &["--since", "1h", "-p", &pid], |document| {
        committed(document).is_some_and(|bytes| bytes < 60 * MIB)
    });
    clock.set(0);
    // A reading goes to the history before the next one is made.
    let (until, mut readings) = (deadline(), BTreeSet::new());
    while readings.len() < 5 {
        let told = committed(&daemon.report(&["--since", "1h", "-p", &pid]));
        assert!(told.is_some_and(|bytes| bytes < 60 * MIB), "{told:?}");
        readings.insert(daemon.ps().time_ns);
        assert!(Instant::now() < until, "{readings:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    under.signal(Signal::SIGTERM);
    under.finish().exited(0);
    python.finish().exited(0);
}
