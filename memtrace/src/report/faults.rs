//! Page faults: how many, how long they took, and where.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::document::{Bucket, Document, FaultSite, Faults as Counts, Latency, Process};
use super::text::{Column, NOT_MEASURED, Table, base_name, clean};
use super::{Report, Style, backtrace, section, stack};
use crate::units;

/// Functions shown per process.
const FUNCTIONS: usize = 10;

/// Stacks shown per process.
const STACKS: usize = 5;

/// Columns of the longest bar at most; a wider terminal says nothing more.
const LONGEST_BAR: usize = 60;

/// `faults`.
pub(super) struct Faults;

impl Report for Faults {
    fn name(&self) -> &'static str {
        "faults"
    }

    fn about(&self) -> &'static str {
        "page faults: counts, latencies with a histogram, by kind of mapping"
    }

    fn render(&self, document: &Document, style: &Style, out: &mut dyn Write) -> io::Result<()> {
        let processes = section::worst_first(document, |process| total(&process.faults));
        section::each(&processes, style, out, |process, out| {
            body(process, style, out)
        })
    }
}

fn total(faults: &Counts) -> u64 {
    faults.minor.saturating_add(faults.major)
}

fn body(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let faults = &process.faults;
    writeln!(
        out,
        "  {}: {} minor, {} major; {} in user mode, {} in kernel mode",
        units::counted(total(faults), "fault", "faults"),
        units::count(faults.minor),
        units::count(faults.major),
        units::count(faults.user),
        units::count(faults.kernel),
    )?;
    match &faults.latency_ns {
        Some(latency) => {
            writeln!(out)?;
            percentiles(latency, style, out)?;
            waited(latency, total(faults), out)?;
            histogram(&latency.buckets, style, out)?;
        }
        None => writeln!(out, "  Latency {NOT_MEASURED}")?,
    }
    kinds(faults, style, out)?;
    functions(process, style, out)?;
    stacks(process, style, out)
}

fn percentiles(latency: &Latency, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let columns = [
        Column::Left("Latency"),
        Column::Right("min"),
        Column::Right("p50"),
        Column::Right("p90"),
        Column::Right("p99"),
        Column::Right("p99.9"),
        Column::Right("max"),
    ];
    let mut table = Table::new(&columns);
    let [min, p50, p90, p99, p999, max] = [
        latency.min,
        latency.p50,
        latency.p90,
        latency.p99,
        latency.p999,
        latency.max,
    ]
    .map(units::latency);
    table.row([
        format!("mean {}", units::latency(latency.mean)),
        min,
        p50,
        p90,
        p99,
        p999,
        max,
    ]);
    table.render(2, style, out)
}

/// Of all faults where all were timed, else an estimate.
fn waited(latency: &Latency, all: u64, out: &mut dyn Write) -> io::Result<()> {
    if latency.count >= all {
        return writeln!(
            out,
            "  Waited {} in minor faults, {} in major faults",
            units::duration(latency.minor_sum),
            units::duration(latency.major_sum)
        );
    }
    let (estimate, error) = estimate(latency, all);
    writeln!(
        out,
        "  Of {} of them; waited {} ± {} in all, by that",
        units::count(latency.count),
        units::duration(estimate),
        units::duration(error)
    )
}

/// What all faults took together, from those that were timed, and its standard error. The faults of a window are alike,
/// where they are timed in windows: the error is what it would be at least.
fn estimate(latency: &Latency, all: u64) -> (u64, u64) {
    let (all, timed) = (all as f64, latency.count.max(1) as f64);
    let mean = latency.minor_sum.saturating_add(latency.major_sum) as f64 / timed;
    // A bucket's upper bound is up to a quarter above what is in it; the last one has none.
    let bound = |bucket: &Bucket| bucket.le.min(latency.max) as f64;
    let squares = |bucket: &Bucket| bucket.count as f64 * (bound(bucket) - mean).powi(2);
    let variance = latency.buckets.iter().map(squares).sum::<f64>() / (timed - 1.0).max(1.0);
    let error = all * (variance / timed * (1.0 - timed / all)).sqrt();
    ((mean * all) as u64, error as u64)
}

/// Upper bounds as powers of two, without gaps, so that distance down the page is distance in time.
fn merged(buckets: &[Bucket]) -> Vec<(u64, u64)> {
    let mut merged = BTreeMap::new();
    for bucket in buckets.iter().filter(|bucket| bucket.count > 0) {
        let bound = bucket.le.checked_next_power_of_two().unwrap_or(u64::MAX);
        let count: &mut u64 = merged.entry(bound).or_default();
        *count = count.saturating_add(bucket.count);
    }
    let bounded: Vec<u64> = merged
        .keys()
        .copied()
        .filter(|bound| *bound < u64::MAX)
        .collect();
    if let [first, .., last] = bounded[..] {
        let mut bound = first;
        while bound < last {
            merged.entry(bound).or_default();
            bound *= 2;
        }
    }
    merged.into_iter().collect()
}

