//! The daemon over real servers and a compiler under load, for a minute, or for MEMTRACE_SOAK_SECONDS: nothing lost
//! that is not counted, its memory flat, its budget held or said to be exceeded, and the kernel's counts.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memtrace_tests::Running;
use memtrace_tests::child::{deadline, run};
use memtrace_tests::daemon::{Cgroup, Daemon};
use memtrace_tests::scratch::{Scratch, workspace};
use memtrace_tests::workload::tool;
use nix::sys::signal::Signal;

/// Debian's user for what owns nothing; PostgreSQL refuses to be root.
const NOBODY: u32 = 65_534;

const MIB: u64 = 1 << 20;

fn soak() -> Duration {
    let seconds = std::env::var("MEMTRACE_SOAK_SECONDS").map_or(60, |seconds| {
        seconds
            .parse()
            .expect("MEMTRACE_SOAK_SECONDS is a whole number")
    });
    Duration::from_secs(seconds)
}

/// A command as that user, in the background of the machine.
fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new(tool("setpriv", "util-linux"));
    let user = ["--reuid", "--regid"].map(|which| format!("{which}={NOBODY}"));
    command
        .args(user)
        .args(["--clear-groups", "nice"])
        .arg(program);
    command
}

/// A directory that is theirs.
fn of_nobody(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.path(name);
    fs::create_dir(&path).expect("make a directory");
    chown(&path, Some(NOBODY), Some(NOBODY)).expect("give it away");
    path
}

fn redis(cgroup: &Cgroup, at: &Path) -> Running {
    let mut command = Command::new(tool("redis-server", "redis-server"));
    command
        .args(["--port", "0", "--save", "", "--appendonly", "no"])
        .arg("--unixsocket")
        .arg(at.join("redis"))
        .current_dir(at);
    let server = cgroup.start(&mut command);
    server.stdout_has("eady to accept connections");
    server
}

fn postgres(cgroup: &Cgroup, at: &Path) -> Running {
    let data = at.join("data");
    let mut init = as_nobody(&tool("initdb", "postgresql-15"));
    init.args(["-U", "postgres", "-A", "trust", "--no-sync", "-D"]);
    run(init.arg(&data)).exited(0);
    let mut command = as_nobody(&tool("postgres", "postgresql-15"));
    command.arg("-D").arg(&data).arg("-k").arg(at).args([
        "-c",
        "listen_addresses=",
        "-c",
        "fsync=off",
    ]);
    let server = cgroup.start(&mut command);
    server.stderr_has("ready to accept connections");
    server
}

fn nginx(cgroup: &Cgroup, at: &Path) -> Running {
    let text = format!(
        "worker_processes 2;\npid {at}/pid;\nerror_log stderr notice;\nevents {{}}\nhttp {{\n\
         access_log off;\nclient_body_temp_path {at}/1;\nproxy_temp_path {at}/2;\nfastcgi_temp_path {at}/3;\n\
         uwsgi_temp_path {at}/4;\nscgi_temp_path {at}/5;\n\
         server {{ listen unix:{at}/http; location / {{ root {at}; }} }}\n}}\n",
        at = at.display()
    );
    let config = at.join("nginx.conf");
    fs::write(&config, text).expect("write the configuration");
    fs::write(at.join("page"), vec![b'x'; 30_000]).expect("write a page");
    let mut command = as_nobody(&tool("nginx", "nginx"));
    command.args(["-g", "daemon off;", "-e", "stderr", "-c"]);
    let server = cgroup.start(command.arg(config));
    server.stderr_has("start worker process");
    server
}

/// Work that goes on until it is stopped; how often it was done.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Load {
    fn of(mut work: impl FnMut() + Send + 'static) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut times = 0;
            while !stopped.load(Ordering::Relaxed) {
                work();
                times += 1;
            }
            times
        });
        Load {
            stop,
            thread: Some(thread),
        }
    }

    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("the load did what it does")
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

fn loads(cgroup: &Arc<Cgroup>, at: &Path) -> (Vec<Load>, Load) {
    let redis = at.join("redis");
    let sets = move || {
        let mut load = Command::new(tool("redis-benchmark", "redis-tools"));
        load.arg("-s").arg(&redis);
        load.args(["-t", "set,get", "-n", "20000", "-r", "20000", "-q"]);
        run(&mut load).exited(0);
        std::thread::sleep(Duration::from_millis(500));
    };
    let host = at.to_owned();
    let transactions = move || {
        let mut load = Command::new(tool("pgbench", "postgresql-15"));
        load.args(["-U", "postgres", "-c", "2", "-t", "200", "-h"]);
        run(load.arg(&host).arg("postgres")).exited(0);
        std::thread::sleep(Duration::from_millis(500));
    };
    let script = "import socket, sys\nfor turn in range(500):\n    s = socket.socket(socket.AF_UNIX)\n    \
                  s.connect(sys.argv[1])\n    s.sendall(b'GET /page HTTP/1.0\\r\\n\\r\\n')\n    size = 0\n    \
                  while data := s.recv(65536): size += len(data)\n    assert size > 30000, size\n";
    let http = at.join("http");
    let pages = move || {
        let mut load = Command::new("/usr/bin/python3");
        run(load.args(["-c", script]).arg(&http)).exited(0);
        std::thread::sleep(Duration::from_millis(500));
    };
    let (cgroup, object) = (Arc::clone(cgroup), at.join("object.o"));
    let compile = move || {
        let mut gcc = Command::new(tool("gcc", "gcc"));
        gcc.arg("-O1").arg("-c").arg("-o").arg(&object);
        let source = workspace().join("tests/workloads/busy.c");
        cgroup.run(gcc.arg(source)).exited(0);
    };
    let servers = vec![Load::of(sets), Load::of(transactions), Load::of(pages)];
    (servers, Load::of(compile))
}

