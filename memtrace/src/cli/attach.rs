//! `memtrace attach`: trace running processes for a while, then report.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use memtrace_common::sampling::MAX_SAMPLE_BYTES;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{
    complain, log_level,
    output::{Output, Place, ReportOptions},
    run::{DRAIN, TICK},
    signals::Signals,
    status,
    target::Target,
};
use crate::{
    model::Thresholds,
    probe::object::LoadOptions,
    store::recording::Writer,
    trace::{Options, Session, watch},
    units,
};

/// Options of `run` and `attach`.
#[derive(Args)]
pub struct TraceOptions {
    /// Record the events to a file, for `memtrace report --from`.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Leave children untraced.
    #[arg(long)]
    no_follow: bool,
    /// No heap probes: mappings and faults only.
    #[arg(long)]
    pub no_heap: bool,
    /// Count allocations without their stacks.
    #[arg(long)]
    no_stacks: bool,
    /// Record a sample of the blocks: about one for each SIZE bytes allocated, with estimates and their errors.
    #[arg(long, value_name = "SIZE", value_parser = sample_bytes, conflicts_with = "no_heap")]
    sample_bytes: Option<u64>,
    /// The hooks and nothing behind them, for `cargo xtask bench`.
    #[arg(long, hide = true)]
    hooks_only: bool,
    /// How many unwind rules have room, for tests of what happens when there is none.
    #[arg(long, hide = true, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(4096..))]
    unwind_rows: Option<u32>,
    #[command(flatten)]
    pub report: ReportOptions,
}

impl TraceOptions {
    /// What the session is to do.
    pub fn options(&self, verbose: u8) -> Options {
        let log_level = log_level(verbose);
        let usual = LoadOptions::default();
        let load = LoadOptions {
            stacks: !self.no_stacks,
            sample_bytes: self.sample_bytes,
            hooks_only: self.hooks_only,
            unwind_rows: self.unwind_rows.unwrap_or(usual.unwind_rows),
            log_level,
            ..usual
        };
        Options {
            growth: Thresholds::default(),
            follow: !self.no_follow,
            heap: !self.no_heap,
            load,
        }
    }

    /// Opens the files that the trace writes, and reads those that the options name.
    pub fn open(&self, place: Place) -> Result<Places> {
        let mut recording = self.output.as_deref().map(open_recording).transpose()?;
        let used = recording.iter().filter_map(|target| target.used("-o"));
        let output = self.report.clone().check(place, used.collect())?;
        let mut writer = None;
        if let Some(target) = &mut recording {
            let file = target.file()?;
            writer = Some(Writer::over(target.path(), file)?);
        }
        Ok(Places {
            output,
            writer,
            recording,
        })
    }
}

fn sample_bytes(text: &str) -> Result<u64, String> {
    let bytes = units::parse_size(text).map_err(|error| error.to_string())?;
    if (1..=MAX_SAMPLE_BYTES).contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!("from 1 B to {}", units::bytes(MAX_SAMPLE_BYTES)))
}

/// Where a trace goes to.
pub struct Places {
    /// The report.
    pub output: Output,
    /// The recording, for the session.
    pub writer: Option<Writer>,
    /// The recording's file; to be kept once the trace has begun.
    pub recording: Option<Target>,
}

fn open_recording(path: &Path) -> Result<Target> {
    Target::open(path).with_context(|| {
        let path = path.display();
        format!("cannot create the recording {path}; choose another place with -o")
    })
}

/// Arguments of `attach`.
#[derive(Args)]
pub struct Attach {
    /// A process; may be given several times.
    #[arg(short, long = "pid", required = true, value_parser = super::usage::pid, value_name = "PID")]
    pids: Vec<u32>,
    /// How long: 500ms, 30s, 5m. Without it, until Ctrl-C.
    #[arg(long, value_parser = units::parse_duration)]
    duration: Option<Duration>,
    #[command(flatten)]
    trace: TraceOptions,
}

impl Attach {
    /// Traces until told to stop, until the time is over or until every process has ended.
    pub fn execute(self, verbose: u8) -> Result<u8> {
        let Places {
            mut output,
            writer,
            recording,
        } = self.trace.open(Place::Stdout)?;
        let mut session = Session::new(self.trace.options(verbose), writer)?;
        for &pid in &self.pids {
            session.trace_running(pid)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        if let Some(recording) = recording {
            recording.keep();
        }
        runtime.block_on(follow(&mut session, self.duration))?;
        drop(runtime);
        let finished = session.finish();
        let gate = output.write(finished.document)?;
        match finished.recording_failure {
            Some(failure) => Err(failure.into()),
            None => Ok(gate),
        }
    }
}

async fn follow(session: &mut Session, duration: Option<Duration>) -> Result<u8> {
    let mut signals = Signals::new().context("cannot take signals over")?;
    let wake = watch::buffer(session).context("cannot watch the ring buffers")?;
    let mut drain = interval(DRAIN);
    drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tick = interval(TICK);
    let end = duration.map(|duration| Instant::now() + duration);
    complain("tracing; Ctrl-C ends it and reports");
    loop {
        tokio::select! {
            ready = wake.readable() => ready?.clear_ready(),
            _ = drain.tick() => {}
            _ = tick.tick() => session.tick(),
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => break,
            _ = signals.next() => break,
        }
        session.drain();
        for failure in session.take_failures() {
            complain(&failure);
        }
        if session.all_ended() {
            break;
        }
    }
    Ok(status::DONE)
}
