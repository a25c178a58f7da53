//! Reports: the document, and one file per report that renders it for people.
//!
//! Everything here is a pure function of a [`Document`]. Nothing knows whether it was traced live or
//! read from a recording, and nothing measures: what a document says is `None` prints as "not measured".

use std::io::{self, Write};

mod backtrace;
pub mod diff;
pub mod document;
pub mod explain;
mod faults;
#[cfg(test)]
pub(crate) mod fixture;
pub mod gate;
mod growth;
mod layout;
mod lazy;
mod leaks;
mod section;
mod sites;
pub mod stack;
mod summary;
pub mod suppress;
pub mod text;
mod timeline;
mod truths;

pub use summary::{SUMMARY, excerpt};

use document::Document;
use suppress::Removed;

/// How text is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Style {
    /// ANSI colours; only for a terminal.
    pub color: bool,
    /// Columns. Names and paths are shortened to fit, figures and stacks never.
    pub width: usize,
    /// What was taken out of the leaks before, so that the text can say it.
    pub removed: Removed,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            color: false,
            width: 80,
            removed: Removed::default(),
        }
    }
}

/// A report that people read.
pub trait Report: Sync {
    /// As typed after `--report`.
    fn name(&self) -> &'static str;

    /// One line for `--help`.
    fn about(&self) -> &'static str;

    /// Writes the report alone; [`write()`] adds what was lost.
    fn render(&self, document: &Document, style: &Style, out: &mut dyn Write) -> io::Result<()>;
}

/// Every report, the default one first.
pub const ALL: &[&dyn Report] = &[
    &summary::Summary,
    &leaks::Leaks,
    &sites::ALLOCATIONS,
    &sites::PEAK,
    &growth::GrowthReport,
    &lazy::Lazy,
    &faults::Faults,
    &timeline::Timeline,
    &layout::Layout,
];

/// No report has that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no report is called {name:?}; there are {known}")]
pub struct UnknownReport {
    /// As typed.
    pub name: String,
    /// Those that exist.
    pub known: String,
}

/// The report of that name.
pub fn by_name(name: &str) -> Result<&'static dyn Report, UnknownReport> {
    ALL.iter()
        .copied()
        .find(|report| report.name() == name)
        .ok_or_else(|| UnknownReport {
            name: name.to_owned(),
            known: ALL
                .iter()
                .map(|report| report.name())
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// Writes the reports one after the other, and once, at the end, what was lost or not seen.
pub fn write(
    reports: &[&dyn Report],
    document: &Document,
    style: &Style,
    out: &mut dyn Write,
) -> io::Result<()> {
    if document.processes.is_empty() {
        writeln!(out, "No process was traced.")?;
    } else {
        for (index, report) in reports.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            if reports.len() > 1 {
                let title = format!("── {} ──", report.name());
                writeln!(out, "{}\n", style.paint(text::Tint::Faint, &title))?;
            }
            report.render(document, style, out)?;
        }
    }
    writeln!(out)?;
    truths::render(document, style, out)
}

#[cfg(test)]
pub(crate) fn rendered(name: &str, document: &Document, style: &Style) -> String {
    let mut out = Vec::new();
    write(&[by_name(name).unwrap()], document, style, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_traced() {
        for report in ALL {
            assert_eq!(
                rendered(report.name(), &fixture::empty(), &Style::default()),
                "No process was traced.\n\nNothing was lost: 0 events, 0 probes attached.\n"
            );
        }
    }

    #[test]
    fn unknown_names_are_told_what_there_is() {
        assert_eq!(
            by_name("leak").err().unwrap().to_string(),
            "no report is called \"leak\"; there are summary, leaks, allocations, peak, growth, lazy, faults, timeline, layout"
        );
    }

    #[test]
    fn several_reports_are_titled_and_share_the_truths() {
        let mut out = Vec::new();
        let reports = [by_name("lazy").unwrap(), by_name("faults").unwrap()];
        write(&reports, &fixture::leaky(), &Style::default(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("── lazy ──\n\nleaky (pid 123)"));
        assert_eq!(text.matches("── faults ──").count(), 1);
        assert_eq!(text.matches("Nothing was lost").count(), 1);
    }

    #[test]
    fn giant_numbers_do_not_panic() {
        let mut document = fixture::leaky();
        let process = &mut document.processes[0];
        process.end_time_ns = Some(u64::MAX);
        process.address_space.committed_bytes = u64::MAX;
        process.address_space.lazy_bytes = u64::MAX;
        for leak in &mut process.leaks {
            (leak.bytes, leak.blocks) = (u64::MAX, u64::MAX);
        }
        for region in &mut process.regions {
            (region.end, region.reserved_bytes, region.committed_bytes) = (0, u64::MAX, u64::MAX);
        }
        for site in &mut process.sites {
            site.totals.bytes_allocated = u64::MAX;
            site.totals.peak_bytes = u64::MAX;
        }
        process.faults.minor = u64::MAX;
        process.faults.major = u64::MAX;
        if let Some(latency) = &mut process.faults.latency_ns {
            latency.buckets.push(document::Bucket {
                le: u64::MAX,
                count: u64::MAX,
            });
        }
        for point in &mut process.timeline {
            (point.reserved_bytes, point.time_ns) = (u64::MAX, u64::MAX - point.time_ns);
        }
        document.coverage.lost = u64::MAX;
        document.coverage.events = u64::MAX;
        document.processes.push(document.processes[0].clone());
        for report in ALL {
            for width in [0, 1, 80, 1000] {
                let style = Style {
                    width,
                    ..Style::default()
                };
                assert!(!rendered(report.name(), &document, &style).is_empty());
            }
        }
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        const EVIL: &str = "a\u{1b}[31m\n\r\u{7}\u{9b}\u{202e}ü";
        let mut document = fixture::leaky();
        let process = &mut document.processes[0];
        process.comm = EVIL.into();
        process.exe = EVIL.into();
        process.command_line = vec![EVIL.into()];
        process.regions[0].path = Some(EVIL.into());
        process.leaks[0].stack[1].function = Some(EVIL.into());
        process.leaks[1].stack[1] = fixture::nameless(EVIL, 1);
        document.coverage.lost_by_reason.insert(EVIL.into(), 1);
        process.heap_reason = Some(EVIL.into());
        process.address_space.committed_source = EVIL.into();
        process.address_space.failed_calls.insert(EVIL.into(), 1);
        for report in ALL {
            let text = rendered(report.name(), &document, &Style::default());
            assert!(
                !text.replace('\n', "").contains(char::is_control),
                "{text:?}"
            );
            assert!(!text.contains('\u{202e}'));
            assert!(text.contains("a\\u{1b}[31m\\n\\r"), "{text}");
        }
    }

    #[test]
    fn lines_fit_the_width() {
        let mut document = fixture::leaky();
        document.processes[0].regions[0].path = Some("/very/long".repeat(30));
        document.processes[0].leaks[0].stack[1].function = Some("template_".repeat(30));
        document.processes[0].leaks[0].stack.truncate(2);
        for report in ALL
            .iter()
            .filter(|report| !["leaks", "allocations", "peak"].contains(&report.name()))
        {
            let text = rendered(report.name(), &document, &Style::default());
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", report.name());
            }
        }
    }
}
