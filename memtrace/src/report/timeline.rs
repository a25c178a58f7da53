//! Memory over time, drawn.

use std::io::{self, Write};

use super::document::{Document, Process, TimelinePoint};
use super::text::{NOT_MEASURED, Tint};
use super::{Report, Style, section};
use crate::units;

/// Rows of a chart.
const ROWS: usize = 5;
/// Columns taken by the scale: indent, figure, axis.
const SCALE: usize = 2 + 10 + 2;
/// Columns of a chart at most.
const WIDEST: usize = 120;

/// `timeline`.
pub(super) struct Timeline;

/// What is drawn of each moment.
struct Series {
    title: &'static str,
    value: fn(&TimelinePoint) -> Option<u64>,
}

const SERIES: [Series; 4] = [
    Series {
        title: "Reserved",
        value: |point| Some(point.reserved_bytes),
    },
    Series {
        title: "Committed",
        value: |point| Some(point.committed_bytes),
    },
    Series {
        title: "Live heap",
        value: |point| point.heap_live_bytes,
    },
    Series {
        title: "Program break",
        value: |point| Some(point.program_break_bytes),
    },
];

impl Report for Timeline {
    fn name(&self) -> &'static str {
        "timeline"
    }

    fn about(&self) -> &'static str {
        "reserved, committed, live heap and program break over time"
    }

    fn render(&self, document: &Document, style: &Style, out: &mut dyn Write) -> io::Result<()> {
        let processes = section::worst_first(document, |process| {
            process.address_space.peak_committed_bytes
        });
        section::each(&processes, style, out, |process, out| {
            body(process, style, out)
        })
    }
}

fn body(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    if process.timeline.is_empty() {
        return writeln!(out, "  No timeline was recorded.");
    }
    let mut points: Vec<&TimelinePoint> = process.timeline.iter().collect();
    points.sort_by_key(|point| point.time_ns);
    for series in &SERIES {
        writeln!(out)?;
        draw(series, process, &points, style, out)?;
    }
    Ok(())
}

fn draw(
    series: &Series,
    process: &Process,
    points: &[&TimelinePoint],
    style: &Style,
    out: &mut dyn Write,
) -> io::Result<()> {
    let values: Vec<u64> = points
        .iter()
        .filter_map(|point| (series.value)(point))
        .collect();
    let title = |text: String| style.paint(Tint::Strong, &text);
    let (Some(&low), Some(&high)) = (values.iter().min(), values.iter().max()) else {
        return writeln!(
            out,
            "  {}",
            title(format!("{} {NOT_MEASURED}", series.title))
        );
    };
    // A flat line needs no chart, and one moment has no width to draw.
    let (first, last) = (points[0].time_ns, points[points.len() - 1].time_ns);
    if low == high || first == last {
        let when = if first == last {
            "at the only moment recorded"
        } else {
            "throughout"
        };
        return writeln!(
            out,
            "  {}",
            title(format!("{} {} {when}", series.title, units::bytes(high)))
        );
    }
    let end = values.last().copied().unwrap_or(high);
    let line = format!(
        "{}, peak {}, {} at the end",
        series.title,
        units::bytes(high),
        units::bytes(end)
    );
    writeln!(out, "  {}", title(line))?;
    let width = style.width.saturating_sub(SCALE).clamp(16, WIDEST);
    chart(&columns(series, points, width), high, out)?;
    let age = |time: u64| units::duration(time.saturating_sub(process.start_time_ns));
    axis(&age(first), &age(last), width, out)
}

/// The largest value within each column's share of time; the one before where nothing was recorded.
fn columns(series: &Series, points: &[&TimelinePoint], width: usize) -> Vec<Option<u64>> {
    let first = points[0].time_ns;
    let span = u128::from(points[points.len() - 1].time_ns - first).max(1);
    let mut columns: Vec<Option<Column>> = vec![None; width];
    for point in points {
        let offset = u128::from(point.time_ns - first) * (width as u128 - 1) / span;
        let value = (series.value)(point);
        let column = &mut columns[usize::try_from(offset).unwrap_or(0)];
        let peak = column.and_then(|column| column.peak).max(value);
        *column = Some(Column { peak, last: value });
    }
    let mut carried = None;
    columns
        .into_iter()
        .map(|column| {
            let drawn = column.map_or(carried, |column| column.peak);
            carried = column.map_or(carried, |column| column.last);
            drawn
        })
        .collect()
}

