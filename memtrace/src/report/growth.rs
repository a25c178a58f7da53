//! Growth of committed memory by the stacks that touched it first, leak candidates first.

use std::io::{self, Write};

use super::document::{Document, Frame, Growth, GrowthPoint, GrowthSite, Process};
use super::text::{Column, Table, Tint};
use super::{Report, Style, backtrace, section, stack};
use crate::units;

/// Sites shown per process.
const SITES: usize = 10;

/// Columns of the drawing of a site.
const WIDTH: usize = 48;

/// What a level is drawn by, the lowest first.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `growth`.
pub(super) struct GrowthReport;

impl Report for GrowthReport {
    fn name(&self) -> &'static str {
        "growth"
    }

    fn about(&self) -> &'static str {
        "stacks that touched first what a process committed while it grew (daemon)"
    }

    fn render(&self, document: &Document, style: &Style, out: &mut dyn Write) -> io::Result<()> {
        let (mut shown, quiet): (Vec<&Process>, Vec<&Process>) =
            (document.processes.iter()).partition(|process| process.growth.is_some());
        shown.sort_by_key(|process| std::cmp::Reverse(key(process)));
        for (index, process) in shown.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            section::header(process, style, out)?;
            if let Some(growth) = &process.growth {
                body(process, growth, style, out)?;
            }
        }
        if quiet.is_empty() {
            return Ok(());
        }
        if !shown.is_empty() {
            writeln!(out)?;
        }
        let others = units::counted(quiet.len() as u64, "process", "processes");
        writeln!(
            out,
            "{others} not sampled: the daemon samples those that grow."
        )
    }
}

/// Candidates, and what all sites hold.
fn key(process: &Process) -> (usize, u64) {
    let sites = process.growth.iter().flat_map(|growth| &growth.sites);
    let candidates = sites.clone().filter(|site| site.leak_candidate).count();
    let held = sites.map(|site| site.bytes).fold(0, u64::saturating_add);
    (candidates, held)
}

fn body(process: &Process, growth: &Growth, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let (candidates, held) = key(process);
    let sites = units::counted(growth.sites.len() as u64, "site", "sites");
    let stopped = if growth.until_ns.is_some() {
        "; it is not sampled any more"
    } else {
        ""
    };
    writeln!(
        out,
        "  {} touched since it grows, at {sites}{stopped}",
        units::bytes(held)
    )?;
    let (line, tint) = match candidates {
        0 => ("No leak candidate.".to_owned(), Tint::Faint),
        _ => (
            units::counted(candidates as u64, "leak candidate", "leak candidates"),
            Tint::Bad,
        ),
    };
    writeln!(out, "  {}", style.paint(tint, &line))?;
    if growth.sites.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let columns = [
        Column::Left(""),
        Column::Right("Held"),
        Column::Right("A minute"),
        Column::Right("±"),
        Column::Right("Sure"),
        Column::Right("Over"),
        Column::Name("Site"),
    ];
    let mut table = Table::new(&columns);
    for site in growth.sites.iter().take(SITES) {
        row(process, site, &mut table);
    }
    table.render(2, style, out)?;
    match growth.sites.len().checked_sub(SITES) {
        Some(more @ 1..) => section::more(more, "site", "sites", out),
        _ => Ok(()),
    }
}

fn row(process: &Process, site: &GrowthSite, table: &mut Table<'_>) {
    let frames: Vec<Frame> = process.stack(&site.stack).cloned().collect();
    let sign = if site.bytes_per_second < 0.0 {
        '-'
    } else {
        '+'
    };
    let a_minute = |per_second: f64| units::bytes((per_second.abs() * 60.0) as u64);
    table.row([
        if site.leak_candidate { "LEAK?" } else { "" }.to_owned(),
        units::bytes(site.bytes),
        format!("{sign}{}", a_minute(site.bytes_per_second)),
        a_minute(site.bytes_per_second_error),
        format!("{:.0} %", (site.confidence * 100.0).floor()),
        units::duration(site.over_ns),
        stack::title(&frames),
    ]);
    table.below(&format!("        {}\n", drawn(&site.points)));
    for line in backtrace::lines(&frames, site.stack_end) {
        table.below(&line);
    }
    table.below("\n");
}

