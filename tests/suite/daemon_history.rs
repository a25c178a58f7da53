//! The daemon's history outlives the daemon, whatever ends it.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use memtrace_tests::daemon::{Cgroup, Daemon};
use memtrace_tests::steps::Steps;
use memtrace_tests::workload::workload;
use memtrace_tests::{Scratch, memtrace};

#[test]
fn a_mark_bounds_a_report() {
    let daemon = Daemon::start();
    let run = || {
        let mut command = Command::new(workload("faults.c"));
        daemon
            .cgroup
            .run(command.args(["anonymous", "4"]))
            .exited(0);
    };
    let ended = |count| {
        let mut ended = daemon.ended(count, |one| one.comm.starts_with("faults"));
        ended.sort_by_key(|one| one.end_time_ns);
        ended
    };
    run();
    let first = ended(1)[0].pid;
    daemon.ask(&["mark", "deploy"]).exited(0);
    run();
    let second = ended(2)[1].pid;
    let pids = |arguments: &[&str]| {
        let document = daemon.report(arguments);
        document
            .processes
            .iter()
            .map(|one| one.pid)
            .collect::<Vec<_>>()
    };
    assert_eq!(pids(&["--since", "deploy"]), [second]);
    assert_eq!(pids(&["--until", "deploy"]), [first]);
    assert_eq!(pids(&["--since", "1h", "-p", &first.to_string()]), [first]);
    let wrong = daemon.ask(&["report", "--since", "yesterday"]);
    wrong.exited(1);
    assert!(wrong.one_line().contains("no mark, no age and no time"));
    daemon.ask(&["mark", "2h"]).exited(1);
}

