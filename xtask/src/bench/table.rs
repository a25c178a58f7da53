//! The figures as text and as JSON.

use std::{fmt::Write as _, fs};

use serde_json::{Value, json};

use super::{
    measure::{Cell, Sample},
    rows::{Claim, Clock, Row},
    statistics::{Median, ratio},
    tool::Tool,
};

/// A row that was measured.
pub struct Measured {
    /// Which.
    pub row: &'static Row,
    /// Its tools.
    pub cells: Vec<Cell>,
}

/// Processors, kernel, and whether it is a virtual machine.
pub fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let processors = info
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name\t: "))
        .unwrap_or("a processor");
    let guest = if info.contains(" hypervisor") {
        "a virtual machine, where single-stepping, other tools' main cost, is dearer than on bare metal"
    } else {
        "bare metal"
    };
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{processors} × {name}, Linux {}: {guest}.", kernel.trim())
}

fn times(clock: Clock, cell: &Cell) -> Vec<f64> {
    let time = |sample: &Sample| match clock {
        Clock::Cpu => sample.cpu_ns,
        Clock::Wall => sample.wall_ns,
    };
    cell.samples.iter().map(time).collect()
}

fn find(cells: &[Cell], is_it: impl Fn(Tool) -> bool) -> Option<&Cell> {
    cells.iter().find(|cell| is_it(cell.tool))
}

/// What a tool's times are compared with: no tool, the floor, memtrace.
fn references(cells: &[Cell]) -> [(&'static str, Option<&Cell>); 3] {
    [
        ("untraced", find(cells, |tool| tool == Tool::Untraced)),
        ("floor", find(cells, Tool::is_floor)),
        ("memtrace", find(cells, Tool::is_memtrace)),
    ]
}

fn compare(clock: Clock, cell: &Cell, to: Option<&Cell>) -> Option<Median> {
    ratio(&times(clock, cell), &times(clock, to?))
}

/// A Markdown table, and under it what must hold. `earlier` rows are what some of that is compared with.
pub fn text(row: &Row, cells: &[Cell], earlier: &[Measured]) -> String {
    let rounds = cells.iter().map(|cell| cell.samples.len()).max();
    let clock = match row.clock {
        Clock::Cpu => "CPU time",
        Clock::Wall => "elapsed time",
    };
    let mut out = format!(
        "{} ({}): {clock}, medians of {} rounds and their 95 % bounds\n\n",
        row.name,
        row.operation,
        rounds.unwrap_or(0)
    );
    out += "| tool | time | bounds | × untraced | × floor | × memtrace | lost | tool's CPU | tool's memory |\n";
    out += "| --- | --: | --: | --: | --: | --: | --: | --: | --: |\n";
    for cell in cells {
        let name = cell.tool.name();
        if let Some(failure) = &cell.failure {
            let failure = failure.lines().next().unwrap_or_default();
            _ = writeln!(out, "| {name} | failed: {failure} | | | | | | | |");
        }
        let Some(time) = Median::of(&times(row.clock, cell)) else {
            continue;
        };
        _ = write!(out, "| {name} | {} | {}", ns(time.value), bounds(time));
        for (_, reference) in references(cells) {
            let ratio = compare(row.clock, cell, reference);
            _ = write!(out, " | {}", ratio.map(factor).unwrap_or_default());
        }
        let sum = |of: fn(&Sample) -> Option<f64>| {
            let values: Vec<f64> = cell.samples.iter().filter_map(of).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>())
        };
        let lost = sum(|sample| sample.lost).map(|lost| lost.to_string());
        let share = sum(|sample| Some(sample.tool_cpu_ns? / sample.operations))
            .map(|total| ns(total / cell.samples.len() as f64));
        let memory = cell.samples.iter().filter_map(|sample| sample.tool_memory);
        let memory = memory
            .reduce(f64::max)
            .map(|bytes| format!("{:.0} MiB", bytes / 1048576.0));
        let or_empty = Option::unwrap_or_default;
        _ = writeln!(
            out,
            " | {} | {} | {} |",
            or_empty(lost),
            or_empty(share),
            or_empty(memory)
        );
    }
    for claim in row.claims {
        let verdict = judge(row, cells, claim, earlier);
        _ = writeln!(out, "\n{}: {}", verdict.what, verdict.measured);
    }
    out
}

/// A claim, and what was found.
struct Verdict {
    what: String,
    measured: String,
    met: Option<bool>,
}

