//! What the daemon costs where nothing happens: beside no process, and beside a thousand that sleep.
//!
//! Read from /proc, not asked of the daemon: its processor time, its resident bytes, the bytes that its maps and
//! programs hold and what its programs ran. It traces a cgroup of the bench's own.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::running::Running;
use crate::command::answer;

/// The name of the row.
pub const NAME: &str = "rest";

/// Processes that sleep.
const SLEEPERS: usize = 1000;

/// Over how long processor time is taken: several of the ten seconds after which a process at rest is read.
const SPAN: Duration = Duration::from_secs(30);

/// How long a daemon may take to be ready, or to see all processes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the daemon costs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Processes that it traces.
    processes: usize,
    /// Processor time of its own and of its programs, in percent of one processor.
    cpu_percent: f64,
    /// Resident bytes without those of maps, which are mapped too.
    resident: u64,
    /// Bytes of its maps and programs.
    kernel: u64,
}

/// Measures both.
pub fn measure(memtrace: &Path) -> Result<Vec<Cost>> {
    let place = Daemon::begin(memtrace)?;
    let alone = place.cost(0)?;
    let script = format!(
        "echo $$ > {}/cgroup.procs; i=0; while [ $i -lt {SLEEPERS} ]; do sleep 1000 & i=$((i+1)); done; echo all; wait",
        place.cgroup.0.display()
    );
    let mut sleepers = Running::start(Command::new("sh").args(["-c", &script]))?;
    sleepers.line(|line| line == "all")?;
    // The shell is one more.
    place.sees(SLEEPERS + 1)?;
    // What a start costs is over by then.
    thread::sleep(Duration::from_secs(15));
    let many = place.cost(SLEEPERS + 1)?;
    fs::write(place.cgroup.0.join("cgroup.kill"), "1").context("cannot end the sleepers")?;
    sleepers.stop(Signal::SIGKILL)?;
    Ok(vec![alone, many])
}

/// A Markdown table.
pub fn text(costs: &[Cost]) -> String {
    let mut out = format!(
        "{NAME} (the daemon where nothing happens): over {} s\n\n\
         | processes | of one CPU | resident | maps and programs |\n| --- | --- | --- | --- |\n",
        SPAN.as_secs()
    );
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut row = |name: String, cpu: f64, resident: f64, kernel: f64| {
        // Writing to a string cannot fail.
        _ = writeln!(
            out,
            "| {name} | {cpu:.2} % | {resident:.1} MiB | {kernel:.1} MiB |"
        );
    };
    for cost in costs {
        let name = cost.processes.to_string();
        row(name, cost.cpu_percent, mib(cost.resident), mib(cost.kernel));
    }
    if let [alone, many] = costs {
        let each = 1000.0 / (many.processes - alone.processes) as f64;
        let more = |many: u64, alone: u64| (mib(many) - mib(alone)) * each;
        row(
            "per 1,000".to_owned(),
            (many.cpu_percent - alone.cpu_percent) * each,
            more(many.resident, alone.resident),
            more(many.kernel, alone.kernel),
        );
    }
    out
}

/// The same figures for programs.
pub fn json(costs: &[Cost]) -> Value {
    let one = |cost: &Cost| {
        json!({
            "processes": cost.processes,
            "cpu_percent": cost.cpu_percent,
            "resident_bytes": cost.resident,
            "kernel_bytes": cost.kernel,
        })
    };
    json!({ "name": NAME, "costs": costs.iter().map(one).collect::<Vec<_>>() })
}

/// A cgroup, removed when dropped, with whoever is in it.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        _ = fs::write(self.0.join("cgroup.kill"), "1");
        let until = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A daemon over a cgroup.
struct Daemon {
    process: Running,
    memtrace: PathBuf,
    socket: PathBuf,
    cgroup: Cgroup,
    _directory: TempDir,
}

