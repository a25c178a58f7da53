//! The program under test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use memtrace::report::document::{Document, Heap, Process};
use serde_json::Value;

use crate::child::{Finished, Running, run};
use crate::scratch::{Scratch, target_directory};

/// Where the binary is: `MEMTRACE_BIN`, or the release build of this workspace.
pub fn path() -> PathBuf {
    let path = match std::env::var_os("MEMTRACE_BIN") {
        Some(path) => PathBuf::from(path),
        None => target_directory().join("release/memtrace"),
    };
    assert!(
        path.is_file(),
        "{} is missing: build it with `cargo xtask build`, or set MEMTRACE_BIN",
        path.display()
    );
    assert!(
        nix::unistd::geteuid().is_root(),
        "the suite traces real processes and must be run as root"
    );
    path
}

/// `memtrace` with these arguments.
pub fn memtrace<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(path());
    command.args(arguments);
    command
}

/// A trace that ended: the command's end and the report.
#[derive(Debug)]
pub struct Traced {
    /// memtrace's own end; for `run`, stdout and the status are the command's.
    pub finished: Finished,
    /// The report as types.
    pub document: Document,
    /// The report as written.
    pub json: Value,
}

impl Traced {
    /// The traced command: the first process.
    #[track_caller]
    pub fn first(&self) -> &Process {
        self.document
            .processes
            .first()
            .expect("a report has the traced command")
    }

    /// The process with this pid.
    #[track_caller]
    pub fn process(&self, pid: u64) -> &Process {
        let found = self
            .document
            .processes
            .iter()
            .find(|process| u64::from(process.pid) == pid);
        found.unwrap_or_else(|| panic!("no process {pid} in the report, only {}", self.names()))
    }

    /// The processes that ran the program of this file name.
    pub fn running(&self, program: &str) -> Vec<&Process> {
        let ran =
            |process: &&Process| Path::new(&process.exe).file_name() == Some(OsStr::new(program));
        self.document.processes.iter().filter(ran).collect()
    }

    /// The heap of the traced command.
    #[track_caller]
    pub fn heap(&self) -> Heap {
        heap(self.first())
    }

    /// Asserts that no event was lost.
    #[track_caller]
    pub fn nothing_lost(&self) -> &Traced {
        let coverage = &self.document.coverage;
        assert_eq!(
            (coverage.lost, coverage.undecodable),
            (0, 0),
            "{:?}",
            coverage.lost_by_reason
        );
        self
    }

    fn names(&self) -> String {
        let names = self
            .document
            .processes
            .iter()
            .map(|process| format!("{} {}", process.pid, process.exe));
        names.collect::<Vec<_>>().join(", ")
    }
}

/// The heap of a process that has one.
#[track_caller]
pub fn heap(process: &Process) -> Heap {
    process
        .heap
        .unwrap_or_else(|| panic!("{}: no heap: {:?}", process.exe, process.heap_reason))
}

/// Traces `command` from its first instruction to its end.
#[track_caller]
pub fn trace<S: AsRef<OsStr>>(command: &[S]) -> Traced {
    trace_with::<&str, S>(&[], command)
}

/// Traces `command` with further options of `run`.
#[track_caller]
pub fn trace_with<O: AsRef<OsStr>, S: AsRef<OsStr>>(options: &[O], command: &[S]) -> Traced {
    let scratch = Scratch::new();
    let report = scratch.path("report.json");
    let mut memtrace = memtrace(&["run", "--format", "json", "--report-file"]);
    memtrace.arg(&report).args(options).arg("--").args(command);
    let finished = run(&mut memtrace);
    read(finished, &report)
}

/// Reads the report that memtrace wrote.
#[track_caller]
pub fn read(finished: Finished, report: &Path) -> Traced {
    let text = std::fs::read(report).unwrap_or_else(|error| {
        panic!(
            "{} left no report ({error}): {}",
            finished.name,
            finished.messages()
        )
    });
    let json: Value = serde_json::from_slice(&text).expect("the report is JSON");
    let document =
        serde_json::from_value(json.clone()).expect("the report is a document of schema 1");
    Traced {
        finished,
        document,
        json,
    }
}

/// A running `memtrace attach`.
pub struct Attached {
    memtrace: Running,
    scratch: Scratch,
}

impl Attached {
    /// Attaches to `pid` and returns once every probe is placed.
    pub fn to(pid: u32) -> Attached {
        Attached::with(pid, &[])
    }

    /// The same with further options.
    pub fn with(pid: u32, options: &[&str]) -> Attached {
        let scratch = Scratch::new();
        let mut command = memtrace(&[
            "attach",
            "--format",
            "json",
            "-p",
            &pid.to_string(),
            "--report-file",
        ]);
        command.arg(scratch.path("report.json")).args(options);
        let memtrace = Running::start(&mut command);
        memtrace.stderr_has("memtrace: tracing");
        Attached { memtrace, scratch }
    }

    /// The pid of memtrace.
    pub fn pid(&self) -> u32 {
        self.memtrace.pid()
    }

    /// The memtrace process.
    pub fn memtrace(&mut self) -> &mut Running {
        &mut self.memtrace
    }

    /// Ends the trace as Ctrl-C does, and reads its report.
    #[track_caller]
    pub fn stop(self) -> Traced {
        self.memtrace.signal(nix::sys::signal::Signal::SIGINT);
        self.wait()
    }

    /// Waits until memtrace ends by itself, and reads its report.
    #[track_caller]
    pub fn wait(self) -> Traced {
        let finished = self.memtrace.finish();
        finished.exited(0);
        read(finished, &self.scratch.path("report.json"))
    }
}
