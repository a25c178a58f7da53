//! What takes a machine of its own: swap, and whatever concerns every process there is.
//!
//! `cargo xtask vm` runs these; a machine that others use too has them ignored.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use memtrace::report::document::{AddressSpace, Process};
use memtrace_tests::child::run;
use memtrace_tests::daemon::Daemon;
use memtrace_tests::expect::{number, within};
use memtrace_tests::vm::alone_in_vm;
use memtrace_tests::workload::workload;
use memtrace_tests::{Scratch, Traced, trace};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Compares what is resident and what is swapped out with the process's own smaps.
fn assert_as_smaps(traced: &Traced, seen: &Value) {
    let space: &AddressSpace = &traced.process(number(seen, "pid")).address_space;
    within(
        1.0,
        space.committed_bytes,
        number(seen, "rss"),
        "committed against Rss",
    );
    let swapped = space.swapped_bytes.expect("swapped bytes are measured");
    within(1.0, swapped, number(seen, "swap"), "swapped against Swap");
    let committed: u64 = space
        .by_kind
        .values()
        .map(|kind| kind.committed_bytes)
        .sum();
    within(1.0, committed, space.committed_bytes, "committed by kind");
    within(
        1.0,
        space.lazy_bytes + space.committed_bytes,
        number(seen, "size"),
        "lazy, which has the swapped in it, and committed against Size",
    );
}

#[test]
#[ignore = "needs swap: cargo xtask vm"]
fn pages_that_were_paged_out_are_swapped_and_not_committed() {
    let _alone = alone_in_vm();
    let program = workload("lazy.c");
    let traced = trace(&[program.as_os_str(), "paged-out".as_ref()]);
    traced.finished.exited(0);
    let seen = traced.finished.object();
    // 64 MiB went out and 16 MiB came back; what the kernel had in hand at that moment stays.
    let swap = number(&seen, "swap");
    assert!(
        (40 * MIB..=64 * MIB).contains(&swap),
        "{swap} B in swap: is there any?"
    );
    assert_as_smaps(&traced, &seen);
}

/// A control group with a limit, removed when dropped.
struct Limited {
    path: PathBuf,
}

impl Limited {
    fn to(bytes: u64) -> Limited {
        let path =
            Path::new("/sys/fs/cgroup").join(format!("memtrace-test-{}", std::process::id()));
        fs::create_dir(&path).expect("make a control group");
        let limited = Limited { path };
        fs::write(limited.path.join("memory.max"), bytes.to_string()).expect("limit its memory");
        limited
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // It is empty: what ran in it has ended and was waited for.
        let _ = fs::remove_dir(&self.path);
    }
}

#[test]
#[ignore = "needs swap: cargo xtask vm"]
fn pages_that_a_control_group_has_no_room_for_are_swapped_and_not_committed() {
    let _alone = alone_in_vm();
    let group = Limited::to(64 * MIB);
    let script = format!(
        "echo $$ > {group}/cgroup.procs && exec {} over-limit {group}/memory.max",
        workload("lazy.c").display(),
        group = group.path.display(),
    );
    let traced = trace(&["sh", "-c", &script]);
    traced.finished.exited(0);
    let seen = traced.finished.object();
    let swap = number(&seen, "swap");
    assert!(
        swap >= 48 * MIB,
        "{swap} B in swap of 128 MiB touched in 64 MiB"
    );
    assert_as_smaps(&traced, &seen);
}

#[test]
#[ignore = "traces every process: cargo xtask vm"]
fn every_process_of_the_machine_is_in_the_history_with_its_faults() {
    const CHILDREN: usize = 200;
    let _alone = alone_in_vm();
    let daemon = Daemon::everywhere();
    // A file of this test's own: others run the same workload meanwhile.
    let scratch = Scratch::new();
    let children = scratch.copy(&workload("children.c"), "children", 0o755);
    let mut tree = Command::new(workload("rusage.c"));
    let finished = run(tree.arg(&children).args([&CHILDREN.to_string(), "exec"]));
    finished.exited(0);
    let objects = finished.objects();
    let counted = objects.last().expect("what the kernel counted");
    let is_child = |process: &Process| children.to_str() == Some(process.exe.as_str());
    let ended = daemon.ended(CHILDREN + 1, is_child);
    assert_eq!(ended.len(), CHILDREN + 1);
    for process in &ended {
        assert_eq!(process.exit.expect("it ended").code, Some(0));
        assert!(process.address_space.peak_committed_bytes > 0);
    }
    let seen: u64 = ended
        .iter()
        .map(|one| one.faults.minor + one.faults.major)
        .sum();
    let kernel = number(counted, "minor") + number(counted, "major");
    // An exec puts its arguments into the new program without registers: one fault of each has no event.
    let unseen = kernel.checked_sub(seen).expect("no more than there were");
    assert!(unseen <= ended.len() as u64, "{seen} of {kernel}");
    let coverage = daemon.report(&[]).coverage;
    let missing = coverage.lost_by_reason.get("fault_histogram_missing");
    assert_eq!(coverage.lost, missing.copied().unwrap_or(0), "{coverage:?}");
    // Whatever ran before is in the list, too.
    let pids: Vec<u32> = daemon.ps().processes.iter().map(|line| line.pid).collect();
    assert!(pids.contains(&1), "{pids:?}");
}

