//! `memtrace report`: the same reports, from a recording.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    output::{Place, ReportOptions},
    target::Used,
};
use crate::{
    event::{Event, EventKind},
    model::{Limits, Model},
    report::document::Document,
    store::recording::Reader,
};

/// Arguments of `report`.
#[derive(Args)]
pub struct Report {
    /// summary (default), leaks, allocations, peak, lazy, faults, timeline, layout.
    #[arg(value_parser = super::output::known_report)]
    kind: Option<String>,
    /// The recording, as `-o` wrote it.
    #[arg(long, value_name = "FILE", required = true)]
    from: PathBuf,
    /// Only these processes.
    #[arg(short, long = "pid", value_parser = super::usage::pid, value_name = "PID")]
    pids: Vec<u32>,
    #[command(flatten)]
    options: ReportOptions,
}

impl Report {
    /// Replays the recording and reports.
    pub fn execute(self) -> Result<u8> {
        let from = Used::read("--from", &self.from).into_iter().collect();
        let options = self.options.with_kind(self.kind);
        let mut output = options.check(Place::Stdout, from)?;
        let mut document = read(&self.from)?;
        if !self.pids.is_empty() {
            document
                .processes
                .retain(|process| self.pids.contains(&process.pid));
            if document.processes.is_empty() {
                anyhow::bail!("{} has no process with that pid", self.from.display());
            }
        }
        output.write(document)
    }
}

/// Replays a recording into the same model that a live trace fills.
pub fn read(path: &Path) -> Result<Document> {
    let mut reader = Reader::open(path)?;
    let bar = ProgressBar::new(reader.size());
    if let Ok(style) = ProgressStyle::with_template("reading {bar:40} {bytes}/{total_bytes}") {
        bar.set_style(style);
    }
    let mut model = Model::new(Limits::default());
    while let Some(event) = reader.next_event()? {
        model.apply(&event);
        bar.set_position(reader.position());
    }
    bar.finish_and_clear();
    if reader.truncated() {
        let kind = EventKind::Counted {
            reason: "truncated".into(),
            count: 1,
            loss: false,
        };
        model.apply(&Event {
            time_ns: 0,
            pid: 0,
            tid: 0,
            kind,
        });
    }
    Ok(model.document())
}
