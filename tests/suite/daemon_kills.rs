//! kill -9 at any moment, of the daemon's start too: nothing stays attached, and what was seen is in the history.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memtrace_tests::Running;
use memtrace_tests::child::{deadline, run};
use memtrace_tests::daemon::{Cgroup, Daemon};
use memtrace_tests::steps::Steps;
use memtrace_tests::workload::workload;
use nix::sys::signal::Signal;

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_millis()).expect("a time")
}

/// Numbers that a query of sqlite3, the program, gives; a column each.
fn numbers(daemon: &Daemon, query: &str) -> Vec<Vec<i64>> {
    let mut command = Command::new("sqlite3");
    let told = run(command.arg("-readonly").arg(daemon.history()).arg(query));
    told.exited(0);
    let row = |line: &str| {
        let columns = line.split('|');
        columns
            .map(|text| text.parse().expect("a number"))
            .collect()
    };
    told.output().lines().map(row).collect()
}

/// A process of the test's, by its own account.
struct Lived {
    pid: u32,
    /// A moment before it was there, and one after it was gone.
    from_ms: i64,
    to_ms: i64,
}

/// Processes that come and go in the cgroup, one after the other, until this is stopped or dropped.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Lived>>>,
    /// By how much the latest of its sleeps was too long, in milliseconds.
    late_ms: Arc<AtomicI64>,
}

impl Load {
    fn begin(cgroup: Arc<Cgroup>) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let late_ms = Arc::new(AtomicI64::new(0));
        let late = Arc::clone(&late_ms);
        let thread = std::thread::spawn(move || {
            let mut lived = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let from_ms = now_ms();
                let mut command = Command::new(workload("faults.c"));
                let process = cgroup.start(command.args(["anonymous", "1"]));
                let pid = process.pid();
                process.finish().exited(0);
                let to_ms = now_ms();
                lived.push(Lived {
                    pid,
                    from_ms,
                    to_ms,
                });
                std::thread::sleep(Duration::from_millis(40));
                late.fetch_max(now_ms() - to_ms - 40, Ordering::Relaxed);
            }
            lived
        });
        Load {
            stop,
            thread: Some(thread),
            late_ms,
        }
    }

    /// By how much it was late since this was asked last.
    fn late_ms(&self) -> i64 {
        self.late_ms.swap(0, Ordering::Relaxed)
    }

    /// All that lived.
    fn stop(mut self) -> Vec<Lived> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("each lived as it should")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A test that failed has said why.
            let _ = thread.join();
        }
    }
}

/// Waits until no breakpoint is left in the code of a process whose heap was probed.
fn nothing_is_attached(steps: &mut Steps, turn: u64) {
    let until = deadline();
    loop {
        let left = steps.breakpoints();
        if left == 0 {
            return;
        }
        assert!(
            std::time::Instant::now() < until,
            "{left} breakpoints stay after turn {turn}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn fifty_kills_leave_nothing_attached_and_cost_two_seconds_each_at_most() {
    const KILLS: u64 = 50;
    let cgroup = Arc::new(Cgroup::new());
    let mut steps = Steps::of(cgroup.holds(&mut Command::new(workload("steps.c"))));
    let mut busy = Command::new(workload("busy.c"));
    let busy: Running = cgroup.start(busy.args(["1", "2000"]));
    busy.stdout_has("ready");
    let chosen = format!("[[heap]]\nexe = {:?}\n", workload("steps.c"));
    let mut daemon = Daemon::of(&cgroup, &chosen);
    daemon.kill();
    nothing_is_attached(&mut steps, 0);
    let load = Load::begin(Arc::clone(&cgroup));

    let last_word = "SELECT max((SELECT value FROM state WHERE key = 'complete_ms'), \
                     (SELECT max(time_ms) FROM event WHERE kind = 'start'))";
    let (mut probed, mut begun) = (0, 0);
    for turn in 1..=KILLS {
        let random = RandomState::new().build_hasher().finish();
        let started_ms = now_ms();
        let process = Running::start(&mut daemon.command());
        // One in four while it starts, or just after.
        let longest = if turn.is_multiple_of(4) { 1500 } else { 2500 };
        if !turn.is_multiple_of(4) {
            process.stderr_has("msg=\"ready\"");
        }
        std::thread::sleep(Duration::from_millis(random % longest));
        probed += u64::from(steps.breakpoints() > 0);
        process.signal(Signal::SIGKILL);
        let killed_ms = now_ms();
        assert_eq!(process.finish().signal, Some(9));
        nothing_is_attached(&mut steps, turn);
        let check = run(Command::new("sqlite3")
            .arg("-readonly")
            .arg(daemon.history())
            .arg("PRAGMA quick_check"));
        assert_eq!(check.output(), "ok\n", "{}", check.messages());
        let last_ms = numbers(&daemon, last_word)[0][0];
        // One that was killed before it had begun has lost nothing.
        if last_ms >= started_ms {
            begun += 1;
            let lost = killed_ms - last_ms;
            // A machine that wakes the test late wakes the daemon late.
            let late = load.late_ms();
            assert!(
                lost < 2500 + 5 * late,
                "turn {turn}: the last {lost} ms are lost, {late} ms late"
            );
        }
    }
    assert!(
        probed >= KILLS / 5 && begun >= KILLS / 5,
        "{probed} had probed the heap, {begun} had begun a history"
    );

    daemon.restart();
    let lived = load.stop();
    let last_ms = lived.last().expect("processes").to_ms;
    let until = deadline();
    while numbers(&daemon, last_word)[0][0] <= last_ms {
        assert!(
            std::time::Instant::now() < until,
            "the history does not go on"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    let gaps = numbers(
        &daemon,
        "SELECT time_ms, end_ms FROM event WHERE kind = 'gap'",
    );
    assert!(
        gaps.len() as u64 >= begun,
        "{} gaps, {begun} daemons had begun",
        gaps.len()
    );
    let kept = numbers(
        &daemon,
        "SELECT pid, start_ms FROM process WHERE exit_code = 0",
    );
    // Times of the history are a millisecond's, and so are the test's.
    let blind = |one: &Lived| {
        let meets = |gap: &Vec<i64>| one.from_ms <= gap[1] + 2 && one.to_ms >= gap[0] - 2;
        gaps.iter().any(meets)
    };
    let is = |one: &Lived, row: &Vec<i64>| {
        row[0] == i64::from(one.pid) && (one.from_ms - 50..=one.to_ms + 50).contains(&row[1])
    };
    let seen: Vec<&Lived> = lived.iter().filter(|one| !blind(one)).collect();
    let missing: Vec<String> = seen
        .iter()
        .filter(|one| !kept.iter().any(|row| is(one, row)))
        .map(|one| format!("{} from {} to {}", one.pid, one.from_ms, one.to_ms))
        .collect();
    assert!(
        missing.is_empty(),
        "missing of {}: {missing:#?}; gaps {gaps:?}, first of {kept:?}",
        seen.len()
    );
    assert!(
        seen.len() > 50,
        "{} of {} lived in no gap",
        seen.len(),
        lived.len()
    );
    let document = daemon.report(&["--since", "1h"]);
    assert_eq!(
        document.coverage.lost_by_reason["history_gap"],
        gaps.len() as u64
    );
    steps.round();
    steps.end(0);
    busy.finish().exited(0);
}