/// What a process committed between two marks, by its own word.
#[test]
fn two_marks_are_compared() {
    const GROW: &str = "\
import sys
print('ready', flush=True)
sys.stdin.read(1)
block = b'x' * (64 << 20)
print('grown', flush=True)
sys.stdin.read(1)";
    let daemon = Daemon::start();
    let mut python = daemon
        .cgroup
        .start(Command::new("python3").args(["-c", GROW]));
    python.stdout_lines(1);
    // A reading of before it was ready is of a smaller process.
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", python.pid())).expect("it runs");
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("resident pages");
    let before = daemon.line(python.pid(), |line| {
        line.committed_bytes.abs_diff(pages * 4096) < 1 << 20
    });
    daemon.ask(&["mark", "before"]).exited(0);
    python.send(b".");
    python.stdout_lines(2);
    let grown = before.committed_bytes + (64 << 20);
    daemon.line(python.pid(), |line| line.committed_bytes >= grown);
    daemon.ask(&["mark", "after"]).exited(0);
    // The history is written behind what is answered from.
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let told = daemon.ask(&["diff", "before", "after"]);
        told.exited(0);
        let output = told.output();
        let title = format!("python3 (pid {})", python.pid());
        let mut of_it = output.lines().skip_while(|line| !line.starts_with(&title));
        let committed = of_it.find(|line| line.starts_with("  committed "));
        if committed.is_some_and(|row| row.contains("+64.") && row.ends_with("MiB")) {
            break;
        }
        assert!(Instant::now() < until, "{output}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let wrong = daemon.ask(&["diff", "before", "never"]);
    wrong.exited(1);
    assert!(wrong.one_line().contains("never"), "{wrong:?}");
    python.send(b".");
    python.finish().exited(0);
}

/// What was reserved for a moment, and never touched, is told by no reading of once a second. The process says itself what
/// the kernel's high-water mark is.
#[test]
fn a_moments_reservation_is_in_the_peak() {
    const RESERVE: &str = "\
import mmap
mmap.mmap(-1, 512 << 20).close()
peak = next(line for line in open('/proc/self/status') if line.startswith('VmPeak'))
print(peak.split()[1])";
    let daemon = Daemon::start();
    let mut command = Command::new("/usr/bin/python3");
    let output = daemon.cgroup.run(command.args(["-c", RESERVE]));
    output.exited(0);
    let printed = String::from_utf8_lossy(&output.stdout);
    let peak: u64 = printed.trim().parse().expect("KiB");
    assert!(peak >= 512 << 10, "{peak} KiB");
    let ended = daemon.ended(1, |one| one.comm == "python3");
    assert_eq!(ended[0].address_space.peak_reserved_bytes, peak << 10);
}

#[test]
fn who_ended_just_before_the_daemon_is_in_the_history() {
    let mut daemon = Daemon::start();
    let mut command = Command::new(workload("faults.c"));
    daemon
        .cgroup
        .run(command.args(["anonymous", "4"]))
        .exited(0);
    daemon.stop().exited(0);
    daemon.restart();
    let ended = daemon.ended(1, |one| one.comm.starts_with("faults"));
    assert_eq!(ended[0].exit.and_then(|exit| exit.code), Some(0));
}

#[test]
fn tables_are_exported_while_the_daemon_writes() {
    let daemon = Daemon::start();
    let mut steps = Steps::of(daemon.cgroup.holds(&mut Command::new(workload("steps.c"))));
    daemon.line(steps.pid(), |_| true);
    let export = |table: &str, output: &std::path::Path| {
        let mut command = memtrace(&["export", table, "--history"]);
        command.arg(daemon.history()).arg("-o").arg(output);
        memtrace_tests::child::run(&mut command)
    };
    for table in [
        "processes",
        "points-1s",
        "points-10s",
        "points-5min",
        "growth",
        "events",
        "marks",
    ] {
        let output = daemon.scratch.path(table);
        export(table, &output).exited(0);
        let bytes = fs::read(output).expect("a file");
        // Where a Parquet file begins and ends.
        assert!(
            bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"),
            "{table}"
        );
    }
    export("nothing", &daemon.scratch.path("x")).exited(2);
    let nowhere = export("events", &daemon.scratch.path("no/such/place"));
    nowhere.exited(1);
    assert!(nowhere.one_line().contains("cannot write"), "{nowhere:?}");
    steps.round();
    steps.end(0);
}

#[test]
fn a_damaged_history_is_moved_aside() {
    type Damage = fn(&mut Vec<u8>);
    /// Bytes of a page; the first one of each tells what kind it is.
    const PAGE: usize = 4096;
    let damages: [(&str, Damage); 3] = [
        ("overwritten", |bytes| {
            let length = bytes.len();
            bytes[100..length / 2].fill(0xa5);
        }),
        ("truncated", |bytes| bytes.truncate(bytes.len() / 2 + 1)),
        ("a bit flipped", |bytes| bytes[3 * PAGE] ^= 4),
    ];
    let mut daemon = Daemon::start();
    let mut steps = Steps::of(daemon.cgroup.holds(&mut Command::new(workload("steps.c"))));
    for (turn, (what, damage)) in (1..).zip(damages) {
        daemon.line(steps.pid(), |_| true);
        daemon.stop().exited(0);
        let mut bytes = fs::read(daemon.history()).expect("a history");
        damage(&mut bytes);
        fs::write(daemon.history(), bytes).expect("damage it");
        daemon.restart();
        daemon.process().stderr_has("the history was damaged");
        daemon.line(steps.pid(), |_| true);
        let aside = format!("state/history.sqlite.damaged-{turn}");
        assert!(daemon.scratch.path(&aside).exists(), "{what}");
        let document = daemon.report(&["--since", "1h"]);
        assert_eq!(
            document.coverage.lost_by_reason["history_damaged"], 1,
            "{what}"
        );
    }
    steps.round();
    steps.end(0);
}

/// A small file system in memory, unmounted when dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn new(at: std::path::PathBuf) -> Small {
        fs::create_dir_all(&at).expect("a mount point");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some("size=2m"))
            .expect("mount a tmpfs");
        Small(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_is_said_and_survived() {
    let place = Scratch::new();
    let disk = Small::new(place.path("state"));
    let cgroup = Cgroup::new();
    let mut steps = Steps::of(cgroup.holds(&mut Command::new(workload("steps.c"))));
    let mut daemon = Daemon::keeping(cgroup, &disk.0);
    daemon.line(steps.pid(), |_| true);
    let filler = disk.0.join("filler");
    let mut file = fs::File::create(&filler).expect("a file");
    // To the last page.
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    // An open file would keep its pages when it is removed.
    drop(file);
    daemon
        .process()
        .stderr_has("it is tried again every second");
    daemon.line(steps.pid(), |_| true);
    steps.round();
    fs::remove_file(&filler).expect("make room");
    daemon.process().stderr_has("the history is written again");
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let document = daemon.report(&["--since", "1h"]);
        if document.processes.iter().any(|one| one.pid == steps.pid()) {
            break;
        }
        assert!(Instant::now() < until, "the process is not in the history");
    }
    steps.end(0);
    daemon.stop().exited(0);
}
