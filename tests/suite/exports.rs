//! Stacks for other programs: their sums are the workload's own counts, and other programs open them.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use memtrace::report::document::{FaultSite, Frame};
use memtrace_tests::binary::{Attached, memtrace, read};
use memtrace_tests::child::run;
use memtrace_tests::expect::{number, within};
use memtrace_tests::pprof;
use memtrace_tests::workload::{tool, workload};
use memtrace_tests::{Finished, Running, Scratch, Traced, trace, trace_with};
use nix::sys::prctl;

/// A trace of `sites.c`, and its recording.
struct Recorded {
    scratch: Scratch,
    traced: Traced,
}

impl Recorded {
    fn new() -> Self {
        let scratch = Scratch::new();
        let recording = scratch.path("recording");
        let options = ["-o".as_ref(), recording.as_os_str()];
        let traced = trace_with(&options, &[workload("sites.c")]);
        traced.finished.exited(0);
        traced.nothing_lost();
        Self { scratch, traced }
    }

    /// What the workload counted.
    fn said(&self, key: &str) -> u64 {
        number(&self.traced.finished.object(), key)
    }

    /// What `memtrace report KIND --format FORMAT` says of the recording.
    fn export(&self, kind: &str, format: &str) -> Finished {
        let recording = self.scratch.path("recording");
        let report = run(memtrace(&["report", kind, "--format", format, "--from"]).arg(recording));
        report.exited(0);
        report
    }

    /// Value by stack.
    fn folded(&self, kind: &str) -> BTreeMap<String, u64> {
        let text = self.export(kind, "folded").output();
        let lines = text.lines().map(|line| {
            let (stack, value) = line.rsplit_once(' ').expect("a stack and a value");
            (stack.to_owned(), value.parse().expect("a number"))
        });
        lines.collect()
    }
}

/// The sum of the stacks that pass the function.
fn through(folded: &BTreeMap<String, u64>, function: &str) -> u64 {
    let passes = |stack: &str| stack.split(';').any(|frame| frame == function);
    folded
        .iter()
        .filter(|(stack, _)| passes(stack))
        .map(|(_, value)| value)
        .sum()
}

fn sum(folded: &BTreeMap<String, u64>) -> u64 {
    folded.values().sum()
}

#[test]
fn folded_stacks_sum_to_what_the_program_counted() {
    let recorded = Recorded::new();
    let leaks = recorded.folded("leaks");
    assert_eq!(sum(&leaks), recorded.said("live"));
    let stacks: Vec<_> = leaks.into_iter().collect();
    let [(stack, bytes)] = &*stacks else {
        panic!("{stacks:?}");
    };
    assert!(
        stack.starts_with("sites-") && stack.ends_with(";main;keep"),
        "{stack}"
    );
    assert_eq!(*bytes, 7 * 1234);

    let allocations = recorded.folded("allocations");
    assert_eq!(sum(&allocations), recorded.said("allocated"));
    assert_eq!(through(&allocations, "churn"), 100_000);
    assert_eq!(through(&allocations, "spike"), 50 * 40_000);
    assert_eq!(through(&allocations, "extend"), (1 << 17) - 16);
}

#[test]
fn the_peak_is_what_each_function_held_then() {
    let recorded = Recorded::new();
    let peak = recorded.folded("peak");
    assert_eq!(sum(&peak), recorded.said("peak"));
    assert_eq!(through(&peak, "grow"), 1_000_000);
    assert_eq!(through(&peak, "spike"), 2_000_000);
    assert_eq!(through(&peak, "keep") + through(&peak, "churn"), 0);
}

#[test]
fn faults_are_those_of_the_function_that_touched_the_pages() {
    let recorded = Recorded::new();
    let faults = recorded.folded("faults");
    let pages = recorded.said("pages");
    let touched = through(&faults, "touch");
    // Its first instruction may fault in its own page.
    assert!((pages..=pages + 1).contains(&touched), "{faults:?}");
    let measured = &recorded.traced.first().faults;
    assert_eq!(sum(&faults), measured.minor + measured.major);
}

#[test]
fn faults_in_the_kernel_are_named_after_its_functions() {
    let traced = trace(&[
        workload("faults.c").as_os_str(),
        "kernel".as_ref(),
        "16".as_ref(),
    ]);
    traced.nothing_lost();
    let process = traced.first();
    let mut kernel = 0;
    for site in &process.fault_sites {
        let frame = process.stack(&site.stack).next().expect("a frame");
        let of_kernel = frame.address >= 1 << 63;
        assert_eq!(
            frame.module.as_deref() == Some("[kernel]"),
            of_kernel,
            "{frame:?}"
        );
        if of_kernel {
            assert!(frame.function.is_some(), "{frame:?}");
            kernel += site.minor + site.major;
        }
    }
    // read() filled so many fresh pages; exec itself fills some before the program is told.
    let pages = (16 << 20) / 4096;
    assert!(
        (pages..=process.faults.kernel).contains(&kernel),
        "{kernel} of {:?}",
        process.faults
    );
}

