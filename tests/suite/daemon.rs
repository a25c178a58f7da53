//! The daemon over a cgroup: every process in it is seen, whatever it does, and none beside it.

use std::process::Command;

use memtrace::report::document::Process;
use memtrace_tests::Running;
use memtrace_tests::daemon::{Cgroup, Daemon};
use memtrace_tests::expect::{number, within};
use memtrace_tests::steps::Steps;
use memtrace_tests::workload::{tool, workload};
use nix::sys::signal::Signal;

/// A field of /proc/PID/status in bytes.
fn status(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a field of status")
        * 1024
}

fn ran(program: &str) -> impl Fn(&Process) -> bool {
    let path = workload(program);
    move |process| process.exe == path.to_str().expect("a path in UTF-8")
}

#[test]
fn faults_are_those_that_the_kernel_counted() {
    let daemon = Daemon::start();
    let mut command = Command::new(workload("faults.c"));
    let finished = daemon.cgroup.run(command.args(["anonymous", "64"]));
    finished.exited(0);
    let counted = number(&finished.object(), "minor");
    let ended = daemon.ended(1, ran("faults.c"));
    let faults = &ended[0].faults;
    // The kernel's count includes what came between fork and the cgroup, and leaves out what came after it was printed.
    assert!(
        faults.minor.abs_diff(counted) < 200,
        "{} faults, the kernel counted {counted}",
        faults.minor
    );
    let latency = faults.latency_ns.as_ref().expect("latencies");
    assert_eq!(latency.count, faults.minor + faults.major);
}

#[test]
fn every_process_that_comes_and_goes_is_in_the_history() {
    const CHILDREN: usize = 200;
    let daemon = Daemon::start();
    let mut command = Command::new(workload("children.c"));
    let finished = daemon
        .cgroup
        .run(command.args([&CHILDREN.to_string(), "exec"]));
    finished.exited(0);
    let ended = daemon.ended(CHILDREN + 1, ran("children.c"));
    assert_eq!(ended.len(), CHILDREN + 1);
    let parents = ended
        .iter()
        .filter(|one| one.command_line.len() == 3)
        .count();
    assert_eq!(parents, 1, "the others are called with one argument");
    for process in &ended {
        assert_eq!(process.exit.expect("it ended").code, Some(0));
        assert!(process.faults.minor > 0, "{}: no fault", process.pid);
        assert!(process.address_space.peak_committed_bytes > 0);
    }
    let coverage = daemon.report(&[]).coverage;
    // Under pressure the kernel may have no room for a histogram at a fork: those faults are counted without it.
    let missing = coverage.lost_by_reason.get("fault_histogram_missing");
    assert_eq!(coverage.lost, missing.copied().unwrap_or(0), "{coverage:?}");
}

#[test]
fn what_ran_before_is_there_with_its_memory() {
    let cgroup = Cgroup::new();
    let mut steps = Steps::of(cgroup.holds(&mut Command::new(workload("steps.c"))));
    let daemon = Daemon::over(cgroup, "");
    let line = daemon.line(steps.pid(), |_| true);
    let committed = status(steps.pid(), "VmRSS:");
    within(5.0, line.committed_bytes, committed, "bytes");
    within(
        5.0,
        line.reserved_bytes,
        status(steps.pid(), "VmSize:"),
        "bytes",
    );
    assert_eq!(line.heap_live_bytes, None, "no probe is on its heap");
    let document = daemon.report(&["-p", &steps.pid().to_string()]);
    let [process] = &document.processes[..] else {
        panic!("one process was asked for");
    };
    within(
        5.0,
        process.address_space.committed_bytes,
        committed,
        "bytes",
    );
    assert_eq!(process.address_space.committed_source, "smaps");
    assert!(process.regions.iter().any(|region| region.kind == "heap"));
    steps.round();
    steps.end(0);
}

#[test]
fn who_enters_the_cgroup_is_met() {
    let daemon = Daemon::start();
    let mut steps = Steps::start(0);
    let procs = memtrace::probe::area::hierarchy()
        .expect("cgroup2")
        .join(daemon.cgroup.path().trim_start_matches('/'))
        .join("cgroup.procs");
    std::fs::write(procs, steps.pid().to_string()).expect("move a process");
    // Its first call or fault tells.
    steps.round();
    let line = daemon.line(steps.pid(), |line| line.comm.starts_with("steps"));
    within(
        5.0,
        line.committed_bytes,
        status(steps.pid(), "VmRSS:"),
        "bytes",
    );
    steps.end(0);
}

