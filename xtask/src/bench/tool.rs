//! How each tool is put onto a workload.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Error, Result};

use super::{
    daemon,
    workload::{Place, Workload},
};
use crate::command::forget_outer_cargo;

/// A tool, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// The workload by itself.
    Untraced,
    /// The hooks of `Heap`, and nothing behind them: the floor.
    HeapHooks,
    /// The hooks of `Faults`, and nothing behind them: the floor.
    FaultHooks,
    /// memtrace without heap probes: what may be on always.
    Faults,
    /// memtrace without stacks.
    HeapNoStacks,
    /// memtrace as it comes.
    Heap,
    /// The workload by itself, while memtrace traces another process.
    Beside,
    /// The same with nothing behind memtrace's hooks: the floor.
    BesideHooks,
    /// memtrace's daemon as it comes, over the workload's cgroup: what may be on always.
    Daemon,
    /// The same that times one fault in eight.
    DaemonSampled,
    /// The hooks of `Daemon`, and nothing behind most of them: the floor.
    DaemonHooks,
    /// Those of `DaemonSampled`.
    DaemonSampledHooks,
    /// The workload by itself, while that traces another cgroup.
    BesideDaemon,
    /// bpftrace, live blocks by address.
    BpftraceLeaks,
    /// The same with stacks.
    BpftraceLeakStacks,
    /// bpftrace, latency of faults as a histogram.
    BpftraceFaults,
    /// heaptrack.
    Heaptrack,
    /// valgrind's memcheck.
    Memcheck,
    /// perf trace -F all.
    PerfTrace,
}

/// A tool that watches a workload which runs by itself.
pub struct Observer {
    /// Starts it.
    pub command: Command,
    /// The file that has what it prints.
    pub said: PathBuf,
    /// What it prints when it is ready.
    pub ready: &'static str,
}

impl Tool {
    /// As in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::HeapHooks => "empty probes, heap",
            Self::FaultHooks => "empty probes, faults",
            Self::Faults => "memtrace --no-heap",
            Self::HeapNoStacks => "memtrace --no-stacks",
            Self::Heap => "memtrace",
            Self::Beside => "beside memtrace",
            Self::BesideHooks => "beside empty probes",
            Self::Daemon => "memtrace daemon",
            Self::DaemonSampled => "memtrace daemon, 1 in 8 timed",
            Self::DaemonHooks => "empty hooks, daemon",
            Self::DaemonSampledHooks => "empty hooks, daemon, 1 in 8",
            Self::BesideDaemon => "beside that daemon",
            Self::BpftraceLeaks => "bpftrace, leaks",
            Self::BpftraceLeakStacks => "bpftrace, leaks, ustack",
            Self::BpftraceFaults => "bpftrace, fault latency",
            Self::Heaptrack => "heaptrack",
            Self::Memcheck => "valgrind memcheck",
            Self::PerfTrace => "perf trace -F all",
        }
    }

    /// Whether a malloc costs about what it costs untraced.
    pub fn is_light(self) -> bool {
        matches!(self, Self::Untraced | Self::Faults | Self::Heaptrack)
            || self.is_beside()
            || self.is_daemon()
    }

    /// Whether another process is traced meanwhile.
    pub fn is_beside(self) -> bool {
        matches!(self, Self::Beside | Self::BesideHooks | Self::BesideDaemon)
    }

    /// Whether it is a daemon, which takes a cgroup.
    pub fn is_daemon(self) -> bool {
        matches!(
            self,
            Self::Daemon
                | Self::DaemonSampled
                | Self::DaemonHooks
                | Self::DaemonSampledHooks
                | Self::BesideDaemon
        )
    }

    /// Whether it is a floor for another's figures.
    pub fn is_floor(self) -> bool {
        matches!(
            self,
            Self::HeapHooks
                | Self::FaultHooks
                | Self::BesideHooks
                | Self::DaemonHooks
                | Self::DaemonSampledHooks
        )
    }

    /// Whether it is memtrace at work on the workload.
    pub fn is_memtrace(self) -> bool {
        matches!(self, Self::Faults | Self::HeapNoStacks | Self::Heap)
    }

    /// The workload, begun by the tool where that is how it works.
    pub fn launch(self, place: &Place, workload: &[OsString], report: &Path) -> Command {
        let memtrace = |options: &[&str]| {
            let mut command = program(&place.memtrace);
            command.arg("run").args(options);
            command.args(["--format", "json-line", "--report-file"]);
            command.arg(report).arg("--").args(workload);
            command
        };
        match self {
            Self::HeapHooks => memtrace(&["--hooks-only", "--no-stacks"]),
            Self::FaultHooks => memtrace(&["--hooks-only", "--no-heap"]),
            Self::Faults => memtrace(&["--no-heap"]),
            Self::HeapNoStacks => memtrace(&["--no-stacks"]),
            Self::Heap => memtrace(&[]),
            Self::Heaptrack => {
                // It does not follow children: it is put before the program itself.
                let (before, after) = workload.split_at(program_at(workload));
                let mut words = before.to_vec();
                words.extend(["heaptrack", "--raw", "-o"].map(OsString::from));
                words.push(report.into());
                words.extend_from_slice(after);
                by_itself(&words)
            }
            Self::Memcheck => {
                let mut command = program("valgrind");
                command.args(["-q", "--trace-children=yes", "--leak-check=no"]);
                command.args(workload);
                command
            }
            Self::PerfTrace => {
                let mut command = program("perf");
                command.args(["trace", "-F", "all", "--no-syscalls", "-o"]);
                command.arg(report).args(workload);
                command
            }
            Self::BpftraceLeaks | Self::BpftraceLeakStacks => {
                let mut command = by_itself(workload);
                command.env("LD_LIBRARY_PATH", place.libraries());
                command
            }
            Self::Daemon | Self::DaemonSampled | Self::DaemonHooks | Self::DaemonSampledHooks => {
                by_itself(&daemon::within(workload))
            }
            Self::Untraced
            | Self::Beside
            | Self::BesideHooks
            | Self::BesideDaemon
            | Self::BpftraceFaults => by_itself(workload),
        }
    }

    /// What watches the workload once it is there, if that is how the tool works.
    pub fn observer(self, place: &Place, workload: Workload, pid: u32) -> Result<Option<Observer>> {
        let allocator = place.allocator(workload);
        const SAMPLED: &str = "fault_latency_sample = 8";
        let daemon = |lines, options| {
            Ok::<_, Error>((daemon::command(place, lines, options)?, daemon::READY))
        };
        let (words, ready) = match self {
            Self::Daemon => daemon("", &[])?,
            Self::DaemonHooks => daemon("", &["--hooks-only"])?,
            Self::DaemonSampledHooks => daemon(SAMPLED, &["--hooks-only"])?,
            Self::DaemonSampled | Self::BesideDaemon => daemon(SAMPLED, &[])?,
            Self::Beside => (beside(place, &[]), "tracing pid"),
            Self::BesideHooks => (beside(place, &["--hooks-only"]), "tracing pid"),
            Self::BpftraceLeaks => (bpftrace(&leak_script(&allocator, "")), "ready"),
            Self::BpftraceLeakStacks => (bpftrace(&leak_script(&allocator, ", ustack")), "ready"),
            Self::BpftraceFaults => (bpftrace(&fault_script(pid)), "ready"),
            _ => return Ok(None),
        };
        let said = place.observed();
        _ = fs::remove_file(&said);
        let mut command = program("sh");
        command.args(["-c", "said=$1; shift; exec \"$@\" > \"$said\" 2>&1", "sh"]);
        command.arg(&said).args(words);
        // Room for what lives at once, as memtrace has it.
        command.env("BPFTRACE_MAP_KEYS_MAX", "1000000");
        Ok(Some(Observer {
            command,
            said,
            ready,
        }))
    }
}