/// What a runtime writes down of its own, removed with the test.
struct PerfMap(PathBuf);

impl Drop for PerfMap {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn code_that_a_runtime_generates_is_named_as_the_runtime_says() {
    const PAGES: u64 = (64 << 20) / 4096;
    let scratch = Scratch::new();
    let script = scratch.write(
        "touch.js",
        "function touchPages(a) { for (let i = 0; i < a.length; i += 4096) a[i] = 1; }
         const warm = new Uint8Array(1 << 20);
         for (let k = 0; k < 2000; k++) touchPages(warm);
         touchPages(new Uint8Array(64 << 20));",
    );
    let node = tool("node", "nodejs");
    let log = format!("--logfile={}", scratch.path("v8.log").display());
    let command = [
        node.as_os_str(),
        "--perf-basic-prof".as_ref(),
        // Otherwise it lies in the working directory.
        "--no-logfile-per-isolate".as_ref(),
        log.as_ref(),
        script.as_os_str(),
    ];
    let report = scratch.path("report.json");
    let mut traced = memtrace(&["run", "--no-heap", "--format", "json", "--report-file"]);
    traced.arg(&report).arg("--").args(command);
    // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
    unsafe {
        // Where huge pages come unasked, a fault brings 512 pages; exec and fork keep this.
        traced.pre_exec(|| prctl::set_thp_disable(true).map_err(Into::into));
    }
    let traced = read(run(&mut traced), &report);
    let process = traced.first();
    let _map = PerfMap(format!("/tmp/perf-{}.map", process.pid).into());
    traced.finished.exited(0);
    let of_script = |site: &&FaultSite| {
        let named = |frame: &Frame| {
            let function = frame.function.as_deref().unwrap_or_default();
            frame.module.is_none() && function.contains("touchPages ")
        };
        process.stack(&site.stack).any(named)
    };
    let faults: u64 = process
        .fault_sites
        .iter()
        .filter(of_script)
        .map(|site| site.minor)
        .sum();
    within(5.0, faults, PAGES, "faults in the compiled function");
}

#[test]
fn live_and_replayed_stacks_are_the_same() {
    for (kind, format) in [
        ("leaks", "folded"),
        ("peak", "folded"),
        ("allocations", "svg"),
    ] {
        let scratch = Scratch::new();
        let (recording, report) = (scratch.path("recording"), scratch.path("report"));
        let mut traced = memtrace(&["run", "--report", kind, "--format", format, "-o"]);
        traced.arg(&recording).arg("--report-file").arg(&report);
        run(traced.arg("--").arg(workload("sites.c"))).exited(0);
        let replayed =
            run(memtrace(&["report", kind, "--format", format, "--from"]).arg(&recording));
        assert_eq!(
            replayed.output(),
            std::fs::read_to_string(report).unwrap(),
            "{kind} {format}"
        );
    }
}

#[test]
fn go_reads_the_profile_and_prints_the_same_totals() {
    let recorded = Recorded::new();
    for (kind, in_use) in [("leaks", "live"), ("allocations", "live"), ("peak", "peak")] {
        let profile = recorded
            .scratch
            .write(kind, recorded.export(kind, "pprof").stdout);
        let (totals, raw) = pprof::totals(&profile);
        let said = |key| recorded.said(key) as i64;
        assert_eq!(totals["alloc_space"], said("allocated"), "{raw}");
        assert_eq!(totals["alloc_objects"], said("calls"), "{raw}");
        assert_eq!(totals["inuse_space"], said(in_use), "{raw}");
        let blocks = if kind == "peak" { 150 } else { 7 };
        assert_eq!(totals["inuse_objects"], blocks, "{raw}");
        assert!(raw.contains("sites.c:"), "{raw}");
        let build_id = recorded.traced.first().leaks[0].stack[0].build_id.clone();
        assert!(raw.contains(&build_id.expect("a build ID")), "{raw}");
    }
    let profile = recorded
        .scratch
        .write("faults", recorded.export("faults", "pprof").stdout);
    let (totals, raw) = pprof::totals(&profile);
    let measured = &recorded.traced.first().faults;
    let all = (measured.minor + measured.major) as i64;
    assert_eq!(totals["faults"], all, "{raw}");
    assert_eq!(totals["major_faults"], measured.major as i64, "{raw}");
}

/// Keeps blocks of sizes that nothing else has: a bytes object is 33 bytes larger than what it holds.
const KEEPS: &str = "\
import os, sys
kept = []
print('ready', flush=True)
sys.stdin.readline()
def few():
    for _ in range(3):
        kept.append(bytes(100001))
def many():
    [kept.append(bytes(50001)) for _ in range(7)]
few()
many()
os._exit(0)
";

#[test]
fn go_reads_a_profile_with_python_functions_and_prints_the_same_totals() {
    tool("python3.11", "python3");
    let scratch = Scratch::new();
    let script = scratch.write("keeps.py", KEEPS);
    let recording = scratch.path("recording");
    let mut command = Command::new("/usr/bin/python3.11");
    let mut program = Running::start(command.env("PYTHONMALLOC", "malloc").arg(&script));
    program.stdout_has("ready");
    let path = recording.to_str().expect("a path in UTF-8");
    let trace = Attached::with(program.pid(), &["-o", path]);
    program.send(b"\n");
    let traced = trace.wait();
    program.finish().exited(0);
    traced.nothing_lost();
    let recorded = Recorded { scratch, traced };
    let profile = recorded
        .scratch
        .write("profile", recorded.export("allocations", "pprof").stdout);
    let (totals, raw) = pprof::totals(&profile);
    let heap = recorded.traced.first().heap.as_ref().expect("a heap");
    let expected = [
        ("alloc_space", heap.bytes_allocated),
        ("alloc_objects", heap.allocations + heap.reallocations),
        ("inuse_space", heap.live_bytes),
        ("inuse_objects", heap.live_blocks),
    ];
    for (name, value) in expected {
        assert_eq!(totals[name], value as i64, "{name}: {raw}");
    }
    for (line, blocks, bytes) in
        [("few", 3, 100_034), ("many", 7, 50_034)].map(|(name, blocks, size)| {
            let line = KEEPS
                .lines()
                .position(|line| line.contains(&format!("bytes({})", size - 33)));
            let line = line.expect("the line") + 1;
            (
                format!(" {name} {}:{line}", script.display()),
                blocks,
                blocks * size,
            )
        })
    {
        let (_, locations) = raw.split_once("Locations\n").expect("locations");
        let ids: Vec<&str> = locations
            .lines()
            .filter(|location| location.contains(&line))
            .filter_map(|location| location.trim().split(':').next())
            .collect();
        let values = format!("{blocks} {bytes} {blocks} {bytes}:");
        let sample = raw.lines().find(|sample| {
            let words: Vec<&str> = sample.split_whitespace().collect();
            words.join(" ").starts_with(&values) && words.iter().any(|word| ids.contains(word))
        });
        assert!(sample.is_some(), "{values} of {line}: {raw}");
    }
}

#[test]
fn go_lists_the_leaking_function_first() {
    let recorded = Recorded::new();
    let profile = recorded
        .scratch
        .write("leaks", recorded.export("leaks", "pprof").stdout);
    let top = run(Command::new(tool("go", "golang-go"))
        .args(["tool", "pprof", "-top", "-unit=B"])
        .arg(profile))
    .output();
    assert!(top.contains("Type: inuse_space"), "{top}");
    let first = top
        .lines()
        .skip_while(|line| !line.contains("flat%"))
        .nth(1);
    let first = first.expect("a row");
    assert!(first.contains("8638B") && first.ends_with(" keep"), "{top}");
}

#[test]
fn a_flame_graph_is_whole_xml_and_names_the_functions() {
    let recorded = Recorded::new();
    let svg = recorded
        .scratch
        .write("graph.svg", recorded.export("peak", "svg").stdout);
    let check = "import sys, xml.etree.ElementTree as t; \
                 print(*(e.text for e in t.parse(sys.argv[1]).iter() if e.tag.endswith('title')), sep='\\n')";
    let titles = run(Command::new(tool("python3", "python3"))
        .args(["-c", check])
        .arg(svg))
    .output();
    assert!(titles.contains("grow (1,000,000 bytes, "), "{titles}");
    assert!(titles.contains("spike (2,000,000 bytes, "), "{titles}");
}

#[test]
fn a_format_of_stacks_wants_one_report_with_stacks() {
    let scratch = Scratch::new();
    let recording = scratch.write("recording", "");
    for kinds in ["lazy", "summary", "leaks,peak"] {
        let refused = run(
            memtrace(&["report", "--format", "folded", "--report", kinds, "--from"])
                .arg(&recording),
        );
        refused.exited(2);
        let told = refused.messages();
        assert!(
            told.contains("leaks, allocations, peak and faults"),
            "{told}"
        );
    }
}
