//! The default report: what each process reserved, committed, kept and waited for.

use std::io::{self, Write};

use super::document::{Document, Heap, Process, Sampling};
use super::section;
use super::text::{Column, NOT_MEASURED, Table, Tint, clean};
use super::{Report, Style, leaks, stack};
use crate::units;

/// Processes in full; the others get a line each.
const FULL: usize = 3;
/// Processes with a line each; those beyond are only counted.
const LINES: usize = 20;
/// Leak sites named per process.
const SITES: usize = 3;

/// Its name.
pub const SUMMARY: &str = "summary";

/// A document without what this report does not read: sites, mappings, the timeline, the stacks and ages of all but
/// the largest leaks, and leaks and latencies of processes that have a line only.
pub fn excerpt(document: &Document) -> Document {
    let order = in_order(document);
    let full = &order[..order.len().min(FULL)];
    let processes = document.processes.iter().map(|process| {
        let is_full = full.iter().any(|other| std::ptr::eq(*other, process));
        let mut process = process.clone();
        if !is_full {
            process.leaks = Vec::new();
            process.faults.latency_ns = None;
        }
        process.faults.by_kind.clear();
        process.sites = Vec::new();
        process.other_sites = None;
        process.fault_sites = Vec::new();
        process.growth = None;
        process.frames = Vec::new();
        process.regions = Vec::new();
        process.timeline = Vec::new();
        for leak in process.leaks.iter_mut().skip(SITES) {
            leak.stack = Vec::new();
            leak.stack_end = None;
            (leak.oldest_age_ns, leak.newest_age_ns) = (0, 0);
        }
        process
    });
    Document {
        processes: processes.collect(),
        coverage: document.coverage.clone(),
        memtrace: document.memtrace.clone(),
        kernel: document.kernel.clone(),
        arch: document.arch.clone(),
        schema: document.schema,
    }
}

/// `summary`.
pub(super) struct Summary;

impl Report for Summary {
    fn name(&self) -> &'static str {
        SUMMARY
    }

    fn about(&self) -> &'static str {
        "memory, heap, faults and the largest leaks of each process"
    }

    fn render(&self, document: &Document, style: &Style, out: &mut dyn Write) -> io::Result<()> {
        let processes = in_order(document);
        for (index, process) in processes.iter().take(FULL).enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            section::header(process, style, out)?;
            full(process, style, out)?;
        }
        if processes.len() > FULL {
            writeln!(out)?;
            others(&processes[FULL..], style, out)?;
        }
        Ok(())
    }
}

fn in_order(document: &Document) -> Vec<&Process> {
    section::worst_first(document, |process| {
        (
            process.heap.map_or(0, |heap| heap.live_bytes),
            process.address_space.peak_committed_bytes,
        )
    })
}

fn full(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out)?;
    memory(process, style, out)?;
    heap(process, style, out)?;
    faults(process, out)?;
    top_leaks(process, style, out)?;
    growing(process, style, out)
}

