//! One row: its tools in turn, round by round.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{sys::signal::Signal, time::ClockId, unistd::Pid};
use serde_json::Value;

use super::{
    daemon, redis,
    rows::Row,
    running::Running,
    tool::{Observer, Tool},
    workload::{Place, Workload},
};

/// For a tool to be attached.
const DEADLINE: Duration = Duration::from_secs(60);

/// Rounds of a row, however long they take.
const FEWEST_ROUNDS: usize = 3;

/// One run of a workload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// CPU time of an operation, in nanoseconds.
    pub cpu_ns: f64,
    /// Elapsed time of an operation, in nanoseconds.
    pub wall_ns: f64,
    /// Operations done.
    pub operations: f64,
    /// CPU time of the tool itself while the workload worked, in nanoseconds. `None` where it has no process of
    /// its own.
    pub tool_cpu_ns: Option<f64>,
    /// Most memory the tool itself had, in bytes.
    pub tool_memory: Option<f64>,
    /// Events that the tool took; memtrace alone tells.
    pub events: Option<f64>,
    /// Events that it lost.
    pub lost: Option<f64>,
}

/// What a workload did, and what it took.
pub struct Worked {
    /// Operations.
    pub operations: f64,
    /// CPU time of all of them, in nanoseconds.
    pub cpu_ns: f64,
    /// Elapsed time of all of them, in nanoseconds.
    pub wall_ns: f64,
}

/// The runs of one tool, or why there are none.
pub struct Cell {
    /// Which.
    pub tool: Tool,
    /// By round.
    pub samples: Vec<Sample>,
    /// The first failure; the tool is left out from then on.
    pub failure: Option<String>,
}

/// Measures a row. A tool that fails is told in the table, and the others go on.
pub fn row(row: &Row, place: &Place) -> Vec<Cell> {
    let mut cells: Vec<Cell> = row
        .tools
        .iter()
        .map(|&tool| Cell {
            tool,
            samples: Vec::new(),
            failure: None,
        })
        .collect();
    let start = Instant::now();
    for round in 0..row.rounds {
        if round >= FEWEST_ROUNDS && start.elapsed() > row.limit {
            break;
        }
        for cell in cells.iter_mut().filter(|cell| cell.failure.is_none()) {
            match run(row, cell.tool, place) {
                Ok(sample) => cell.samples.push(sample),
                Err(error) => cell.failure = Some(format!("{error:#}")),
            }
        }
    }
    cells
}

fn run(row: &Row, tool: Tool, place: &Place) -> Result<Sample> {
    let operations = row.workload.operations(tool);
    let report = place.directory.join("report");
    if report.exists() {
        fs::remove_file(&report).context("cannot remove the last report")?;
    }
    if tool.is_daemon() {
        daemon::prepare()?;
    }
    let workload = row.workload.command(place, operations);
    let mut child = Running::start(&tool.launch(place, &workload, &report))?;
    child.line(|line| line == "ready" || line.contains(redis::READY))?;
    let mut observer = tool
        .observer(place, row.workload, child.pid())?
        .map(observe)
        .transpose()?;
    let of_tool = match (&observer, tool) {
        (Some(observer), _) => Some(observer.pid()),
        (None, tool) => (tool.is_memtrace() || tool.is_floor()).then(|| child.pid()),
    };
    let spent = of_tool.and_then(cpu_ns);
    let worked = match row.workload {
        Workload::Redis => redis::work(place, operations)?,
        _ => worked(&child.work()?)?,
    };
    let mut sample = Sample {
        cpu_ns: worked.cpu_ns / worked.operations,
        wall_ns: worked.wall_ns / worked.operations,
        operations: worked.operations,
        ..Sample::default()
    };
    if let Some(pid) = of_tool {
        sample.tool_cpu_ns = cpu_ns(pid).zip(spent).map(|(now, before)| now - before);
        sample.tool_memory = peak_bytes(pid);
    }
    if let Some(observer) = &mut observer {
        // memtrace leaves the first SIGINT to its command, and passes SIGTERM on.
        observer.stop(if tool.is_beside() || tool.is_daemon() {
            Signal::SIGTERM
        } else {
            Signal::SIGINT
        })?;
        sample.lost =
            Some(lost_by_observer(place)).filter(|_| !tool.is_beside() && !tool.is_daemon());
    }
    child.end()?;
    if tool.is_daemon() {
        daemon::clean()?;
    }
    if tool.is_memtrace() {
        (sample.events, sample.lost) = told(&report)?;
    }
    Ok(sample)
}

fn worked(result: &Value) -> Result<Worked> {
    let number = |key: &str| result[key].as_f64().with_context(|| format!("no {key}"));
    Ok(Worked {
        operations: number("operations")?,
        cpu_ns: number("cpu_ns")?,
        wall_ns: number("wall_ns")?,
    })
}

fn observe(observer: Observer) -> Result<Running> {
    let mut running = Running::start(&observer.command)?;
    let deadline = Instant::now() + DEADLINE;
    let said = || fs::read_to_string(&observer.said).unwrap_or_default();
    while !said().contains(observer.ready) {
        if let Some(status) = running.ended()? {
            bail!("{status}: {}", said().trim());
        }
        if Instant::now() > deadline {
            bail!(
                "not ready after {} s: {}",
                DEADLINE.as_secs(),
                said().trim()
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(running)
}

/// User and system time of a process, without what it waited for.
pub fn cpu_ns(pid: u32) -> Option<f64> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid as i32)).ok()?;
    let time = clock.now().ok()?;
    Some(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}

fn peak_bytes(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? * 1024.0)
}

/// Events and losses of memtrace's report.
fn told(report: &Path) -> Result<(Option<f64>, Option<f64>)> {
    let text = fs::read_to_string(report).context("no report")?;
    let report: Value = serde_json::from_str(&text).context("the report")?;
    let coverage = &report["coverage"];
    Ok((coverage["events"].as_f64(), coverage["lost"].as_f64()))
}

/// What bpftrace says it lost: a line for each loss, `Lost N events`.
fn lost_by_observer(place: &Place) -> f64 {
    let said = fs::read_to_string(place.observed()).unwrap_or_default();
    let lost = said.lines().filter_map(|line| line.strip_prefix("Lost "));
    let counts = lost.filter_map(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    // The sum of no number is -0.
    counts.fold(0.0, |sum, count| sum + count)
}