#[test]
fn who_is_outside_is_not_seen() {
    let daemon = Daemon::start();
    let mut outside = Steps::start(0);
    let mut inside = Steps::of(daemon.cgroup.holds(&mut Command::new(workload("steps.c"))));
    outside.round();
    inside.round();
    daemon.line(inside.pid(), |_| true);
    let pids: Vec<u32> = daemon.ps().processes.iter().map(|line| line.pid).collect();
    assert_eq!(pids, [inside.pid()]);
    let told = daemon.ask(&["report", "-p", &outside.pid().to_string()]);
    told.exited(1);
    assert!(told.one_line().contains("no such process is traced"));
    outside.end(0);
    inside.end(0);
}

#[test]
fn a_process_that_grows_is_shown_growing() {
    let daemon = Daemon::start();
    let script = "import sys\nblocks = []\nfor line in sys.stdin:\n    blocks.append(bytearray(int(line)))\n    print('done', flush=True)\n";
    let mut command = Command::new("/usr/bin/python3");
    let mut python = daemon.cgroup.start(command.args(["-c", script]));
    let before = daemon.line(python.pid(), |_| true).committed_bytes;
    python.send(b"50000000\n");
    python.stdout_lines(1);
    let line = daemon.line(python.pid(), |line| {
        line.committed_bytes > before + 40_000_000
    });
    within(
        5.0,
        line.committed_bytes,
        status(python.pid(), "VmRSS:"),
        "bytes",
    );
    assert!(
        line.growth_per_second > 100_000.0,
        "{}",
        line.growth_per_second
    );
    assert!(
        line.fault_p99_ns.is_some_and(|p99| p99 > 100),
        "{:?}",
        line.fault_p99_ns
    );
    python.finish().exited(0);
}

#[test]
fn a_tiny_buffer_loses_events_and_says_so_while_faults_stay_exact() {
    let mut daemon = Daemon::with("ring_buffer = '4KiB'");
    let mut command = Command::new(workload("faults.c"));
    let mut children = Command::new(workload("children.c"));
    // Stopped, the daemon drains nothing.
    daemon.process().signal(nix::sys::signal::Signal::SIGSTOP);
    let faults = daemon.cgroup.start(command.args(["anonymous", "64"]));
    daemon.cgroup.run(children.args(["50", "exec"])).exited(0);
    let pid = faults.pid();
    let finished = faults.finish();
    let counted = number(&finished.object(), "minor");
    daemon.process().signal(nix::sys::signal::Signal::SIGCONT);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while daemon.ps().lost == 0 {
        assert!(
            std::time::Instant::now() < until,
            "nothing is said to be lost"
        );
    }
    let document = daemon.report(&[]);
    let lost = document.coverage.lost_by_reason;
    assert!(
        lost.keys().any(|reason| reason.starts_with("ring_full_")),
        "{lost:?}"
    );
    // Another process is seen whole again.
    let mut again = Command::new(workload("faults.c"));
    let finished = daemon.cgroup.run(again.args(["anonymous", "64"]));
    let ended = daemon.ended(1, |one| ran("faults.c")(one) && one.pid != pid);
    let again = number(&finished.object(), "minor");
    assert!(ended[0].faults.minor.abs_diff(again) < 200);
    assert!(counted > 16_000);
}

#[test]
fn there_is_one_daemon_at_a_time() {
    let mut daemon = Daemon::start();
    let second = memtrace_tests::child::run(&mut daemon.command());
    second.exited(1);
    let pid = daemon.process().pid();
    assert!(
        second
            .one_line()
            .contains(&format!("another memtrace daemon runs (pid {pid})")),
        "{}",
        second.messages()
    );
    daemon.ps();
}