/// The level over time, in one line.
fn drawn(points: &[GrowthPoint]) -> String {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return String::new();
    };
    let most = points
        .iter()
        .map(|point| point.bytes)
        .max()
        .unwrap_or(0)
        .max(1);
    let span_ns = last.time_ns.saturating_sub(first.time_ns);
    let level = |column: usize| {
        let time_ns = first.time_ns + (span_ns as f64 * column as f64 / (WIDTH - 1) as f64) as u64;
        let after = points.partition_point(|point| point.time_ns <= time_ns);
        let bytes = points[after.saturating_sub(1)].bytes;
        let part = u128::from(bytes) * (LEVELS.len() as u128 - 1) / u128::from(most);
        LEVELS[part as usize]
    };
    (0..WIDTH).map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{fixture, rendered};

    const MINUTE: u64 = 60_000_000_000;

    #[test]
    fn the_summary_names_candidates() {
        let text = rendered("summary", &growing(), &Style::default());
        let wanted = "  Growth   1 leak candidate by a sample of page faults\n\
                      \x20          5.0 MiB  +1.0 MiB a minute  leak_big (leaky.c:12)\n";
        assert!(text.contains(wanted), "{text}");
    }

    fn growing() -> Document {
        let mut document = fixture::leaky();
        let process = &mut document.processes[0];
        process.frames = process.leaks[0].stack.clone();
        let stack: Vec<u32> = (0..process.frames.len() as u32).collect();
        let site = GrowthSite {
            bytes: 5 << 20,
            bytes_error: 4096,
            samples: 1280,
            bytes_per_second: (1 << 20) as f64 / 60.0,
            bytes_per_second_error: 100.0,
            confidence: 0.999,
            over_ns: 5 * MINUTE,
            leak_candidate: true,
            points: (0..=5)
                .map(|at| GrowthPoint {
                    time_ns: at * MINUTE,
                    bytes: at << 20,
                })
                .collect(),
            stack,
            ..GrowthSite::default()
        };
        let cache = GrowthSite {
            bytes: 40 << 20,
            bytes_per_second: -10.0,
            leak_candidate: false,
            confidence: 0.3,
            points: Vec::new(),
            stack: Vec::new(),
            ..site.clone()
        };
        process.growth = Some(Growth {
            since_ns: 0,
            until_ns: None,
            sites: vec![site, cache],
        });
        document.processes.push(fixture::process());
        document
    }

    #[test]
    fn a_candidate_comes_first_with_its_evidence() {
        let text = rendered("growth", &growing(), &Style::default());
        let wanted = [
            "  45.0 MiB touched since it grows, at 2 sites\n  1 leak candidate\n",
            "             Held  A minute        ±  Sure       Over  Site\n",
            "  LEAK?   5.0 MiB  +1.0 MiB  5.9 KiB  99 %  5 min 0 s  leak_big (leaky.c:12)\n",
            "        ▁▁▁▁▁▁▁▁▁▁▂▂",
            "         40.0 MiB    -600 B  5.9 KiB  30 %  5 min 0 s  (no stack was taken)\n",
            "1 process not sampled: the daemon samples those that grow.\n",
        ];
        for part in wanted {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn levels_are_drawn_over_time() {
        let point = |time_ns, bytes| GrowthPoint { time_ns, bytes };
        let text = drawn(&[point(0, 0), point(47, 700)]);
        assert_eq!(text, format!("{}█", "▁".repeat(47)));
        let full = drawn(&[point(5, 9)]);
        assert_eq!(full, "█".repeat(48));
        assert_eq!(drawn(&[]), "");
        assert_eq!(drawn(&[point(0, 0), point(9, 0)]), "▁".repeat(48));
    }
}
