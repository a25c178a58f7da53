//! The package where systemd runs: installed, started, killed, upgraded, removed and purged.
//!
//! `cargo xtask vm --systemd` runs this; a machine that others use too has it ignored.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use memtrace::daemon::protocol::{Listing, ProcessLine};
use memtrace::report::document::Document;
use memtrace_tests::child::{Finished, deadline, run};
use memtrace_tests::steps::Steps;
use memtrace_tests::vm::in_vm;
use memtrace_tests::workload::{tool, workload};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CONFIGURATION: &str = "/etc/memtrace.toml";
const HISTORY: &str = "/var/lib/memtrace";

/// Where nothing of memtrace may be once it is purged, and what may have its name in it there.
const PLACES: [&str; 6] = [
    "/etc",
    "/run/systemd/system",
    "/usr/bin",
    "/usr/lib/systemd",
    "/var/lib/dpkg/info",
    "/var/lib/systemd",
];
const DIRECTORIES: [&str; 4] = [
    HISTORY,
    "/run/memtrace",
    "/usr/share/memtrace",
    "/usr/share/doc/memtrace",
];

/// Waits until something is so, and says what was not.
#[track_caller]
fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let until = deadline();
    while !so() {
        assert!(Instant::now() < until, "{what}: {}", journal());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What the daemons said, for a test that fails.
fn journal() -> String {
    let unit = ["--unit", "memtrace", "--no-pager"];
    run(Command::new("journalctl").args(unit)).output()
}

#[track_caller]
fn dpkg(words: &[&str], package: &Path) {
    let done = run(Command::new("dpkg").args(words).arg(package));
    done.exited(0);
}

/// The package and its upgrade, as `cargo xtask vm --systemd` names them.
fn package(name: &str) -> PathBuf {
    let path = std::env::var_os(name);
    path.expect("the packages: run `cargo xtask vm --systemd`")
        .into()
}

fn systemctl(words: &[&str]) -> Finished {
    run(Command::new("systemctl").args(words))
}

/// What systemd says of the service.
fn property(name: &str) -> String {
    let told = systemctl(&["show", "memtrace", "--value", "--property", name]);
    told.exited(0);
    told.output().trim().to_owned()
}

fn is_active() -> bool {
    property("ActiveState") == "active"
}

/// The daemon's pid; 0 while there is none.
fn main_pid() -> u32 {
    property("MainPID").parse().expect("a pid")
}

/// What the installed program answers.
#[track_caller]
fn answer(words: &[&str]) -> Vec<u8> {
    let told = run(Command::new("/usr/bin/memtrace").args(words));
    told.exited(0);
    told.stdout
}

fn line_of(pid: u32) -> Option<ProcessLine> {
    let listing: Listing =
        serde_json::from_slice(&answer(&["ps", "--format", "json"])).expect("a listing");
    listing.processes.into_iter().find(|line| line.pid == pid)
}

/// Who holds events of perf: memtrace is the only one here that opens any.
fn who_has_perf_events() -> Vec<u32> {
    let is_event = |link: PathBuf| link == Path::new("anon_inode:[perf_event]");
    let holds = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
        let mut open = descriptors.into_iter().flatten().flatten();
        open.any(|entry| fs::read_link(entry.path()).is_ok_and(is_event))
    };
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(holds)
        .collect()
}

/// Owners of the uprobes that tracefs lists.
fn who_has_uprobes() -> Vec<u32> {
    let text = fs::read_to_string("/sys/kernel/tracing/uprobe_events").expect("tracefs");
    let owner = |line: &str| {
        let group = line.split_once("memtrace_")?.1;
        group.split_once('/')?.0.parse().ok()
    };
    let mut owners: Vec<u32> = text.lines().filter_map(owner).collect();
    owners.dedup();
    owners
}

/// Everything that was attached is one daemon's.
#[track_caller]
fn all_is_of(pid: u32, steps: &mut Steps) {
    assert_eq!(who_has_perf_events(), [pid]);
    assert_eq!(who_has_uprobes(), [pid]);
    assert!(steps.breakpoints() > 0, "its heap is probed");
}