/// Moments that share a column.
#[derive(Clone, Copy)]
struct Column {
    peak: Option<u64>,
    last: Option<u64>,
}

fn chart(columns: &[Option<u64>], high: u64, out: &mut dyn Write) -> io::Result<()> {
    const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let height = |value: u64| {
        let eighths = u128::from(value) * (ROWS as u128 * 8) / u128::from(high.max(1));
        usize::try_from(eighths)
            .unwrap_or(0)
            .max(usize::from(value > 0))
    };
    let heights: Vec<usize> = columns
        .iter()
        .map(|value| value.map_or(0, height))
        .collect();
    for row in (0..ROWS).rev() {
        let label = match row {
            0 => "0 B".to_owned(),
            row if row == ROWS - 1 => units::bytes(high),
            _ => String::new(),
        };
        let cells: String = heights
            .iter()
            .map(|height| EIGHTHS[height.saturating_sub(row * 8).min(8)])
            .collect();
        writeln!(out, "  {label:>10} ┤{}", cells.trim_end())?;
    }
    Ok(())
}

fn axis(first: &str, last: &str, width: usize, out: &mut dyn Write) -> io::Result<()> {
    let gap = width
        .saturating_sub(first.chars().count() + last.chars().count())
        .max(1);
    writeln!(out, "{}{first}{}{last}", " ".repeat(SCALE), " ".repeat(gap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{fixture, rendered};

    #[test]
    fn drawn() {
        let style = Style {
            width: 40,
            ..Style::default()
        };
        assert_eq!(
            rendered("timeline", &fixture::leaky(), &style),
            "\
leaky (pid 123), ran 1.2 s, exit 0
  ./leaky 'two words'

  Reserved, peak 10.0 GiB, 10.0 GiB at the end
    10.0 GiB ┤            ██████████████
             ┤            ██████████████
             ┤            ██████████████
             ┤            ██████████████
         0 B ┤▁▁▁▁▁▁▁▁▁▁▁▁██████████████
              0 s                  1.2 s

  Committed, peak 120.0 MiB, 120.0 MiB at the end
   120.0 MiB ┤                    ▁▁▄▄▄█
             ┤                ▂▂▆▆██████
             ┤            ▄▄▇▇██████████
             ┤      ▂▂▅▅████████████████
         0 B ┤  ▃▃▆▆████████████████████
              0 s                  1.2 s

  Live heap, peak 12.0 MiB, 12.0 MiB at the end
    12.0 MiB ┤                    ▁▁▄▄▄█
             ┤                ▂▂▆▆██████
             ┤            ▄▄▇▇██████████
             ┤      ▂▂▅▅████████████████
         0 B ┤  ▃▃▆▆████████████████████
              0 s                  1.2 s

  Program break 132.0 KiB throughout

Nothing was lost: 3,198,000 events, 2 probes attached.
Committed bytes come from kernel counters.
"
        );
    }

    #[test]
    fn one_moment_and_no_heap() {
        let mut document = fixture::leaky();
        let process = &mut document.processes[0];
        process.timeline.truncate(1);
        process.timeline[0].heap_live_bytes = None;
        assert_eq!(
            rendered("timeline", &document, &Style::default()),
            "\
leaky (pid 123), ran 1.2 s, exit 0
  ./leaky 'two words'

  Reserved 10.0 MiB at the only moment recorded

  Committed 0 B at the only moment recorded

  Live heap not measured

  Program break 132.0 KiB at the only moment recorded

Nothing was lost: 3,198,000 events, 2 probes attached.
Committed bytes come from kernel counters.
"
        );
    }

    #[test]
    fn no_timeline() {
        let mut document = fixture::leaky();
        document.processes[0].timeline.clear();
        let text = rendered("timeline", &document, &Style::default());
        assert!(text.contains("  No timeline was recorded.\n"));
    }

    #[test]
    fn gaps_carry_the_last_value_and_peaks_survive() {
        let point = |time_ns, bytes| TimelinePoint {
            time_ns,
            reserved_bytes: bytes,
            committed_bytes: 0,
            heap_live_bytes: None,
            program_break_bytes: 0,
            minor: 0,
            major: 0,
        };
        let points = [point(0, 5), point(1, 9), point(2, 1), point(100, 3)];
        let points: Vec<&TimelinePoint> = points.iter().collect();
        let drawn = columns(&SERIES[0], &points, 4);
        assert_eq!(drawn, [Some(9), Some(1), Some(1), Some(3)]);
        assert_eq!(columns(&SERIES[2], &points, 2), [None, None]);
    }
}
