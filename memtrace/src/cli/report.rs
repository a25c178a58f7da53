//! `memtrace report`: the same reports, from a recording or from the daemon.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    output::{Place, ReportOptions},
    socket::Socket,
    target::Used,
};
use crate::{
    daemon::{protocol::Request, within::Within},
    event::{Event, EventKind},
    model::{Limits, Model},
    report::document::Document,
    store::recording::{Reader, read_ahead},
    trace::applier::{self, Applier},
};

/// Arguments of `report`.
#[derive(Args)]
pub struct Report {
    /// summary (default), leaks, allocations, peak, growth, lazy, faults, timeline, layout.
    #[arg(value_parser = super::output::known_report)]
    kind: Option<String>,
    /// The recording, as `-o` wrote it; without it, the daemon is asked.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["since", "until", "socket"])]
    from: Option<PathBuf>,
    /// Of the daemon's history, from a mark, an age (2h) or a time (@SECONDS since 1970) on.
    #[arg(long, value_name = "MOMENT")]
    since: Option<String>,
    /// Up to a mark, an age or a time.
    #[arg(long, value_name = "MOMENT")]
    until: Option<String>,
    #[command(flatten)]
    socket: Socket,
    /// Only these processes.
    #[arg(short, long = "pid", value_parser = super::usage::pid, value_name = "PID")]
    pids: Vec<u32>,
    #[command(flatten)]
    within: Within,
    #[command(flatten)]
    options: ReportOptions,
}

impl Report {
    /// Replays the recording, or asks, and reports.
    pub fn execute(self) -> Result<u8> {
        let from = self.from.as_deref();
        let from = from
            .and_then(|path| Used::read("--from", path))
            .into_iter()
            .collect();
        let options = self.options.with_kind(self.kind);
        let mut output = options.check(Place::Stdout, from)?;
        let Some(from) = self.from else {
            let request = Request::Report {
                pids: self.pids,
                since: self.since,
                until: self.until,
                within: self.within,
            };
            return output.write(self.socket.report(request)?);
        };
        let of_all = self.pids.is_empty() && self.within.is_all();
        let summary = if output.is_summary() && of_all {
            summary_of(&from)
        } else {
            None
        };
        let mut document = match summary {
            Some(document) => document,
            None => read(&from)?,
        };
        if !of_all {
            let is_asked = |pid| self.pids.is_empty() || self.pids.contains(&pid);
            document
                .processes
                .retain(|process| is_asked(process.pid) && self.within.has(&process.cgroup));
            if document.processes.is_empty() {
                anyhow::bail!("{} has no such process", from.display());
            }
        }
        output.write(document)
    }
}

/// What the summary report reads, as the trace itself left it; `None` where it takes a replay.
fn summary_of(path: &Path) -> Option<Document> {
    let summary = Reader::open(path).ok()?.summary()?;
    serde_json::from_slice(&summary).ok()
}

/// Replays a recording into the same model that a live trace fills.
pub fn read(path: &Path) -> Result<Document> {
    let reader = Reader::open(path)?;
    let bar = ProgressBar::new(reader.size());
    if let Ok(style) = ProgressStyle::with_template("reading {bar:40} {bytes}/{total_bytes}") {
        bar.set_style(style);
    }
    let model = Model::in_shards(Limits::default(), applier::shards(0));
    let mut applier = Applier::replay(model);
    let read = read_ahead(reader, |events, position| {
        applier.apply_all(events);
        bar.set_position(position);
    });
    bar.finish_and_clear();
    if read? {
        let kind = EventKind::Counted {
            reason: "truncated".into(),
            count: 1,
            loss: false,
        };
        applier.apply(Event {
            time_ns: 0,
            pid: 0,
            tid: 0,
            kind,
        });
    }
    applier.gather();
    Ok(applier.document())
}