/// A process's short life, all of it with the daemon there.
fn one_that_ends() -> u32 {
    let mut command = Command::new(workload("faults.c"));
    let process = memtrace_tests::Running::start(command.args(["anonymous", "1"]));
    let pid = process.pid();
    process.finish().exited(0);
    pid
}

/// How a daemon's end is named in the history.
const KILLED: &str = "the daemon ended without a word";
const STOPPED: &str = "the daemon did not run";

/// The history names these ends of daemons, and knows of these processes that they have ended.
#[track_caller]
fn history_goes_on(ends: &[&str], ended: &[u32]) {
    let knows = |document: &Document, pid: u32| {
        let mut all = document.processes.iter();
        all.any(|one| one.pid == pid && one.exit.is_some_and(|exit| exit.code == Some(0)))
    };
    wait_until("not everything is in the history", || {
        let told = answer(&["report", "--since", "1h", "--format", "json"]);
        let document: Document = serde_json::from_slice(&told).expect("a document");
        ended.iter().all(|pid| knows(&document, *pid))
    });
    // A machine that is held up for seconds has gaps of another name.
    let query = "SELECT detail FROM event WHERE kind = 'gap' AND detail LIKE 'the daemon %' ORDER BY time_ms";
    let mut sqlite = Command::new(tool("sqlite3", "sqlite3"));
    sqlite.args(["-readonly", &format!("{HISTORY}/history.sqlite"), query]);
    let told = run(&mut sqlite).exited(0).output();
    assert_eq!(told.lines().collect::<Vec<_>>(), ends);
    let kept = names_in(HISTORY);
    assert!(
        !kept.iter().any(|name| name.contains("damaged")),
        "{kept:?}"
    );
}