#[test]
fn sigterm_ends_it_in_good_order() {
    let mut daemon = Daemon::start();
    assert!(daemon.socket().exists());
    daemon.stop().exited(0);
    assert!(!daemon.socket().exists());
    let told = daemon.ask(&["ps"]);
    told.exited(1);
    assert!(told.one_line().contains("start one with memtrace daemon"));
}

#[test]
fn a_configuration_is_checked() {
    let scratch = memtrace_tests::Scratch::new();
    let check = |text: &str| {
        let path = scratch.write("m.toml", text);
        let mut command = memtrace_tests::memtrace(&["daemon", "--check", "--config"]);
        memtrace_tests::child::run(command.arg(path))
    };
    check("[history]\nkeep_1s = '2h'\n").exited(0);
    let wrong = check("\n[socket]\nclints = 3\n");
    wrong.exited(1);
    let line = wrong.one_line();
    assert!(
        line.contains(
            "m.toml:3: unknown field `clints`, expected one of `group`, `users`, `clients`"
        ),
        "{line}"
    );
    let mut command = memtrace_tests::memtrace(&["daemon", "--config"]);
    let path = scratch.write("m.toml", "cgroup = '/there/is/none'\n");
    let none = memtrace_tests::child::run(command.arg(path));
    none.exited(1);
}

#[test]
fn command_lines_are_redacted_everywhere() {
    let daemon = Daemon::with("redact_command_lines = 'arguments'");
    let sleep = tool("sleep", "coreutils");
    let running: Running = daemon.cgroup.start(Command::new(&sleep).arg("1000.25"));
    let pid = running.pid();
    daemon.line(pid, |line| line.comm == "sleep");
    let now = daemon.report(&["-p", &pid.to_string()]);
    assert_eq!(now.processes[0].command_line[1..], ["[hidden]"]);
    let history = std::fs::read(daemon.history()).expect("a history");
    let journal = std::fs::read(format!("{}-wal", daemon.history().display())).unwrap_or_default();
    for bytes in [history, journal] {
        assert!(!bytes.windows(7).any(|window| window == b"1000.25"));
    }
    running.signal(nix::sys::signal::Signal::SIGTERM);
    let past = daemon.ended(1, |one| one.pid == pid);
    assert_eq!(past[0].command_line[1..], ["[hidden]"]);
}

#[test]
fn a_service_manager_is_told_and_few_capabilities_are_kept() {
    let mut daemon = Daemon::start();
    daemon.stop().exited(0);
    let path = daemon.scratch.path("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    let patience = memtrace_tests::child::deadline() - std::time::Instant::now();
    socket.set_read_timeout(Some(patience)).expect("a time-out");
    let told = || {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    };
    let mut command = daemon.command();
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "60000000");
    let running = Running::start(&mut command);
    assert_eq!(told(), "READY=1");
    assert_eq!(told(), "WATCHDOG=1");

    // include/uapi/linux/capability.h: DAC_READ_SEARCH, SYS_PTRACE, PERFMON, BPF, CHECKPOINT_RESTORE.
    let kept = [2, 19, 38, 39, 40]
        .map(|bit| 1u64 << bit)
        .iter()
        .sum::<u64>();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", running.pid())).expect("it runs");
    let mut threads = 0;
    for task in tasks {
        let status = task.expect("a thread").path().join("status");
        let status = std::fs::read_to_string(status).expect("it runs");
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            let line = status.lines().find_map(|line| line.strip_prefix(set));
            let has = u64::from_str_radix(line.expect("a set").trim(), 16).expect("a number");
            assert_eq!(has & !kept, 0, "{set} {has:x}");
        }
        threads += 1;
    }
    assert!(threads > 1, "the history has a thread");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    while told() != "STOPPING=1" {}
    running.finish().exited(0);
}

/// It does nothing by which the kernel side would meet it.
#[test]
fn who_is_moved_into_the_cgroup_asleep_is_seen() {
    let daemon = Daemon::start();
    let asleep = Running::start(Command::new("sleep").arg("1000"));
    daemon.cgroup.take(asleep.pid());
    let line = daemon.line(asleep.pid(), |line| line.committed_bytes > 0);
    assert_eq!(line.comm, "sleep");
    asleep.signal(Signal::SIGTERM);
    drop(asleep);
    daemon.ended(1, |one| one.comm == "sleep");
}
