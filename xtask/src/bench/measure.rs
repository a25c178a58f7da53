//! One row: its tools in turn, round by round.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    rows::Row,
    tool::{Observer, Tool},
    workload::Place,
};

/// For a tool to be attached.
const DEADLINE: Duration = Duration::from_secs(60);

/// One run of a workload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// CPU time of an operation, in nanoseconds.
    pub cpu_ns: f64,
    /// Elapsed time of an operation, in nanoseconds.
    pub wall_ns: f64,
    /// Operations done.
    pub operations: f64,
    /// CPU time of the tool itself until the workload was done, in nanoseconds. `None` where it has no process of
    /// its own.
    pub tool_cpu_ns: Option<f64>,
    /// Most memory the tool itself had, in bytes.
    pub tool_memory: Option<f64>,
    /// Events that the tool took; memtrace alone tells.
    pub events: Option<f64>,
    /// Events that it lost.
    pub lost: Option<f64>,
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
pub fn row(row: &Row, place: &Place) -> Result<Vec<Cell>> {
    let mut cells: Vec<Cell> = row
        .tools
        .iter()
        .map(|&tool| Cell {
            tool,
            samples: Vec::new(),
            failure: None,
        })
        .collect();
    for _ in 0..row.rounds {
        for cell in cells.iter_mut().filter(|cell| cell.failure.is_none()) {
            match run(row, cell.tool, place) {
                Ok(sample) => cell.samples.push(sample),
                Err(error) => cell.failure = Some(format!("{error:#}")),
            }
        }
    }
    if cells.iter().all(|cell| cell.samples.is_empty()) {
        let why = cells.into_iter().find_map(|cell| cell.failure);
        bail!("{}: {}", row.name, why.unwrap_or_default());
    }
    Ok(cells)
}

fn run(row: &Row, tool: Tool, place: &Place) -> Result<Sample> {
    let (light, heavy) = row.workload.operations();
    let operations = if tool.is_light() { light } else { heavy };
    let report = place.directory.join("report");
    if report.exists() {
        fs::remove_file(&report).context("cannot remove the last report")?;
    }
    let workload = row.workload.command(place, operations);
    let mut command = tool.launch(place, &workload, &report);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = Running::start(&mut command)?;
    child.line(|line| line == "ready")?;
    let mut observer = tool
        .observer(place, child.pid())
        .map(|observer| observe(observer, place))
        .transpose()?;
    let result = child.work()?;
    let number = |key: &str| result[key].as_f64().with_context(|| format!("no {key}"));
    let done = number("operations")?;
    let mut sample = Sample {
        cpu_ns: number("cpu_ns")? / done,
        wall_ns: number("wall_ns")? / done,
        operations: done,
        ..Sample::default()
    };
    let of_tool = match (&observer, tool) {
        (Some(observer), _) => Some(observer.pid()),
        (None, tool) => (tool.is_memtrace() || tool.is_floor()).then(|| child.pid()),
    };
    if let Some(pid) = of_tool {
        sample.tool_cpu_ns = cpu_ns(pid);
        sample.tool_memory = peak_bytes(pid);
    }
    if let Some(observer) = &mut observer {
        observer.interrupt()?;
        sample.lost = Some(lost_by_observer(place));
    }
    child.end()?;
    if tool.is_memtrace() {
        (sample.events, sample.lost) = told(&report)?;
    }
    Ok(sample)
}

fn observe(observer: Observer, place: &Place) -> Result<Running> {
    let said = place.directory.join("observer");
    let file = fs::File::create(&said).context("cannot keep what the observer says")?;
    let errors = file
        .try_clone()
        .context("cannot keep what the observer says")?;
    let mut command = observer.command;
    let mut running = Running::start(command.stdout(file).stderr(errors))?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let text = fs::read_to_string(&said).unwrap_or_default();
        if text.contains(observer.ready) {
            return Ok(running);
        }
        if let Some(status) = running.child.try_wait()? {
            bail!("{status}: {}", text.trim());
        }
        if Instant::now() > deadline {
            bail!("not ready after {} s: {}", DEADLINE.as_secs(), text.trim());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A process of the bench; killed where it did not end before this goes.
struct Running {
    child: Child,
    output: Option<BufReader<ChildStdout>>,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let output = child.stdout.take().map(BufReader::new);
        Ok(Self { child, output })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of the output that passes.
    fn line(&mut self, is_it: impl Fn(&str) -> bool) -> Result<String> {
        let output = self.output.as_mut().context("no output")?;
        let mut line = String::new();
        loop {
            line.clear();
            if output.read_line(&mut line).context("cannot read")? == 0 {
                bail!("the workload ended without a result");
            }
            if is_it(line.trim()) {
                return Ok(line);
            }
        }
    }

    /// Lets a workload that said that it is ready work, and takes what it tells.
    fn work(&mut self) -> Result<Value> {
        let mut input = self.child.stdin.take().context("no input")?;
        input.write_all(b"\n").context("the workload is gone")?;
        let line = self.line(|line| line.starts_with("{\"operations\""))?;
        serde_json::from_str(&line).context("the workload's result")
    }

    fn end(mut self) -> Result<()> {
        if let Some(output) = &mut self.output {
            io::copy(output, &mut io::sink()).context("cannot read")?;
        }
        let status = self.child.wait()?;
        if !status.success() {
            bail!("{status}");
        }
        Ok(())
    }

    fn interrupt(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid() as i32), Signal::SIGINT)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // It is ours and has not been waited for: the pid is its own.
            _ = self.child.kill();
            _ = self.child.wait();
        }
    }
}

/// User and system time of a process, without what it waited for.
fn cpu_ns(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): utime and stime are the 12th and 13th after the name, in hundredths of a second.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    Some(ticks * 1e7)
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
    let said = fs::read_to_string(place.directory.join("observer")).unwrap_or_default();
    let lost = said.lines().filter_map(|line| line.strip_prefix("Lost "));
    let counts = lost.filter_map(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    // The sum of no number is -0.
    counts.fold(0.0, |sum, count| sum + count)
}
