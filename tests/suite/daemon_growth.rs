//! Growth by the stacks that touch memory first: a leak is named without a heap probe, and no cache is.

use std::process::Command;
use std::time::{Duration, Instant};

use memtrace::report::document::{Document, GrowthSite, Process};
use memtrace_tests::Scratch;
use memtrace_tests::child::{Running, deadline};
use memtrace_tests::daemon::Daemon;
use memtrace_tests::vm::alone_in_vm;
use memtrace_tests::workload::workload;
use nix::sys::signal::Signal;

/// Growth is judged after ten seconds in place of three minutes.
const SOON: &str = "growth = { after = '10s' }\n";

const CACHES: [&str; 3] = ["warm_up", "refill", "replace_oldest"];

/// Bytes that refill() of the workload maps.
const REFILL: u64 = 6 << 20;

/// The workload `growth.c`, which leaks 4,000 bytes each ten milliseconds.
struct Leaking {
    process: Running,
    answers: usize,
}

impl Leaking {
    fn start(daemon: &Daemon) -> Leaking {
        Leaking::with(daemon, &["4000", "3"])
    }

    fn with(daemon: &Daemon, arguments: &[&str]) -> Leaking {
        let mut command = Command::new(workload("growth.c"));
        let process = daemon.cgroup.start(command.args(arguments));
        process.stdout_lines(1);
        Leaking {
            process,
            answers: 1,
        }
    }

    /// By its own count: bytes that were leaked, and how often a cache was emptied.
    fn counts(&mut self) -> (u64, u64) {
        self.process.send(b"?");
        self.answers += 1;
        let lines = self.process.stdout_lines(self.answers);
        let line = lines.lines().nth(self.answers - 1).expect("an answer");
        let answer: serde_json::Value = serde_json::from_str(line).expect("an object");
        let number = |key: &str| answer[key].as_u64().expect("a number");
        (number("leaked"), number("refills"))
    }
}

fn has(process: &Process, site: &GrowthSite, function: &str) -> bool {
    process
        .stack(&site.stack)
        .any(|frame| frame.function.as_deref() == Some(function))
}

fn sites<'a>(process: &'a Process, function: &str) -> Vec<&'a GrowthSite> {
    let growth = process.growth.iter();
    growth
        .flat_map(|growth| &growth.sites)
        .filter(|site| has(process, site, function))
        .collect()
}

/// What the sites of a function hold, and the standard error of that.
fn held(process: &Process, function: &str) -> (u64, u64) {
    let sites = sites(process, function);
    let squares: f64 = sites
        .iter()
        .map(|site| (site.bytes_error as f64).powi(2))
        .sum();
    (
        sites.iter().map(|site| site.bytes).sum(),
        squares.sqrt() as u64,
    )
}

