//! The figures as text and as JSON.

use std::{fmt::Write as _, fs};

use serde_json::{Value, json};

use super::{
    measure::Cell,
    rows::{Claim, Row},
    statistics::{Median, ratio},
    tool::Tool,
};

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

fn times(cell: &Cell) -> Vec<f64> {
    cell.samples.iter().map(|sample| sample.cpu_ns).collect()
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

fn compare(cell: &Cell, to: Option<&Cell>) -> Option<Median> {
    ratio(&times(cell), &times(to?))
}

/// A Markdown table, and under it what must hold.
pub fn text(row: &Row, cells: &[Cell]) -> String {
    let mut out = format!(
        "{} ({}): CPU time, medians of {} rounds and their 95 % bounds\n\n",
        row.name, row.operation, row.rounds
    );
    out += "| tool | time | bounds | × untraced | × floor | × memtrace | lost | tool's CPU | tool's memory |\n";
    out += "| --- | --: | --: | --: | --: | --: | --: | --: | --: |\n";
    for cell in cells {
        let name = cell.tool.name();
        if let Some(failure) = &cell.failure {
            let failure = failure.lines().next().unwrap_or_default();
            _ = writeln!(out, "| {name} | failed: {failure} | | | | | | | |");
        }
        let Some(time) = Median::of(&times(cell)) else {
            continue;
        };
        _ = write!(out, "| {name} | {} | {}", ns(time.value), bounds(time));
        for (_, reference) in references(cells) {
            let ratio = compare(cell, reference);
            _ = write!(out, " | {}", ratio.map(factor).unwrap_or_default());
        }
        let sum = |of: fn(&super::measure::Sample) -> Option<f64>| {
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
        _ = writeln!(out, "\n{}", judge(row, cells, claim));
    }
    out
}

/// A claim with the figure, or why there is none.
fn judge(row: &Row, cells: &[Cell], claim: &Claim) -> String {
    let added = if claim.added { "added time of " } else { "" };
    let what = format!(
        "{added}{} ≤ {:.3} × {}",
        claim.of.name(),
        claim.limit,
        claim.to.name()
    );
    let Some(measured) = measured(row, cells, claim) else {
        return format!("{what}: not measured");
    };
    let verdict = if measured.value <= claim.limit {
        "met"
    } else {
        "NOT met"
    };
    format!(
        "{what}: {verdict}, {:.3} ({:.3} to {:.3})",
        measured.value, measured.low, measured.high
    )
}

fn measured(row: &Row, cells: &[Cell], claim: &Claim) -> Option<Median> {
    let of = times(find(cells, |tool| tool == claim.of)?);
    let to = times(find(cells, |tool| tool == claim.to)?);
    if !claim.added {
        return ratio(&of, &to);
    }
    let base = times(find(cells, |tool| {
        tool == *row.tools.first().unwrap_or(&claim.of)
    })?);
    let without = |times: &[f64]| -> Vec<f64> {
        times
            .iter()
            .zip(&base)
            .map(|(time, base)| time - base)
            .collect()
    };
    ratio(&without(&of), &without(&to))
}

/// Every sample, every median.
pub fn json(row: &Row, cells: &[Cell]) -> Value {
    let tools: Vec<Value> = cells
        .iter()
        .map(|cell| {
            let ratios: serde_json::Map<String, Value> = references(cells)
                .into_iter()
                .map(|(name, reference)| (name.to_owned(), median(compare(cell, reference))))
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
                "cpu_ns": median(Median::of(&times(cell))), "ratio_to": ratios, "samples": samples,
            })
        })
        .collect();
    let claims: Vec<Value> = row
        .claims
        .iter()
        .map(|claim| {
            json!({
                "of": claim.of.name(), "to": claim.to.name(), "limit": claim.limit, "added": claim.added,
                "measured": median(measured(row, cells, claim)),
            })
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
    use crate::bench::{measure::Sample, workload::Workload};

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
            rounds: 3,
            claims: &[
                Claim {
                    of: Tool::Heap,
                    to: Tool::HeapHooks,
                    limit: 1.25,
                    added: false,
                },
                Claim {
                    of: Tool::Heap,
                    to: Tool::HeapHooks,
                    limit: 4.0,
                    added: true,
                },
                Claim {
                    of: Tool::Heap,
                    to: Tool::Memcheck,
                    limit: 1.0,
                    added: false,
                },
            ],
        };
        let mut heap = cell(Tool::Heap, &[2000.0, 2500.0, 1500.0]);
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

memtrace ≤ 1.250 × empty probes, heap: NOT met, 2.000 (1.500 to 2.500)

added time of memtrace ≤ 4.000 × empty probes, heap: met, 2.010 (1.505 to 2.515)

memtrace ≤ 1.000 × valgrind memcheck: not measured
";
        assert_eq!(text(&row, &cells), expected);
    }
}