impl Daemon {
    fn begin(memtrace: &Path) -> Result<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let root = root
            .iter()
            .find(|root| Path::new(root).join("cgroup.procs").exists());
        let root = Path::new(root.context("no cgroup2 file system is mounted")?);
        let name = format!("memtrace-bench-{}", std::process::id());
        let cgroup = Cgroup(root.join(&name));
        fs::create_dir(&cgroup.0).context("cannot make a cgroup")?;
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        let path = |name: &str| directory.path().join(name);
        let text = format!(
            "cgroup = \"/{name}\"\nruntime_directory = {:?}\nstate_directory = {:?}\n",
            path("run"),
            path("state")
        );
        fs::write(path("memtrace.toml"), text).context("cannot write the configuration")?;
        let mut command = Command::new(memtrace);
        command
            .args(["daemon", "--config"])
            .arg(path("memtrace.toml"));
        let started = Self {
            process: Running::start(&command)?,
            memtrace: memtrace.to_owned(),
            socket: path("run/socket"),
            cgroup,
            _directory: directory,
        };
        started.sees(0)?;
        Ok(started)
    }

    /// Waits until the daemon answers, with so many processes.
    fn sees(&self, processes: usize) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let mut ps = Command::new(&self.memtrace);
            ps.args(["ps", "--format", "json", "--socket"])
                .arg(&self.socket);
            let listing: Option<Value> =
                answer(&mut ps).and_then(|text| serde_json::from_str(&text).ok());
            let seen = listing.as_ref().and_then(|all| all["processes"].as_array());
            if seen.is_some_and(|seen| seen.len() >= processes) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
        bail!("the daemon does not see {processes} processes");
    }

    fn cost(&self, processes: usize) -> Result<Cost> {
        let pid = self.process.pid();
        let (before, start) = (spent_ns(pid)?, Instant::now());
        thread::sleep(SPAN);
        let spent = spent_ns(pid)? - before;
        Ok(Cost {
            processes,
            cpu_percent: spent as f64 * 100.0 / start.elapsed().as_nanos() as f64,
            resident: resident(pid)?,
            kernel: sum(pid, "memlock:")?,
        })
    }
}

/// Processor time of the process, and of its programs by the kernel's measure, in nanoseconds.
fn spent_ns(pid: u32) -> Result<u64> {
    let own = super::measure::cpu_ns(pid).context("the daemon is gone")?;
    Ok(own as u64 + sum(pid, "run_time_ns:")?)
}

/// Resident bytes, without those of maps: the ring buffer's data is mapped twice.
fn resident(pid: u32) -> Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("the daemon is gone")?;
    let (mut bytes, mut of_map) = (0, false);
    for line in smaps.lines() {
        if let Some(text) = line.strip_prefix("Rss:") {
            let kib: u64 = text.trim().trim_end_matches(" kB").parse()?;
            bytes += if of_map { 0 } else { kib << 10 };
        } else if line
            .split(' ')
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            of_map = line.contains("anon_inode:bpf-map");
        }
    }
    Ok(bytes)
}

/// The sum of a field over what the process's descriptors are of; one map or program may have several.
fn sum(pid: u32, field: &str) -> Result<u64> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).context("the daemon is gone")?;
    let texts = descriptors
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let line = |text: &str, field: &str| -> Option<String> {
        let line = text.lines().find(|line| line.starts_with(field))?;
        Some(line.to_owned())
    };
    let mut values: HashMap<String, u64> = HashMap::new();
    for text in texts {
        let id = line(&text, "map_id:").or_else(|| line(&text, "prog_id:"));
        let value = line(&text, field).and_then(|line| line[field.len()..].trim().parse().ok());
        if let (Some(id), Some(value)) = (id, value) {
            values.insert(id, value);
        }
    }
    Ok(values.into_values().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thousand_add_is_the_difference() {
        let cost = |processes, cpu_percent, mib: u64| Cost {
            processes,
            cpu_percent,
            resident: mib << 20,
            kernel: 40 << 20,
        };
        let table = text(&[cost(0, 0.25, 30), cost(2000, 1.25, 50)]);
        let last = table.lines().last().unwrap_or_default();
        assert_eq!(last, "| per 1,000 | 0.50 % | 10.0 MiB | 0.0 MiB |");
    }
}