/// What the daemon takes, by /proc: its processor time and its programs' in nanoseconds, and resident bytes.
fn taken(pid: u32) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields = stat.rsplit_once(')').expect("a name").1;
    // proc_pid_stat(5): utime and stime are the 12th and 13th after the name, in hundredths of a second.
    let ticks = fields.split_whitespace().skip(11).take(2);
    let own: u64 = ticks
        .map(|ticks| ticks.parse::<u64>().expect("a number"))
        .sum();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("it runs");
    let programs = descriptors
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter_map(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("run_time_ns:"))?;
            line.trim().parse::<u64>().ok()
        });
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).expect("it runs");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    let resident: u64 = pages.expect("resident pages");
    (own * 10_000_000 + programs.sum::<u64>(), resident * 4096)
}

/// Minor and major faults of a process so far, by the kernel.
fn faults(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .expect("a name")
        .1
        .split_whitespace()
        .collect();
    // proc_pid_stat(5): minflt and majflt.
    [7, 9]
        .map(|at| fields[at].parse::<u64>().expect("a number"))
        .iter()
        .sum()
}

/// Compilers that ended since `start`, once they are so many. An answer has 10,000 processes at most, so each is about
/// a minute.
fn compilations(daemon: &Daemon, start: Instant, least: usize) -> usize {
    let until = deadline();
    loop {
        let mut seen = HashSet::new();
        for minute in 0..=start.elapsed().as_secs() / 60 {
            let spans = [minute + 1, minute].map(|minutes| format!("{minutes}m"));
            let mut arguments = vec!["--since", spans[0].as_str()];
            if minute > 0 {
                arguments.extend(["--until", spans[1].as_str()]);
            }
            let document = daemon.report(&arguments);
            assert_eq!(document.coverage.processes_dropped, 0);
            let ended = document.processes.into_iter();
            let ended = ended.filter(|one| one.comm == "cc1" && one.exit.is_some());
            seen.extend(ended.map(|one| (one.pid, one.start_time_ns)));
        }
        if seen.len() >= least {
            return seen.len();
        }
        assert!(Instant::now() < until, "{} of {least} ended", seen.len());
    }
}

#[test]
fn servers_and_a_compiler_under_load_are_seen_whole_within_the_budget() {
    /// Of all CPUs, in percent, and bytes: what is allowed by default.
    const BUDGET: (f64, u64) = (2.0, 256 * MIB);
    let scratch = Scratch::new();
    let at = of_nobody(&scratch, "servers");
    let cgroup = Arc::new(Cgroup::new());
    let lines = "[budget]\ncpu_percent = 2.0\n[[heap]]\ncommand = 'redis-server'\n";
    let mut daemon = Daemon::of(&cgroup, lines);
    let pid = daemon.process().pid();
    let servers = [
        redis(&cgroup, &at),
        postgres(&cgroup, &at),
        nginx(&cgroup, &at),
    ];
    let mut fill = Command::new(tool("pgbench", "postgresql-15"));
    fill.args(["-U", "postgres", "-i", "-q", "-h"]);
    run(fill.arg(&at).arg("postgres")).exited(0);

    let (loads, compiler) = loads(&cgroup, &at);
    let (start, third) = (Instant::now(), soak() / 3);
    std::thread::sleep(third);
    let (spent, resident) = taken(pid);
    let between = Instant::now();
    while start.elapsed() < soak() {
        // Who is on call looks now and then.
        daemon.ps();
        std::thread::sleep(Duration::from_secs(2));
    }
    let (spent_by_end, resident_by_end) = taken(pid);
    let elapsed = between.elapsed();
    let compiled = compiler.stop();
    for load in loads {
        assert!(load.stop() > 0, "the servers served");
    }

    assert!(
        resident_by_end < resident + 16 * MIB,
        "{resident} B resident after a third, {resident_by_end} B at the end"
    );
    let document = daemon.report(&[]);
    let cpus = std::thread::available_parallelism().expect("CPUs").get() as f64;
    let percent = (spent_by_end - spent) as f64 * 100.0 / (elapsed.as_nanos() as f64 * cpus);
    let left_out = daemon.report(&["--since", "1h"]).coverage.left_out;
    assert!(
        percent <= BUDGET.0 || !left_out.is_empty(),
        "{percent:.1} % of the CPUs were taken, and nothing is said"
    );
    assert!(
        resident_by_end <= BUDGET.1 || !left_out.is_empty(),
        "{resident_by_end} B"
    );

    // A compilation is four processes; who is missing is counted.
    let lost = document.coverage.lost;
    let expected = usize::try_from(compiled).expect("a count");
    let least = expected.saturating_sub(usize::try_from(lost).expect("a count"));
    let seen = compilations(&daemon, start, least);
    assert!(
        (least..=expected).contains(&seen),
        "{seen} of {expected} compilations, {lost} events lost"
    );
    for server in &servers {
        // The last reading may be of before the last fault.
        let line = daemon.line(server.pid(), |line| {
            (line.minor + line.major).abs_diff(faults(server.pid())) < 200
        });
        assert!(line.minor > 200, "{line:?}");
    }
    println!(
        "{compiled} compilations, {lost} events lost; {percent:.2} % of the CPUs, {} and {} MiB; left out: {left_out:?}",
        resident / MIB,
        resident_by_end / MIB
    );
    for server in servers {
        server.signal(Signal::SIGTERM);
        server.finish();
    }
    daemon.stop().exited(0);
}