fn memory(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let space = &process.address_space;
    let when = if process.end_time_ns.is_some() {
        "at exit"
    } else {
        "now"
    };
    let columns = [
        Column::Left("Memory "),
        Column::Right("Reserved"),
        Column::Right("Committed"),
        Column::Right("Lazy"),
    ];
    let mut table = Table::new(&columns);
    table.row([
        when.to_owned(),
        units::bytes(space.reserved_bytes),
        units::bytes(space.committed_bytes),
        units::bytes(space.lazy_bytes),
    ]);
    table.row([
        "peak".to_owned(),
        units::bytes(space.peak_reserved_bytes),
        units::bytes(space.peak_committed_bytes),
        String::new(),
    ]);
    table.render(2, style, out)?;
    if let Some(swapped) = space.swapped_bytes.filter(|bytes| *bytes > 0) {
        writeln!(out, "  Swapped  {}", units::bytes(swapped))?;
    }
    if !space.failed_calls.is_empty() {
        let calls = space
            .failed_calls
            .iter()
            .map(|(name, n)| format!("{} {}", clean(name), units::count(*n)));
        writeln!(out, "  Failed   {}", calls.collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

fn heap(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let Some(heap) = &process.heap else {
        let reason = process
            .heap_reason
            .as_deref()
            .map_or(String::new(), |reason| format!(": {}", clean(reason)));
        return writeln!(out, "  Heap     {NOT_MEASURED}{reason}");
    };
    writeln!(
        out,
        "  Heap     {}, {}, {}",
        units::counted(heap.allocations, "allocation", "allocations"),
        units::counted(heap.frees, "free", "frees"),
        units::counted(heap.reallocations, "reallocation", "reallocations"),
    )?;
    writeln!(
        out,
        "           {} live in {}, peak {}, {} in all",
        units::bytes(heap.live_bytes),
        units::counted(heap.live_blocks, "block", "blocks"),
        units::bytes(heap.peak_live_bytes),
        units::bytes(heap.bytes_allocated),
    )?;
    if let Some(sampling) = &heap.sampling {
        writeln!(out, "           {}", sampled(sampling))?;
    }
    if let Some(line) = heap_errors(heap) {
        writeln!(out, "           {}", style.paint(Tint::Bad, &line))?;
    }
    if let Some(reason) = &process.heap_reason {
        writeln!(out, "           in part: {}", clean(reason))?;
    }
    Ok(())
}

fn sampled(sampling: &Sampling) -> String {
    format!(
        "estimated from {}, one per {} allocated; live ± {} (standard error)",
        units::counted(sampling.samples, "block", "blocks"),
        units::bytes(sampling.mean_bytes),
        units::bytes(sampling.live_bytes_error),
    )
}

fn heap_errors(heap: &Heap) -> Option<String> {
    let errors = [
        (heap.failed, "failed allocation", "failed allocations"),
        (
            heap.double_frees.unwrap_or(0),
            "double free",
            "double frees",
        ),
        (
            heap.invalid_frees.unwrap_or(0),
            "invalid free",
            "invalid frees",
        ),
    ];
    let found: Vec<String> = errors
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, singular, plural)| units::counted(count, singular, plural))
        .collect();
    (!found.is_empty()).then(|| found.join(", "))
}

fn faults(process: &Process, out: &mut dyn Write) -> io::Result<()> {
    let faults = &process.faults;
    let latency = match &faults.latency_ns {
        Some(latency) => format!(
            "p50 {}, p99 {}",
            units::latency(latency.p50),
            units::latency(latency.p99)
        ),
        None => format!("latency {NOT_MEASURED}"),
    };
    writeln!(
        out,
        "  Faults   {} minor, {} major; {latency}",
        units::count(faults.minor),
        units::count(faults.major)
    )
}

fn top_leaks(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    if process.heap.is_none() {
        return writeln!(out, "  Leaks    {NOT_MEASURED}");
    }
    if process.leaks.is_empty() {
        return writeln!(out, "  Leaks    none");
    }
    let candidates = if process.end_time_ns.is_none() {
        " (still running: candidates)"
    } else {
        ""
    };
    writeln!(
        out,
        "  Leaks    {}{candidates}",
        leaks::total(&process.leaks)
    )?;
    let mut table = Table::new(&[Column::Right(""), Column::Right(""), Column::Name("")]);
    for leak in process.leaks.iter().take(SITES) {
        let blocks = units::counted(leak.blocks, "block", "blocks");
        table.row([units::bytes(leak.bytes), blocks, stack::title(&leak.stack)]);
    }
    table.render(11, style, out)
}

/// Leak candidates of a process that was sampled while it grew.
fn growing(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let Some(growth) = &process.growth else {
        return Ok(());
    };
    let candidates: Vec<_> = (growth.sites.iter())
        .filter(|site| site.leak_candidate)
        .collect();
    let counted = match candidates.len() as u64 {
        0 => "no leak candidate".to_owned(),
        count => units::counted(count, "leak candidate", "leak candidates"),
    };
    writeln!(out, "  Growth   {counted} by a sample of page faults")?;
    let mut table = Table::new(&[Column::Right(""), Column::Right(""), Column::Name("")]);
    for site in candidates.into_iter().take(SITES) {
        let frames: Vec<_> = process.stack(&site.stack).cloned().collect();
        let a_minute = units::bytes((site.bytes_per_second * 60.0) as u64);
        table.row([
            units::bytes(site.bytes),
            format!("+{a_minute} a minute"),
            stack::title(&frames),
        ]);
    }
    table.render(11, style, out)
}

fn others(processes: &[&Process], style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let columns = [
        Column::Right("Pid"),
        Column::Right("Ran"),
        Column::Right("Committed"),
        Column::Right("Live heap"),
        Column::Right("Faults"),
        Column::Left("End"),
        Column::Name("Command"),
    ];
    let mut table = Table::new(&columns);
    for process in processes.iter().take(LINES) {
        table.row([
            process.pid.to_string(),
            section::ran(process).unwrap_or_default(),
            units::bytes(process.address_space.peak_committed_bytes),
            process.heap.map_or_else(
                || NOT_MEASURED.to_owned(),
                |heap| units::bytes(heap.live_bytes),
            ),
            units::count(process.faults.minor.saturating_add(process.faults.major)),
            short_ending(process),
            clean(&process.comm),
        ]);
    }
    let count = processes.len() as u64;
    let title = format!(
        "{} (peak committed, worst first)",
        units::counted(count, "other process", "other processes")
    );
    writeln!(out, "{}", style.paint(Tint::Strong, &title))?;
    table.render(2, style, out)?;
    if processes.len() > LINES {
        section::more(processes.len() - LINES, "process", "processes", out)?;
    }
    Ok(())
}

fn short_ending(process: &Process) -> String {
    match process.exit.map(|exit| (exit.code, exit.signal)) {
        Some((_, Some(signal))) => format!("signal {signal}"),
        _ if process.end_time_ns.is_none() => "running".to_owned(),
        _ => section::ending(process),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::document::Exit;
    use crate::report::{fixture, rendered};

    #[test]
    fn an_excerpt_is_all_that_is_read() {
        let mut document = fixture::leaky();
        for pid in 200..210 {
            let mut process = document.processes[0].clone();
            process.pid = pid;
            process.address_space.peak_committed_bytes = u64::from(pid) << 20;
            document.processes.push(process);
        }
        let excerpt = excerpt(&document);
        for (whole, part) in document.processes.iter().zip(&excerpt.processes) {
            let is_full = [123, 208, 209].contains(&part.pid);
            assert_eq!(part.leaks.is_empty(), !is_full);
            assert!(!whole.regions.is_empty() && part.regions.is_empty());
        }
        let style = Style::default();
        assert_eq!(
            rendered("summary", &excerpt, &style),
            rendered("summary", &document, &style)
        );
    }

    #[test]
    fn one_process() {
        assert_eq!(
            rendered("summary", &fixture::leaky(), &Style::default()),
            "\
leaky (pid 123), ran 1.2 s, exit 0
  ./leaky 'two words'

  Memory   Reserved  Committed     Lazy
  at exit  10.0 GiB  112.0 MiB  9.9 GiB
  peak     10.0 GiB  120.0 MiB
  Heap     1,600,000 allocations, 1,598,990 frees, 12 reallocations
           10.1 MiB live in 1,010 blocks, peak 15.0 MiB, 3.0 GiB in all
  Faults   129 minor, 1 major; p50 1.2 µs, p99 34.0 µs
  Leaks    10.1 MiB in 1,010 blocks at 2 sites
           10.0 MiB     10 blocks  leak_big (leaky.c:12)
           62.5 KiB  1,000 blocks  leak_small (leaky.c:12)

Nothing was lost: 3,198,000 events, 2 probes attached.
Committed bytes come from kernel counters.
"
        );
    }

    #[test]
    fn nothing_measured_is_not_zero() {
        let mut document = fixture::leaky();
        let process = &mut document.processes[0];
        process.heap = None;
        process.heap_reason = Some("statically linked and stripped".into());
        process.leaks.clear();
        process.faults.latency_ns = None;
        process.end_time_ns = None;
        process.exit = None;
        process.address_space.swapped_bytes = Some(4096);
        process.address_space.failed_calls.insert("mmap".into(), 2);
        assert_eq!(
            rendered("summary", &document, &Style::default()),
            "\
leaky (pid 123), running for 1.2 s
  ./leaky 'two words'

  Memory   Reserved  Committed     Lazy
  now      10.0 GiB  112.0 MiB  9.9 GiB
  peak     10.0 GiB  120.0 MiB
  Swapped  4.0 KiB
  Failed   mmap 2
  Heap     not measured: statically linked and stripped
  Faults   129 minor, 1 major; latency not measured
  Leaks    not measured

3,198,000 events, 2 probes attached; heap of 1 process not measured: statically linked and stripped.
Committed bytes come from kernel counters.
"
        );
    }

    #[test]
    fn many_processes_are_capped() {
        let mut document = fixture::leaky();
        for pid in 200..230 {
            let mut process = fixture::process();
            process.pid = pid;
            process.address_space.peak_committed_bytes = u64::from(pid) << 20;
            process.exit = Some(Exit {
                code: None,
                signal: Some(9),
            });
            document.processes.push(process);
        }
        let text = rendered("summary", &document, &Style::default());
        assert_eq!(text.matches("  Memory").count(), FULL);
        let start = text.find("28 other processes").unwrap();
        assert_eq!(
            text[start..].lines().take(4).collect::<Vec<_>>().join("\n"),
            "\
28 other processes (peak committed, worst first)
  Pid    Ran  Committed  Live heap  Faults  End       Command
  227  1.2 s  227.0 MiB   10.1 MiB     130  signal 9  leaky
  226  1.2 s  226.0 MiB   10.1 MiB     130  signal 9  leaky"
        );
        assert!(text.contains("\n… and 8 more processes (see --format json)\n"));
    }

    #[test]
    fn errors_of_the_program_stand_out() {
        let heap = Heap {
            failed: 1,
            double_frees: Some(2),
            ..Heap::default()
        };
        assert_eq!(
            heap_errors(&heap).unwrap(),
            "1 failed allocation, 2 double frees"
        );
        assert_eq!(heap_errors(&Heap::default()), None);
    }
}
