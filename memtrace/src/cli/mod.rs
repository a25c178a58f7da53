//! The command line: arguments as typed, checked and handed over; a file per subcommand.

mod attach;
mod daemon;
mod diff;
mod doctor;
mod explain;
mod export;
mod heap;
mod leaks;
mod mark;
mod output;
mod ps;
mod report;
mod run;
mod signals;
mod socket;
mod target;
mod top;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A system memory tracer: reserved against touched memory, leaks and page-fault latency of any process.
#[derive(Parser)]
#[command(name = "memtrace", version, about, arg_required_else_help = true)]
struct Arguments {
    /// Say more: -v what is probed, -vv what the probes say.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Launch a command, trace it from its first instruction, report at its end.
    Run(run::Run),
    /// Trace running processes until Ctrl-C or the duration ends it, then report.
    Attach(attach::Attach),
    /// Trace every process from boot on, and answer questions about them.
    Daemon(daemon::Daemon),
    /// What the daemon tracks, a line each.
    Ps(ps::Ps),
    /// The same, live in the terminal, with a look into each process.
    Top(top::Top),
    /// Begin or end to probe the heap of processes that the daemon tracks.
    Heap(heap::Heap),
    /// The leaks of a running process now, from the daemon; the trace goes on.
    Leaks(leaks::Leaks),
    /// Name this moment, for --since and --until.
    Mark(mark::Mark),
    /// Report from a recording, or from the daemon.
    Report(report::Report),
    /// Compare two recordings.
    Diff(diff::Diff),
    /// A recording, or a table of the daemon's history, as a Parquet file.
    Export(export::Export),
    /// Explain a word of a report and what to do about it.
    Explain(explain::Explain),
    /// Say what this machine can and cannot do, and how to change it.
    Doctor(doctor::Doctor),
}

/// Exit statuses of the contract.
mod status {
    /// Done.
    pub const DONE: u8 = 0;
    /// memtrace failed.
    pub const FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// A condition of `--fail-on` was exceeded.
    pub const EXCEEDED: u8 = 3;
    /// `run`: memtrace itself failed.
    pub const RUN_FAILED: u8 = 125;
    /// `run`: the command cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// `run`: the command is not found.
    pub const NOT_FOUND: u8 = 127;
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let Arguments { verbose, command } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage::refuse(&error),
    };
    match &command {
        Command::Daemon(_) => log_as_daemon(verbose),
        _ => log_to_stderr(verbose),
    }
    let failed = if matches!(command, Command::Run(_)) {
        status::RUN_FAILED
    } else {
        status::FAILED
    };
    let done = match command {
        Command::Run(run) => run.execute(verbose),
        Command::Attach(attach) => attach.execute(verbose),
        Command::Daemon(daemon) => daemon.execute(verbose),
        Command::Ps(ps) => ps.execute(),
        Command::Top(top) => top.execute(),
        Command::Heap(heap) => heap.execute(),
        Command::Leaks(leaks) => leaks.execute(),
        Command::Mark(mark) => mark.execute(),
        Command::Report(report) => report.execute(),
        Command::Diff(diff) => diff.execute(),
        Command::Export(export) => export.execute(),
        Command::Explain(explain) => explain.execute(),
        Command::Doctor(doctor) => doctor.execute(),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => match error.downcast_ref() {
            Some(wrong) => usage::refuse(wrong),
            None => {
                complain(&told(&error));
                ExitCode::from(failed)
            }
        },
    }
}

/// The error and its causes in one line, without those that the line tells already.
fn told(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

/// A wrong argument, told as clap tells one.
fn usage(error: impl std::fmt::Display) -> anyhow::Error {
    let kind = clap::error::ErrorKind::ValueValidation;
    clap::Error::raw(kind, format!("{error}\n")).into()
}

/// One line for a person. A closed stderr is nobody to tell.
fn complain(message: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "memtrace: {message}");
}

/// The level of memtrace's own messages, and of its programs'.
fn log_level(verbose: u8) -> log::LevelFilter {
    match verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    }
}

fn log_to_stderr(verbose: u8) {
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Error)
        .filter_module("memtrace", log_level(verbose))
        .format(|out, record| {
            use std::io::Write as _;
            writeln!(out, "memtrace: {}", record.args())
        })
        .init();
}

/// Lines that a collector takes apart: `level=info msg="…"`. The time is the journal's.
fn log_as_daemon(verbose: u8) {
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Error)
        .filter_module("memtrace", log_level(verbose).max(log::LevelFilter::Info))
        .format(|out, record| {
            use std::io::Write as _;
            let level = record.level().as_str().to_lowercase();
            // Quoted with what would break the line or the quotes escaped.
            writeln!(out, "level={level} msg={:?}", record.args().to_string())
        })
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_twice() {
        let source = std::io::Error::from_raw_os_error(24);
        let error = crate::trace::launch::LaunchError::Spawn {
            command: "it".into(),
            source,
        };
        let error = anyhow::Error::new(error).context("no trace");
        assert_eq!(
            told(&error),
            "no trace: cannot start it: Too many open files (os error 24)"
        );
    }
}