fn names_in(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What of memtrace is on this machine, beside the clone.
fn left() -> Vec<String> {
    let mut find = Command::new("find");
    find.args(PLACES).args(["-name", "*memtrace*"]);
    let found = run(&mut find).output();
    let directories = DIRECTORIES.iter().filter(|path| Path::new(path).exists());
    let found = found.lines().chain(directories.copied());
    found.map(str::to_owned).collect()
}

fn accounts() -> [String; 2] {
    ["/etc/passwd", "/etc/group"].map(|path| fs::read_to_string(path).expect("accounts"))
}

/// Installs it on a machine without memtrace. The service is there and does not run: whoever wants the program
/// alone has not asked for it.
fn install() {
    for directory in DIRECTORIES {
        // The machine outside, whose files these are, may have run a daemon.
        let _ = fs::remove_dir_all(directory);
    }
    assert_eq!(left(), [""; 0]);
    dpkg(&["--install"], &package("MEMTRACE_PACKAGE"));
    assert_eq!(
        systemctl(&["is-enabled", "memtrace"]).output(),
        "disabled\n"
    );
    assert_eq!(main_pid(), 0);
}

/// What an administrator changes; the file's text then.
fn configure(heap: &Path) -> String {
    let packaged = fs::read_to_string(CONFIGURATION).expect("a configuration");
    // An emulated processor is over the budget, and then heaps are left out.
    let text = packaged.replace("# cpu_percent = 2.0", "cpu_percent = 100.0");
    assert_ne!(text, packaged);
    let text = format!("{text}\n[[heap]]\nexe = {heap:?}\n");
    fs::write(CONFIGURATION, &text).expect("change the configuration");
    text
}

/// Starts the service as the README says: it tells when it is ready and that it is alive, and its limits let it see.
fn start(steps: &mut Steps) {
    systemctl(&["enable", "--now", "memtrace"]).exited(0);
    assert_eq!(systemctl(&["is-active", "memtrace"]).output(), "active\n");
    let as_packaged = ["Type", "WatchdogUSec", "NoNewPrivileges", "ProtectSystem"].map(property);
    assert_eq!(as_packaged, ["notify", "1min", "yes", "strict"]);
    let alive = || -> u64 {
        let told = property("WatchdogTimestampMonotonic");
        told.parse().expect("microseconds")
    };
    let first = alive();
    wait_until("the watchdog is told nothing", || alive() > first);
    steps.round();
    wait_until("nothing is known of a heap", || {
        let line = line_of(steps.pid());
        line.is_some_and(|line| line.minor > 0 && line.heap_live_bytes.is_some_and(|live| live > 0))
    });
    assert!(line_of(1).is_some(), "systemd is in the list");
    all_is_of(main_pid(), steps);
}

/// Lets systemd wait so long before it starts a daemon that was killed that what stays attached meanwhile is seen.
fn restart_late() {
    let drop_in = Path::new("/run/systemd/system/memtrace.service.d");
    fs::create_dir_all(drop_in).expect("a directory");
    let late = "[Service]\nRestartSec=20\n";
    fs::write(drop_in.join("late.conf"), late).expect("a drop-in");
    systemctl(&["daemon-reload"]).exited(0);
}

/// Kills it as nobody can be prepared for: nothing stays attached, and systemd starts another.
fn kill_the_daemon(steps: &mut Steps) {
    restart_late();
    let daemon = main_pid();
    kill(Pid::from_raw(daemon.cast_signed()), Signal::SIGKILL).expect("it runs");
    wait_until("something stays attached", || {
        steps.breakpoints() == 0 && who_has_perf_events().is_empty()
    });
    wait_until("it is not started again", || {
        property("NRestarts") == "1" && is_active()
    });
    let next = main_pid();
    assert_ne!(next, daemon);
    wait_until("the heap is not probed again", || steps.breakpoints() > 0);
    all_is_of(next, steps);
}

/// Upgrades the package while the service runs: another daemon runs, by the same configuration.
fn upgrade(steps: &mut Steps, configuration: &str) {
    let daemon = main_pid();
    dpkg(&["--install"], &package("MEMTRACE_PACKAGE_UPGRADE"));
    let query = [
        "--show",
        "--showformat=${db:Status-Status} ${Version}",
        "memtrace",
    ];
    let told = run(Command::new("dpkg-query").args(query)).output();
    assert!(
        told.starts_with("installed ") && told.ends_with("+next"),
        "{told}"
    );
    assert!(is_active(), "{}", journal());
    let next = main_pid();
    assert_ne!(next, daemon);
    let kept = fs::read_to_string(CONFIGURATION).expect("a configuration");
    assert_eq!(kept, configuration);
    wait_until("the heap is not probed again", || steps.breakpoints() > 0);
    all_is_of(next, steps);
}

/// Removes it: nothing runs and nothing is attached, and what is the administrator's stays.
fn remove(steps: &mut Steps, configuration: &str) {
    dpkg(&["--remove"], Path::new("memtrace"));
    assert_eq!(systemctl(&["is-active", "memtrace"]).output(), "inactive\n");
    assert_eq!(steps.breakpoints(), 0);
    assert_eq!((who_has_perf_events(), who_has_uprobes()), (vec![], vec![]));
    let kept = fs::read_to_string(CONFIGURATION).expect("a configuration");
    assert_eq!(kept, configuration);
    assert_eq!(names_in(HISTORY), ["history.sqlite"]);
    assert!(!Path::new("/run/memtrace").exists());
}

#[test]
#[ignore = "installs the package: cargo xtask vm --systemd"]
fn the_package_is_installed_started_killed_upgraded_removed_and_purged() {
    in_vm();
    assert!(
        Path::new("/run/systemd/system/job.service").exists(),
        "this test takes systemd: run `cargo xtask vm --systemd`"
    );
    let before = accounts();
    let heap = workload("steps.c");
    let mut steps = Steps::start(0);

    install();
    let configuration = configure(&heap);
    start(&mut steps);
    let mut ended = vec![one_that_ends()];
    history_goes_on(&[], &ended);
    kill_the_daemon(&mut steps);
    ended.push(one_that_ends());
    history_goes_on(&[KILLED], &ended);
    upgrade(&mut steps, &configuration);
    ended.push(one_that_ends());
    history_goes_on(&[KILLED, STOPPED], &ended);
    remove(&mut steps, &configuration);
    dpkg(&["--purge"], Path::new("memtrace"));

    fs::remove_dir_all("/run/systemd/system/memtrace.service.d").expect("the test's own");
    assert_eq!(left(), [""; 0]);
    assert_eq!(accounts(), before);
    steps.round();
    steps.end(0);
}
