//! From a document to what a person or a script reads: filters, gates, formats and places.

use std::{
    fs,
    io::{self, BufWriter, IsTerminal as _, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

use super::{
    complain, status,
    target::{self, Target, Used},
    usage,
};
use crate::{
    export::{self, Measure},
    report::{
        self, Style,
        document::Document,
        gate::{self, Condition},
        suppress::{self, Suppressions},
    },
    units,
};

/// Processes whose heap was not seen that are told one by one.
const UNSEEN_LISTED: usize = 5;

/// Options of everything that ends in a report.
#[derive(Args, Clone, Debug)]
pub struct ReportOptions {
    /// Reports, separated by commas: summary, leaks, allocations, peak, growth, lazy, faults, timeline, layout.
    #[arg(long = "report", value_name = "KIND", value_delimiter = ',', value_parser = known_report)]
    kinds: Vec<String>,
    /// text, json (indented) or json-line; or stacks as folded, pprof or svg (a flame graph), of the report
    /// leaks (default), allocations, peak or faults.
    #[arg(long, default_value = "text", value_parser = known_format)]
    format: String,
    /// Write the report to a file.
    #[arg(long, value_name = "FILE")]
    report_file: Option<PathBuf>,
    /// Leave out allocation sites whose oldest block is younger.
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    min_age: Option<Duration>,
    /// Leave out allocation sites that a file of suppressions names.
    #[arg(long, value_name = "FILE")]
    suppressions: Option<PathBuf>,
    /// Exit with 3 when exceeded: leaked-bytes=64KiB,leaked-blocks=10, …
    #[arg(long, value_name = "CONDITIONS")]
    fail_on: Option<String>,
    /// Count only leaks beyond those of an earlier recording.
    #[arg(long, value_name = "RECORDING", requires = "fail_on")]
    baseline: Option<PathBuf>,
}

pub fn known_report(name: &str) -> Result<String, report::UnknownReport> {
    report::by_name(name).map(|report| report.name().to_owned())
}

fn known_format(name: &str) -> Result<String, String> {
    let known: Vec<&str> = ["text"]
        .into_iter()
        .chain(export::ALL.iter().map(|one| one.name()))
        .collect();
    if known.contains(&name) {
        Ok(name.to_owned())
    } else {
        Err(format!("there are {}", known.join(", ")))
    }
}

/// Where a report goes without `--report-file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `run`: stdout is the command's.
    Stderr,
    /// Everything else.
    Stdout,
}

/// Checked options, with what they name read: a mistake shows before anything is traced.
pub struct Output {
    options: ReportOptions,
    place: Place,
    measure: Measure,
    suppressions: Suppressions,
    conditions: Vec<Condition>,
    baseline: Option<Document>,
    file: Option<Target>,
}

impl ReportOptions {
    /// Reads the files that the options name and opens the file that the report goes to, which is emptied
    /// when the report is written. `used` are the other files of the command line: none is written over.
    pub fn check(self, place: Place, mut used: Vec<Used>) -> Result<Output> {
        let suppressions = match &self.suppressions {
            Some(path) => suppressions(path)?,
            None => Suppressions::default(),
        };
        let conditions = match &self.fail_on {
            Some(text) => gate::parse(text).map_err(usage)?,
            None => Vec::new(),
        };
        let measure = self.measure(place)?;
        let mut output = Output {
            place,
            measure,
            suppressions,
            conditions,
            baseline: None,
            file: None,
            options: self,
        };
        let options = &output.options;
        let read = [
            ("--baseline", &options.baseline),
            ("--suppressions", &options.suppressions),
        ];
        for (option, path) in read {
            used.extend(path.as_deref().and_then(|path| Used::read(option, path)));
        }
        if let Some(path) = &options.report_file {
            let file = Target::open(path)
                .with_context(|| format!("cannot write the report to {}", path.display()))?;
            used.extend(file.used("--report-file"));
            output.file = Some(file);
        }
        target::distinct(&used).map_err(usage)?;
        if let Some(path) = output.options.baseline.clone() {
            let mut baseline = super::report::read(&path)?;
            output.filter(&mut baseline);
            output.baseline = Some(baseline);
        }
        Ok(output)
    }

    /// What the stacks of the format are weighted with, if it is one of stacks.
    fn measure(&self, place: Place) -> Result<Measure> {
        let Some(format) = export::by_name(&self.format).filter(|format| format.is_of_stacks())
        else {
            return Ok(Measure::Leaks);
        };
        let terminal = match place {
            Place::Stderr => io::stderr().is_terminal(),
            Place::Stdout => io::stdout().is_terminal(),
        };
        if format.is_binary() && terminal && self.report_file.is_none() {
            let name = format.name();
            return Err(usage(format!(
                "{name} is not for a terminal: say where to with --report-file FILE"
            )));
        }
        let known = |kind: &str| Measure::ALL.into_iter().find(|one| one.name() == kind);
        match &*self.kinds {
            [] => Ok(Measure::Leaks),
            [kind] if let Some(measure) = known(kind) => Ok(measure),
            kinds => {
                let (name, kinds) = (format.name(), kinds.join(","));
                Err(usage(format!(
                    "--format {name} holds the stacks of one of leaks, allocations, peak and faults, not of {kinds}"
                )))
            }
        }
    }

    /// Adds kinds given in another way (`memtrace report leaks`).
    pub fn with_kind(mut self, kind: Option<String>) -> Self {
        self.kinds.extend(kind);
        self
    }
}

fn suppressions(path: &Path) -> Result<Suppressions> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Suppressions::parse(&text).with_context(|| path.display().to_string())
}