fn judge(row: &Row, cells: &[Cell], claim: &Claim, earlier: &[Measured]) -> Verdict {
    let (what, measured, limit) = match *claim {
        Claim::Ratio {
            of,
            to,
            limit,
            added,
            surely,
        } => {
            let added_time = if added { "added time of " } else { "" };
            let bound = if surely { ", upper bound" } else { "" };
            let what = format!(
                "{added_time}{} ≤ {limit:.3} × {}{bound}",
                of.name(),
                to.name()
            );
            let measured = compared(row, cells, (of, to), added);
            let value = measured.map(|ratio| if surely { ratio.high } else { ratio.value });
            (what, measured.zip(value), limit)
        }
        Claim::Beyond { of, to, limit } => {
            let pair = |(one, other): (Tool, Tool)| format!("{} - {}", one.name(), other.name());
            let what = format!("({}) ≤ {limit:.3} × ({})", pair(of), pair(to));
            let measured = beyond(row, cells, of, to);
            (what, measured.map(|ratio| (ratio, ratio.value)), limit)
        }
        Claim::Across { of, row: to, limit } => {
            let what = format!("{} ≤ {limit:.3} × the same in {to}", of.name());
            let measured = across(
                row,
                cells,
                of,
                earlier.iter().find(|one| one.row.name == to),
            );
            (what, measured.map(|ratio| (ratio, ratio.value)), limit)
        }
        Claim::Whole { of, rate } => return whole(cells, of, rate),
    };
    let Some((Median { value, low, high }, decides)) = measured else {
        return Verdict {
            what,
            measured: "not measured".to_owned(),
            met: None,
        };
    };
    let met = decides <= limit;
    let verdict = if met { "met" } else { "NOT met" };
    Verdict {
        what,
        measured: format!("{verdict}, {value:.3} ({low:.3} to {high:.3})"),
        met: Some(met),
    }
}

fn compared(row: &Row, cells: &[Cell], (of, to): (Tool, Tool), added: bool) -> Option<Median> {
    if added {
        let base = *row.tools.first()?;
        return beyond(row, cells, (of, base), (to, base));
    }
    let of_tool = |wanted| Some(times(row.clock, find(cells, |tool| tool == wanted)?));
    ratio(&of_tool(of)?, &of_tool(to)?)
}

/// The ratio of two differences, each within a round.
fn beyond(row: &Row, cells: &[Cell], of: (Tool, Tool), to: (Tool, Tool)) -> Option<Median> {
    let of_tool = |wanted| Some(times(row.clock, find(cells, |tool| tool == wanted)?));
    let difference = |(one, other)| -> Option<Vec<f64>> {
        let (one, other) = (of_tool(one)?, of_tool(other)?);
        Some(
            one.iter()
                .zip(&other)
                .map(|(one, other)| one - other)
                .collect(),
        )
    };
    ratio(&difference(of)?, &difference(to)?)
}

/// Rounds of two rows are not each other's: medians are compared, and the bounds are those of the first.
fn across(row: &Row, cells: &[Cell], of: Tool, earlier: Option<&Measured>) -> Option<Median> {
    let earlier = earlier?;
    let median = |row: &Row, cells| Median::of(&times(row.clock, find(cells, |tool| tool == of)?));
    let to = median(earlier.row, &earlier.cells)?.value;
    let of = median(row, cells)?;
    Some(Median {
        value: of.value / to,
        low: of.low / to,
        high: of.high / to,
    })
}

fn whole(cells: &[Cell], of: Tool, rate: f64) -> Verdict {
    let what = format!("{} loses nothing of {rate} events a second", of.name());
    let samples = find(cells, |tool| tool == of).map_or(&[][..], |cell| &cell.samples);
    let of_sample = |sample: &Sample| {
        let seconds = sample.wall_ns * sample.operations / 1e9;
        Some((sample.lost?, sample.events? / seconds))
    };
    let told: Option<Vec<(f64, f64)>> = samples.iter().map(of_sample).collect();
    let Some(told) = told.filter(|told| !told.is_empty()) else {
        return Verdict {
            what,
            measured: "not measured".to_owned(),
            met: None,
        };
    };
    let lost = told.iter().fold(0.0, |sum, (lost, _)| sum + lost);
    let slowest = told
        .iter()
        .map(|(_, rate)| *rate)
        .fold(f64::INFINITY, f64::min);
    let met = lost == 0.0 && slowest >= rate;
    let verdict = if met { "met" } else { "NOT met" };
    Verdict {
        what,
        measured: format!("{verdict}, {lost} lost of {slowest:.0} a second"),
        met: Some(met),
    }
}

/// All that must hold, as a Markdown table.
pub fn claims(rows: &[Measured]) -> String {
    let mut out = "| row | what must hold | measured |\n| --- | --- | --- |\n".to_owned();
    for (at, one) in rows.iter().enumerate() {
        for claim in one.row.claims {
            let verdict = judge(one.row, &one.cells, claim, &rows[..at]);
            _ = writeln!(
                out,
                "| {}: {} | {} | {} |",
                one.row.name, one.row.operation, verdict.what, verdict.measured
            );
        }
    }
    out
}