/// Waits for a report that fits; no cache may be called a candidate in any before.
#[track_caller]
fn until(daemon: &Daemon, pid: u32, fits: impl Fn(&Process) -> bool) -> Process {
    let end = deadline();
    loop {
        let process = daemon.process_now(pid);
        for site in process.growth.iter().flat_map(|growth| &growth.sites) {
            for cache in CACHES {
                assert!(
                    !site.leak_candidate || !has(&process, site, cache),
                    "{cache}: {site:?}"
                );
            }
        }
        if fits(&process) {
            return process;
        }
        assert!(Instant::now() < end, "{:?}", process.growth);
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn candidate(process: &Process) -> bool {
    sites(process, "leak_request")
        .iter()
        .any(|site| site.leak_candidate)
}

#[test]
fn a_leak_among_caches_is_named_with_its_stack_and_no_cache_is() {
    let daemon = Daemon::with(SOON);
    let mut leaking = Leaking::start(&daemon);
    let pid = leaking.process.pid();
    let first = until(&daemon, pid, |process| held(process, "leak_request").0 > 0);
    let (leaked_before, _) = leaking.counts();
    let found = until(&daemon, pid, candidate);
    let (leaked, refills) = leaking.counts();
    assert_eq!(found.heap, None, "it takes no heap probes");
    let site = sites(&found, "leak_request")[0];
    assert!(has(&found, site, "main"), "{:?}", found.frames);
    assert!(
        site.confidence > 0.99 && site.bytes_per_second > 0.0,
        "{site:?}"
    );
    // What was leaked between two counts was touched between the reports about them: blocks have a header of 16 bytes,
    // some other small blocks and a cut page at either end.
    let (before, now) = (held(&first, "leak_request"), held(&found, "leak_request"));
    let most = (leaked - leaked_before) as f64 * 1.02 + 5.0 * now.1 as f64 + 65_536.0;
    assert!(
        (now.0 - before.0) as f64 <= most,
        "{now:?} {before:?}, of {most}"
    );
    let (again, later) = (daemon.process_now(pid), leaking.counts());
    let least = (leaked - leaked_before) as f64 * 0.9 - 5.0 * now.1 as f64 - 65_536.0;
    let grown = held(&again, "leak_request").0 as f64 - before.0 as f64;
    assert!(grown >= least, "{grown}, of {least} ({later:?})");
    // What was unmapped is nobody's any more.
    assert!(refills >= 3, "{refills}");
    let (kept, error) = held(&again, "refill");
    assert!(
        kept <= REFILL + 5 * error,
        "{kept} ± {error} after {refills} times"
    );
    // And the text says it.
    let told = daemon.ask(&["report", "growth", "-p", &pid.to_string()]);
    told.exited(0);
    let text = told.output();
    let line = text
        .lines()
        .find(|line| line.contains("LEAK?"))
        .expect("a line");
    assert!(line.contains("leak_request"), "{text}");
}

#[test]
fn threads_of_before_and_those_that_they_start_are_sampled() {
    let daemon = Daemon::with(SOON);
    let leaking = Leaking::with(&daemon, &["4000", "3", "threads"]);
    let found = until(&daemon, leaking.process.pid(), candidate);
    let site = sites(&found, "leak_request").remove(0);
    assert!(has(&found, site, "leaks_for_a_second"), "{site:?}");
}

#[test]
fn the_history_keeps_the_leak_with_its_stack_when_the_process_has_ended() {
    let daemon = Daemon::with(SOON);
    let leaking = Leaking::start(&daemon);
    let pid = leaking.process.pid();
    let end = deadline();
    let past = || daemon.report(&["--since", "1h", "-p", &pid.to_string()]);
    // Nobody asks for a name: the daemon has it looked up for the history.
    while !past().processes.first().is_some_and(candidate) {
        assert!(Instant::now() < end, "{:?}", past());
        std::thread::sleep(Duration::from_millis(500));
    }
    leaking.process.signal(Signal::SIGKILL);
    leaking.process.finish();
    let ended = daemon.ended(1, |process| process.pid == pid).remove(0);
    let site = sites(&ended, "leak_request").remove(0);
    assert!(site.leak_candidate && has(&ended, site, "main"), "{site:?}");
    assert!(site.points.len() >= 2, "{site:?}");
    assert!(
        site.points.is_sorted_by_key(|point| point.bytes),
        "{site:?}"
    );
    let told = daemon.ask(&["report", "growth", "--since", "1h"]);
    told.exited(0);
    assert!(told.output().contains("LEAK?"), "{}", told.output());
}

fn left_out(document: &Document, what: &str) -> bool {
    document
        .coverage
        .left_out
        .iter()
        .any(|one| one.what.starts_with(what))
}

#[test]
fn over_the_budget_the_sample_is_thinned_and_then_left_out_and_it_is_said() {
    let daemon = Daemon::with(&format!(
        "budget = {{ cpu_percent = 0.0 }}\n{SOON}#[budget]\n"
    ));
    let leaking = Leaking::start(&daemon);
    let pid = leaking.process.pid();
    let over = |process: &Process| {
        process
            .growth
            .as_ref()
            .is_some_and(|growth| growth.until_ns.is_some())
    };
    until(&daemon, pid, over);
    let document = daemon.report(&[]);
    for what in [
        "up to seven eighths of the sample of growth: ",
        "the sample of growth: ",
    ] {
        assert!(
            left_out(&document, what),
            "{:?}",
            document.coverage.left_out
        );
    }
}

/// Bytes of a process of the test's own in huge pages.
fn in_huge_pages(pid: u32) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it runs");
    let mut lines = smaps.lines();
    let line = lines.find_map(|line| line.strip_prefix("AnonHugePages:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.expect("a figure").parse::<u64>().expect("a number") << 10
}

#[test]
#[ignore = "the machine must give huge pages unasked: cargo xtask vm"]
fn huge_pages_that_come_unasked_count_whole() {
    const CHUNK: u64 = 8 << 20;
    let _alone = alone_in_vm();
    let daemon = Daemon::with(SOON);
    let mut command = Command::new(workload("chunks.c"));
    let mut process = daemon.cgroup.start(command.args([CHUNK.to_string()]));
    process.stdout_lines(1);
    let pid = process.pid();
    let mut answers = 1;
    let mut touched = || {
        process.send(b"?");
        answers += 1;
        let lines = process.stdout_lines(answers);
        let line = lines.lines().nth(answers - 1).expect("an answer");
        let answer: serde_json::Value = serde_json::from_str(line).expect("an object");
        answer["touched"].as_u64().expect("a number")
    };
    let first = until(&daemon, pid, |process| held(process, "touch_chunk").0 > 0);
    let (before, _) = held(&first, "touch_chunk");
    let after_first = touched();
    let enough = after_first + (64 << 20);
    let end = deadline();
    while touched() < enough {
        assert!(Instant::now() < end, "{enough} B are not touched");
        std::thread::sleep(Duration::from_millis(500));
    }
    let (until_last, last) = (touched(), daemon.process_now(pid));
    let (now, error) = held(&last, "touch_chunk");
    let huge = in_huge_pages(pid);
    assert!(huge > until_last / 2, "{huge} B of {until_last} are huge");
    assert_eq!(error, 0, "of so few faults each is told");
    // A chunk may be touched between a count and its report.
    let touched_between = until_last - after_first;
    assert!(
        now - before >= touched_between - CHUNK,
        "{now} from {before}, of {touched_between}"
    );
    assert!(now <= touched(), "{now}");
}

/// The file was mapped before anybody followed the process, so that no call tells what it is.
#[test]
fn pages_of_a_file_are_no_growth() {
    const READ: &str = "\
import mmap, os, sys, time
with open(sys.argv[1], 'w+b') as file:
    os.ftruncate(file.fileno(), 1 << 30)
    pages = mmap.mmap(file.fileno(), 1 << 30, mmap.MAP_SHARED, mmap.PROT_READ)
leaked = []
print('ready', flush=True)
for page in range(1 << 18):
    pages[page << 12]
    if page % 512 == 0:
        leaked.append(b'x' * 50000)
        time.sleep(0.1)";
    let scratch = Scratch::new();
    let daemon = Daemon::with(SOON);
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", READ]).arg(scratch.path("file"));
    let reading = daemon.cgroup.start(&mut command);
    reading.stdout_lines(1);
    let pid = reading.pid();
    let before = anonymous_bytes(pid);
    let end = deadline();
    // The history is told of growth as it is known without a look at smaps, and at once when there is a leak.
    let growth = loop {
        let document = daemon.report(&["--since", "2m", "-p", &pid.to_string()]);
        let mut growth = document.processes.into_iter().filter_map(|one| one.growth);
        if let Some(growth) = growth.find(|one| one.sites.iter().any(|site| site.leak_candidate)) {
            break growth;
        }
        assert!(Instant::now() < end, "no leak was found");
        std::thread::sleep(Duration::from_millis(500));
    };
    let grown = anonymous_bytes(pid) - before;
    let sum = |of: fn(&GrowthSite) -> u64| growth.sites.iter().map(of).sum::<u64>();
    let (bytes, error) = (sum(|site| site.bytes), sum(|site| site.bytes_error));
    assert!(bytes <= grown + 4 * error, "{grown}: {growth:?}");
}

fn anonymous_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") << 10
}
