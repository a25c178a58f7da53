//! What the reports share: order and headers of processes, and what a table leaves out.

use std::cmp::Reverse;
use std::io::{self, Write};

use nix::sys::signal::Signal;

use super::Style;
use super::document::{Document, Process};
use super::text::{Tint, clean, shorten};
use crate::units;

/// Processes that a report shows in full.
const SECTIONS: usize = 8;

/// The traced command, then the others, largest key first.
pub(super) fn worst_first<K: Ord>(
    document: &Document,
    key: impl Fn(&Process) -> K,
) -> Vec<&Process> {
    let mut processes: Vec<&Process> = document.processes.iter().collect();
    if let [_, others @ ..] = processes.as_mut_slice() {
        others.sort_by_cached_key(|process| Reverse(key(process)));
    }
    processes
}

/// A section per process, up to a limit, and a line about those left out.
pub(super) fn each<'a>(
    processes: &[&'a Process],
    style: &Style,
    out: &mut dyn Write,
    mut body: impl FnMut(&'a Process, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    for (index, process) in processes.iter().take(SECTIONS).enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        header(process, style, out)?;
        body(process, out)?;
    }
    if processes.len() > SECTIONS {
        writeln!(out)?;
        more(processes.len() - SECTIONS, "process", "processes", out)?;
    }
    Ok(())
}

/// What a list leaves out is said, with where to find it.
pub(super) fn more(
    count: usize,
    singular: &str,
    plural: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    let counted = units::counted(count as u64, singular, plural);
    let (number, noun) = counted.split_once(' ').unwrap_or((&counted, ""));
    writeln!(out, "… and {number} more {noun} (see --format json)")
}

/// `COMMAND (pid 123), ran 1.2 s, exit 0`.
pub(super) fn header(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let name = clean(&process.comm);
    let pid = process.pid;
    let title = match ran(process) {
        Some(ran) if process.end_time_ns.is_none() => {
            format!("{name} (pid {pid}), running for {ran}")
        }
        Some(ran) => format!("{name} (pid {pid}), ran {ran}, {}", ending(process)),
        None => format!("{name} (pid {pid}), {}", ending(process)),
    };
    writeln!(out, "{}", style.paint(Tint::Strong, &title))?;
    if !process.command_line.is_empty() {
        let line = shorten(&command_line(process), style.width.saturating_sub(2));
        writeln!(out, "  {}", style.paint(Tint::Faint, &line))?;
    }
    Ok(())
}

/// How long the process ran; for one that still runs, until it was last looked at.
pub(super) fn ran(process: &Process) -> Option<String> {
    let until = process
        .end_time_ns
        .or(process.timeline.last().map(|point| point.time_ns))?;
    Some(units::duration(until.saturating_sub(process.start_time_ns)))
}

/// `exit 0`, `killed by signal 11 (SIGSEGV)`, `still running`.
pub(super) fn ending(process: &Process) -> String {
    match process.exit {
        None if process.end_time_ns.is_none() => "still running".to_owned(),
        None => "ended".to_owned(),
        Some(exit) => match (exit.signal, exit.code) {
            (Some(signal), _) => match Signal::try_from(signal) {
                Ok(known) => format!("killed by signal {signal} ({known})"),
                Err(_) => format!("killed by signal {signal}"),
            },
            (None, Some(code)) => format!("exit {code}"),
            (None, None) => "ended".to_owned(),
        },
    }
}

/// The command line, arguments with spaces in quotes so that their bounds are seen.
fn command_line(process: &Process) -> String {
    let quoted = process.command_line.iter().map(|argument| {
        let argument = clean(argument);
        if argument.is_empty() || argument.contains(' ') {
            format!("'{argument}'")
        } else {
            argument
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// `Heap not measured: WHY`, or what makes it partial.
pub(super) fn heap_truth(process: &Process) -> Option<String> {
    let reason = process.heap_reason.as_deref().map(clean);
    match (&process.heap, reason) {
        (None, Some(reason)) => Some(format!("heap not measured: {reason}")),
        (None, None) => Some("heap not measured".to_owned()),
        (Some(_), Some(reason)) => Some(format!("heap measured in part: {reason}")),
        (Some(_), None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::document::Exit;
    use crate::report::fixture;

    #[test]
    fn endings() {
        let mut process = fixture::process();
        let mut ended = |code, signal| {
            process.exit = Some(Exit { code, signal });
            ending(&process)
        };
        assert_eq!(ended(Some(3), None), "exit 3");
        assert_eq!(ended(None, Some(11)), "killed by signal 11 (SIGSEGV)");
        assert_eq!(ended(None, Some(40)), "killed by signal 40");
        assert_eq!(ended(None, None), "ended");
        process.exit = None;
        process.end_time_ns = None;
        assert_eq!(ending(&process), "still running");
        let mut out = Vec::new();
        header(&process, &Style::default(), &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "leaky (pid 123), running for 1.2 s\n  ./leaky 'two words'\n"
        );
    }

    #[test]
    fn the_command_stays_first() {
        let mut document = fixture::leaky();
        for pid in 1..4 {
            document.processes.push(Process {
                pid,
                ..fixture::process()
            });
        }
        let pids: Vec<u32> = worst_first(&document, |process| process.pid)
            .iter()
            .map(|p| p.pid)
            .collect();
        assert_eq!(pids, [123, 3, 2, 1]);
    }

    #[test]
    fn sections_are_capped() {
        let process = fixture::process();
        let mut out = Vec::new();
        each(&[&process; 10], &Style::default(), &mut out, |_, _| Ok(())).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("leaky (pid 123)").count(), 8);
        assert!(text.ends_with("… and 2 more processes (see --format json)\n"));
    }
}