fn histogram(buckets: &[Bucket], style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let merged = merged(buckets);
    let Some(most) = merged.iter().map(|(_, count)| *count).max() else {
        return Ok(());
    };
    let figures = merged
        .iter()
        .map(|(_, count)| units::count(*count).len())
        .max()
        .unwrap_or(0);
    let longest = style
        .width
        .saturating_sub(2 + 10 + 2 + figures.max(6) + 2)
        .clamp(8, LONGEST_BAR);
    let mut table = Table::new(&[
        Column::Right("Up to"),
        Column::Right("Faults"),
        Column::Left(""),
    ]);
    for (bound, count) in &merged {
        let label = if *bound == u64::MAX {
            "longer".to_owned()
        } else {
            units::latency(*bound)
        };
        table.row([label, units::count(*count), bar(*count, most, longest)]);
    }
    writeln!(out)?;
    table.render(2, style, out)
}

/// In eighths of a column; what is there at all is seen.
fn bar(count: u64, most: u64, longest: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let scaled = u128::from(count) * (longest as u128 * 8) / u128::from(most.max(1));
    let eighths = usize::try_from(scaled)
        .unwrap_or(0)
        .max(usize::from(count > 0));
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

fn kinds(faults: &Counts, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    if faults.by_kind.is_empty() {
        return Ok(());
    }
    let columns = [
        Column::Left("Mapping"),
        Column::Right("Minor"),
        Column::Right("Major"),
        Column::Right("p50"),
        Column::Right("p99"),
        Column::Right("max"),
    ];
    let mut kinds: Vec<_> = faults.by_kind.iter().collect();
    kinds.sort_by_key(|(_, kind)| std::cmp::Reverse(kind.minor.saturating_add(kind.major)));
    let mut table = Table::new(&columns);
    for (name, kind) in kinds {
        let [p50, p99, max] = match &kind.latency_ns {
            Some(latency) => [latency.p50, latency.p99, latency.max].map(units::latency),
            None => [NOT_MEASURED.to_owned(), String::new(), String::new()],
        };
        table.row([
            clean(name),
            units::count(kind.minor),
            units::count(kind.major),
            p50,
            p99,
            max,
        ]);
    }
    writeln!(out)?;
    table.render(2, style, out)
}

/// The functions that took most faults.
fn functions(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let mut by_name: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    for site in &process.fault_sites {
        let Some(frame) = process.stack(&site.stack).next() else {
            continue;
        };
        let name = match (&frame.function, &frame.module) {
            (Some(function), Some(module)) => format!("{function} in {}", base_name(module)),
            _ => stack::name(frame),
        };
        let sums = by_name.entry(name).or_default();
        let all = site.minor.saturating_add(site.major);
        for (sum, value) in sums.iter_mut().zip([all, site.major, site.latency_ns]) {
            *sum = sum.saturating_add(value);
        }
    }
    if by_name.is_empty() {
        return Ok(());
    }
    let mut functions: Vec<_> = by_name.into_iter().collect();
    functions.sort_by_key(|(_, sums)| std::cmp::Reverse(sums[0]));
    let columns = [
        Column::Right("Faults"),
        Column::Right("Major"),
        Column::Right("Waited"),
        Column::Name("Function"),
    ];
    let mut table = Table::new(&columns);
    for (name, [all, major, latency_ns]) in functions.iter().take(FUNCTIONS) {
        table.row([
            units::count(*all),
            units::count(*major),
            units::duration(*latency_ns),
            clean(name),
        ]);
    }
    writeln!(out)?;
    table.render(2, style, out)?;
    let more = functions.len().saturating_sub(FUNCTIONS);
    if more > 0 {
        let more = units::counted(more as u64, "more function", "more functions");
        writeln!(out, "  … and {more} (see --format json)")?;
    }
    Ok(())
}

/// The stacks that led to most faults, as far as their sample tells.
fn stacks(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let known = |site: &&FaultSite| site.stack_end.is_some();
    let sites: Vec<_> = process.fault_sites.iter().filter(known).collect();
    if sites.is_empty() {
        return Ok(());
    }
    let columns = [
        Column::Right("Faults"),
        Column::Right("±"),
        Column::Right("Major"),
        Column::Right("Waited"),
        Column::Name("Site"),
    ];
    let mut table = Table::new(&columns);
    for site in sites.iter().take(STACKS) {
        let frames: Vec<_> = process.stack(&site.stack).cloned().collect();
        table.row([
            units::count(site.minor.saturating_add(site.major)),
            units::count(site.minor_error.unwrap_or(0)),
            units::count(site.major),
            units::duration(site.latency_ns),
            stack::title(&frames),
        ]);
        for line in backtrace::lines(&frames, site.stack_end) {
            table.below(&line);
        }
        table.below("\n");
    }
    writeln!(out)?;
    table.render(2, style, out)?;
    let more = sites.len().saturating_sub(STACKS);
    if more > 0 {
        let more = units::counted(more as u64, "more stack", "more stacks");
        writeln!(out, "  … and {more} (see --format json)")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{fixture, rendered};

    #[test]
    fn functions_are_summed_over_their_instructions() {
        let mut document = fixture::with_sites();
        let process = &mut document.processes[0];
        process.fault_sites.push(process.fault_sites[0].clone());
        process.fault_sites.push(FaultSite {
            minor: 2,
            major: 0,
            stack: vec![0],
            ..FaultSite::default()
        });
        let text = rendered("faults", &document, &Style::default());
        let table = "
  Faults  Major  Waited  Function
     242      2  1.0 ms  work
       2      0     0 s  malloc in libc.so.6

  Faults  ±  Major    Waited  Site
     121  4      1  500.0 µs  work (leaky.c:20)
        work (/src/leaky.c:20)

     121  4      1  500.0 µs  work (leaky.c:20)
        work (/src/leaky.c:20)

";
        assert!(text.contains(table), "{text}");
    }

    #[test]
    fn counts_latencies_and_kinds() {
        assert_eq!(
            rendered("faults", &fixture::leaky(), &Style::default()),
            "\
leaky (pid 123), ran 1.2 s, exit 0
  ./leaky 'two words'
  130 faults: 129 minor, 1 major; 120 in user mode, 10 in kernel mode

  Latency         min     p50     p90      p99    p99.9     max
  mean 1.5 µs  250 ns  1.2 µs  3.0 µs  34.0 µs  34.0 µs  1.0 ms
  Waited 130.0 µs in minor faults, 1.0 ms in major faults

     Up to  Faults
    512 ns      20  ███████████████████▎
    1.0 µs      60  ██████████████████████████████████████████████████████████
    2.0 µs      46  ████████████████████████████████████████████▍
    4.1 µs       0
    8.2 µs       3  ██▉
   16.4 µs       0
   32.8 µs       0
   65.5 µs       0
  131.1 µs       0
  262.1 µs       0
  524.3 µs       0
    1.0 ms       1  ▉

  Mapping    Minor  Major           p50      p99     max
  anonymous    100      0        1.2 µs  34.0 µs  1.0 ms
  file          29      1  not measured

Nothing was lost: 3,198,000 events, 2 probes attached.
Committed bytes come from kernel counters.
"
        );
    }

    #[test]
    fn what_was_not_timed_is_estimated() {
        let mut document = fixture::leaky();
        document.processes[0].faults.minor = 1039;
        let text = rendered("faults", &document, &Style::default());
        let estimate = "  Of 130 of them; waited 9.0 ms ± 7.5 ms in all, by that\n";
        assert!(text.contains(estimate), "{text}");
    }

    #[test]
    fn no_latency() {
        let mut document = fixture::leaky();
        document.processes[0].faults = Counts::default();
        assert_eq!(
            rendered("faults", &document, &Style::default()),
            "\
leaky (pid 123), ran 1.2 s, exit 0
  ./leaky 'two words'
  0 faults: 0 minor, 0 major; 0 in user mode, 0 in kernel mode
  Latency not measured

Nothing was lost: 3,198,000 events, 2 probes attached.
Committed bytes come from kernel counters.
"
        );
    }

    #[test]
    fn buckets_merge_without_gaps() {
        let bucket = |le, count| Bucket { le, count };
        assert_eq!(
            merged(&[
                bucket(63, 1),
                bucket(64, 1),
                bucket(79, 2),
                bucket(511, 4),
                bucket(u64::MAX, 8)
            ]),
            [(64, 2), (128, 2), (256, 0), (512, 4), (u64::MAX, 8)]
        );
        assert_eq!(merged(&[]), []);
        assert_eq!(merged(&[bucket(1023, 1)]), [(1024, 1)]);
    }

    #[test]
    fn bars_scale() {
        assert_eq!(bar(0, 100, 8), "");
        assert_eq!(bar(1, u64::MAX, 8), "▏");
        assert_eq!(bar(50, 100, 4), "██");
        assert_eq!(bar(u64::MAX, u64::MAX, 4), "████");
    }
}