/// Takes the second CPU away and gives it back, again and again, until dropped; it is there then.
struct Hotplug {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Hotplug {
    fn begin() -> Hotplug {
        const CPU: &str = "/sys/devices/system/cpu/cpu1/online";
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut turns = 0;
            while !stopped.load(Ordering::Relaxed) || turns == 0 {
                for online in ["0", "1"] {
                    fs::write(CPU, online).expect("take the CPU, or give it back");
                    std::thread::sleep(Duration::from_millis(300));
                }
                turns += 1;
            }
            turns
        });
        Hotplug {
            stop,
            thread: Some(thread),
        }
    }

    /// How often it went and came.
    fn stop(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("the CPU comes and goes")
    }
}

impl Drop for Hotplug {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Two processes of `faults` that fault at a time, on either CPU.
fn two_that_fault(faults: &Path) -> Command {
    let faults = faults.to_str().expect("a path in UTF-8");
    let mut tree = Command::new(workload("rusage.c"));
    let both = format!(
        "for turn in 1 2 3 4; do {faults} anonymous 32 & {faults} anonymous 32 & wait; done"
    );
    tree.args(["/bin/sh", "-c", &both]);
    tree
}

#[test]
#[ignore = "takes a CPU away: cargo xtask vm"]
fn faults_of_a_command_are_counted_while_cpus_come_and_go() {
    let _alone = alone_in_vm();
    // Those without registers have no event, whatever CPUs do: as many as in a machine at rest.
    let faults = workload("faults.c");
    let counts = || {
        let tree = two_that_fault(&faults);
        let words: Vec<_> = [tree.get_program()]
            .into_iter()
            .chain(tree.get_args())
            .collect();
        let traced = trace(&words);
        traced.finished.exited(0);
        let objects = traced.finished.objects();
        let of_tree = objects.last().expect("what the kernel counted");
        let kernel = number(of_tree, "minor") + number(of_tree, "major");
        // rusage counts what it waits for, not itself.
        let waited = traced.document.processes.iter().skip(1);
        let seen: u64 = waited.map(|one| one.faults.minor + one.faults.major).sum();
        (seen, kernel)
    };
    // Some more in one run than in another: the most of three.
    let at_rest = (0..3).map(|_| {
        let (seen, kernel) = counts();
        kernel.checked_sub(seen).expect("no more than there were")
    });
    let at_rest = at_rest.max().expect("three");
    let hotplug = Hotplug::begin();
    let (seen, kernel) = counts();
    let turns = hotplug.stop();
    let unseen = kernel.checked_sub(seen).expect("no more than there were");
    assert!(turns > 2, "the CPU went {turns} times");
    assert!(
        unseen <= at_rest + 4,
        "{seen} of {kernel} while a CPU went {turns} times, {at_rest} less at rest"
    );
}

#[test]
#[ignore = "takes a CPU away: cargo xtask vm"]
fn the_daemon_follows_cpus_and_says_when_it_could_not() {
    let _alone = alone_in_vm();
    let daemon = Daemon::everywhere();
    // A file of this test's own: others run the same workload meanwhile.
    let scratch = Scratch::new();
    let faults = scratch.copy(&workload("faults.c"), "faults", 0o755);
    let is_fault = |one: &Process| faults.to_str() == Some(one.exe.as_str());
    let hotplug = Hotplug::begin();
    let finished = run(&mut two_that_fault(&faults));
    let turns = hotplug.stop();
    finished.exited(0);
    let objects = finished.objects();
    let counted = objects.last().expect("what the kernel counted");
    let kernel = number(counted, "minor") + number(counted, "major");
    let sum = |all: &[Process]| -> u64 {
        all.iter()
            .map(|one| one.faults.minor + one.faults.major)
            .sum()
    };
    let first = daemon.ended(8, is_fault);
    let seen = sum(&first);
    assert!(seen <= kernel, "{seen} of {kernel}");
    let came = |coverage: &memtrace::report::document::Coverage| {
        let lost = &coverage.lost_by_reason;
        lost.get("cpu_came_online").copied().unwrap_or(0)
    };
    let coverage = daemon.report(&[]).coverage;
    assert!(came(&coverage) > 0, "{turns} times: {coverage:?}");
    // Both CPUs are there again: nothing is missing.
    let mut again = Command::new(&faults);
    let finished = run(again.args(["anonymous", "64"]));
    let kernel = number(&finished.object(), "minor");
    let all = daemon.ended(9, is_fault);
    let last = all
        .iter()
        .max_by_key(|one| one.start_time_ns)
        .expect("nine");
    assert!(
        last.faults.minor.abs_diff(kernel) < 200,
        "{} of {kernel}",
        last.faults.minor
    );
}