impl Output {
    /// Whether nothing is asked for but the summary of all that was seen.
    pub fn is_summary(&self) -> bool {
        let options = &self.options;
        options.format == "text"
            && options.kinds.iter().all(|kind| kind == report::SUMMARY)
            && options.min_age.is_none()
            && options.suppressions.is_none()
            && self.conditions.is_empty()
    }

    /// Writes the report. The result is the exit status that the conditions ask for, 0 without any.
    pub fn write(&mut self, mut document: Document) -> Result<u8> {
        let removed = self.filter(&mut document);
        let written = match self.file.take() {
            Some(target) => {
                let style = Style {
                    removed,
                    ..Style::default()
                };
                let path = target.path().to_owned();
                target
                    .empty()
                    .and_then(|file| self.render(&document, &style, BufWriter::new(file)))
                    .with_context(|| format!("cannot write the report to {}", path.display()))
            }
            None => self
                .print(&document, removed)
                .context("cannot write the report"),
        };
        let verdict = gate::evaluate(&self.conditions, &document, self.baseline.as_ref());
        for unseen in verdict.unseen.iter().take(UNSEEN_LISTED) {
            complain(&format!("heap not measured: {unseen}"));
        }
        let more = verdict.unseen.len().saturating_sub(UNSEEN_LISTED);
        if more > 0 {
            let more = units::counted(more as u64, "further process", "further processes");
            complain(&format!("heap not measured: {more}"));
        }
        if !self.conditions.is_empty() && document.coverage.lost > 0 {
            let lost = units::counted(document.coverage.lost, "event", "events");
            complain(&format!(
                "{lost} lost: counts that rest on events are too low"
            ));
        }
        for failure in &verdict.failures {
            complain(&failure.to_string());
        }
        written?;
        Ok(if verdict.failures.is_empty() {
            status::DONE
        } else {
            status::EXCEEDED
        })
    }

    fn filter(&self, document: &mut Document) -> suppress::Removed {
        let min_age = self.options.min_age.map_or(0, |age| age.as_nanos() as u64);
        suppress::filter(document, &self.suppressions, min_age)
    }

    /// To the terminal or pipe. A reader that went away is no failure.
    fn print(&self, document: &Document, removed: suppress::Removed) -> io::Result<()> {
        let (terminal, size) = match self.place {
            Place::Stderr => (
                io::stderr().is_terminal(),
                console::Term::stderr().size_checked(),
            ),
            Place::Stdout => (
                io::stdout().is_terminal(),
                console::Term::stdout().size_checked(),
            ),
        };
        let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let width = size.map_or(Style::default().width, |(_, columns)| {
            usize::from(columns).max(40)
        });
        let style = Style {
            color,
            width,
            removed,
        };
        let written = match self.place {
            Place::Stderr => self.render(document, &style, BufWriter::new(io::stderr().lock())),
            Place::Stdout => self.render(document, &style, BufWriter::new(io::stdout().lock())),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    fn render(&self, document: &Document, style: &Style, mut out: impl Write) -> io::Result<()> {
        match export::by_name(&self.options.format) {
            Some(format) => format.export(document, self.measure, &mut out)?,
            None => {
                let mut reports: Vec<&dyn report::Report> = self
                    .options
                    .kinds
                    .iter()
                    .filter_map(|kind| report::by_name(kind).ok())
                    .collect();
                if reports.is_empty() {
                    reports.extend(report::ALL.first());
                }
                report::write(&reports, document, style, &mut out)?;
            }
        }
        out.flush()
    }
}