/// memtrace on a process that does nothing.
fn beside(place: &Place, options: &[&str]) -> Vec<OsString> {
    let mut words = vec![place.memtrace.clone().into_os_string()];
    words.extend(["-v", "run", "--report-file", "/dev/null"].map(OsString::from));
    words.extend(options.iter().map(OsString::from));
    words.extend(["sleep", "1000"].map(OsString::from));
    words
}

/// bpftrace finds tracepoints in a mounted tracefs alone: it gets one in a mount namespace of its own.
fn bpftrace(script: &str) -> Vec<OsString> {
    let mount = "mount -t tracefs tracefs /sys/kernel/tracing && exec bpftrace -e \"$0\"";
    let words = ["unshare", "--mount", "sh", "-c", mount, script];
    words.map(OsString::from).to_vec()
}

/// Where in a command line the program stands that is measured: behind `cost tree` and what sets its environment, or
/// at the beginning.
fn program_at(words: &[OsString]) -> usize {
    if words.get(1).is_none_or(|word| word != "tree") {
        return 0;
    }
    let sets = |word: &&OsString| *word == "env" || word.to_string_lossy().contains('=');
    2 + words[2..].iter().take_while(sets).count()
}

/// A command that sees nothing of the cargo that runs the bench.
fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    forget_outer_cargo(&mut command);
    command
}

fn by_itself(workload: &[OsString]) -> Command {
    let mut command = program(&workload[0]);
    command.args(&workload[1..]);
    command
}

/// Says that it is ready when its first and its last probe have fired: all others are attached by then, in whatever
/// order that is done. (Two probes of one name would be one.) What the maps hold at the end is not printed.
fn script(probes: &str) -> String {
    format!(
        "interval:s:1 /!@ready/ {{ @first = 1; if (@last) {{ printf(\"ready\\n\"); @ready = 1; }} }}
         {probes}
         interval:ms:1001 /!@ready/ {{ @last = 1; if (@first) {{ printf(\"ready\\n\"); @ready = 1; }} }}"
    )
}

/// Live blocks with their sizes: three probes, as libbpf's memleak has them.
fn leak_script(allocator: &Path, stack: &str) -> String {
    let libc = allocator.display();
    script(&format!(
        "uprobe:{libc}:malloc {{ @size[tid] = arg0; }}
         uretprobe:{libc}:malloc /@size[tid]/ {{ @live[retval] = (@size[tid]{stack}); delete(@size[tid]); }}
         uprobe:{libc}:free /arg0/ {{ delete(@live[arg0]); }}
         END {{ clear(@live); clear(@size); }}"
    ))
}

fn fault_script(pid: u32) -> String {
    script(&format!(
        "tracepoint:exceptions:page_fault_user /pid == {pid}/ {{ @start[tid] = nsecs; }}
         software:minor-faults:1 /pid == {pid} && @start[tid]/ {{
             @ns = hist(nsecs - @start[tid]);
             delete(@start[tid]);
         }}
         END {{ clear(@start); clear(@ns); }}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_stands_behind_what_starts_it() {
        let at = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            words[program_at(&words)].clone()
        };
        assert_eq!(at("cost pairs 64 1 0 100"), "cost");
        assert_eq!(at("cost tree sqlite3 :memory: a=b"), "sqlite3");
        assert_eq!(
            at("cost tree env A=b /usr/bin/python3 rows.py"),
            "/usr/bin/python3"
        );
    }
}