/// Every sample, every median.
pub fn json(row: &Row, cells: &[Cell], earlier: &[Measured]) -> Value {
    let tools: Vec<Value> = cells
        .iter()
        .map(|cell| {
            let ratios: serde_json::Map<String, Value> = references(cells)
                .into_iter()
                .map(|(name, reference)| (name.to_owned(), median(compare(row.clock, cell, reference))))
                .collect();
            let samples: Vec<Value> = cell
                .samples
                .iter()
                .map(|sample| {
                    json!({
                        "cpu_ns": sample.cpu_ns, "wall_ns": sample.wall_ns, "operations": sample.operations,
                        "tool_cpu_ns": sample.tool_cpu_ns, "tool_memory_bytes": sample.tool_memory,
                        "events": sample.events, "lost": sample.lost,
                    })
                })
                .collect();
            json!({
                "tool": cell.tool.name(), "failure": cell.failure,
                "clock": format!("{:?}", row.clock).to_lowercase(),
                "time_ns": median(Median::of(&times(row.clock, cell))), "ratio_to": ratios, "samples": samples,
            })
        })
        .collect();
    let claims: Vec<Value> = row
        .claims
        .iter()
        .map(|claim| {
            let verdict = judge(row, cells, claim, earlier);
            json!({ "claim": verdict.what, "measured": verdict.measured, "met": verdict.met })
        })
        .collect();
    json!({ "row": row.name, "operation": row.operation, "tools": tools, "claims": claims })
}

fn median(median: Option<Median>) -> Value {
    match median {
        Some(Median { value, low, high }) => json!({ "median": value, "low": low, "high": high }),
        None => Value::Null,
    }
}

fn factor(ratio: Median) -> String {
    match ratio.value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

fn bounds(time: Median) -> String {
    format!("{} to {}", ns(time.low), ns(time.high))
}

/// Three digits and a unit.
fn ns(value: f64) -> String {
    let (value, unit) = match value {
        value if value < 1e3 => (value, "ns"),
        value if value < 1e6 => (value / 1e3, "µs"),
        value if value < 1e9 => (value / 1e6, "ms"),
        value => (value / 1e9, "s"),
    };
    let digits = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::bench::workload::Workload;

    fn cell(tool: Tool, times: &[f64]) -> Cell {
        let sample = |&cpu_ns| Sample {
            cpu_ns,
            operations: 1.0,
            ..Sample::default()
        };
        Cell {
            tool,
            samples: times.iter().map(sample).collect(),
            failure: None,
        }
    }

    #[test]
    fn a_row_as_text() {
        let row = Row {
            name: "pair",
            operation: "malloc and free",
            workload: Workload::Calls,
            tools: &[Tool::Untraced, Tool::HeapHooks, Tool::Heap],
            clock: Clock::Cpu,
            rounds: 9,
            limit: Duration::ZERO,
            claims: &[
                Claim::Ratio {
                    of: Tool::Heap,
                    to: Tool::HeapHooks,
                    limit: 2.25,
                    added: false,
                    surely: true,
                },
                Claim::Ratio {
                    of: Tool::Heap,
                    to: Tool::HeapHooks,
                    limit: 4.0,
                    added: true,
                    surely: false,
                },
                Claim::Across {
                    of: Tool::Heap,
                    row: "pair",
                    limit: 1.0,
                },
                Claim::Whole {
                    of: Tool::Heap,
                    rate: 1000.0,
                },
            ],
        };
        let mut heap = cell(Tool::Heap, &[2000.0, 2500.0, 1500.0]);
        for sample in &mut heap.samples {
            (sample.lost, sample.events, sample.wall_ns) = (Some(0.0), Some(1.0), 2000.0);
        }
        heap.samples[0].lost = Some(2.0);
        heap.samples[1].tool_memory = Some(8388608.0);
        let mut failed = cell(Tool::Memcheck, &[]);
        failed.failure = Some("exit status: 1\nmore".to_owned());
        let cells = [
            cell(Tool::Untraced, &[10.0, 10.0, 10.0]),
            cell(Tool::HeapHooks, &[1000.0, 1000.0, 1000.0]),
            heap,
            failed,
        ];
        let expected = "\
pair (malloc and free): CPU time, medians of 3 rounds and their 95 % bounds

| tool | time | bounds | × untraced | × floor | × memtrace | lost | tool's CPU | tool's memory |
| --- | --: | --: | --: | --: | --: | --: | --: | --: |
| untraced | 10.0 ns | 10.0 ns to 10.0 ns | 1.00 | 0.01 | 0.01 |  |  |  |
| empty probes, heap | 1.00 µs | 1.00 µs to 1.00 µs | 100 | 1.00 | 0.50 |  |  |  |
| memtrace | 2.00 µs | 1.50 µs to 2.50 µs | 200 | 2.00 | 1.00 | 2 |  | 8 MiB |
| valgrind memcheck | failed: exit status: 1 | | | | | | | |

memtrace ≤ 2.250 × empty probes, heap, upper bound: NOT met, 2.000 (1.500 to 2.500)

added time of memtrace ≤ 4.000 × empty probes, heap: met, 2.010 (1.505 to 2.515)

memtrace ≤ 1.000 × the same in pair: not measured

memtrace loses nothing of 1000 events a second: NOT met, 2 lost of 500000 a second
";
        assert_eq!(text(&row, &cells, &[]), expected);
    }
}
