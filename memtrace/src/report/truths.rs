//! What was lost, cut off or not seen: the end of every report.

use std::collections::BTreeMap;
use std::io::{self, Write};

use memtrace_common::counter::Counter;

use super::Style;
use super::document::{Coverage, Document};
use super::text::{Column, Table, Tint, clean};
use crate::units;

/// Unattached probes listed by name; there are hundreds on a kernel without them.
const PROBES_LISTED: usize = 8;

/// One short line where all is well, and a line for each thing that is not.
pub(super) fn render(document: &Document, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let coverage = &document.coverage;
    loss(document, style, out)?;
    if coverage.truncated {
        let line = "The recording was cut off: everything is as of its last readable moment.";
        writeln!(out, "{}", style.paint(Tint::Bad, line))?;
    }
    if coverage.undecodable > 0 {
        let records = units::counted(coverage.undecodable, "record", "records");
        writeln!(
            out,
            "{}",
            style.paint(Tint::Bad, &format!("{records} could not be decoded."))
        )?;
    }
    probes(coverage, style, out)?;
    if coverage.unmatched_frees > 0 {
        let frees = units::counted(
            coverage.unmatched_frees,
            "unmatched free",
            "unmatched frees",
        );
        writeln!(out, "{frees}, of blocks allocated before tracing began.")?;
    }
    if coverage.processes_dropped > 0 {
        let dropped = units::counted(
            coverage.processes_dropped,
            "exited process",
            "exited processes",
        );
        writeln!(
            out,
            "{dropped} dropped to bound memory; their numbers appear nowhere."
        )?;
    }
    left_out(coverage, style, out)?;
    removed(style, out)?;
    committed_source(document, out)
}

/// What the daemon's budget cost; times as `--since` takes them.
fn left_out(coverage: &Coverage, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    for one in &coverage.left_out {
        let until = match one.until_ms {
            Some(until_ms) => format!(" until @{}", until_ms / 1000),
            None => String::new(),
        };
        let what = clean(&one.what);
        let line = format!("LEFT OUT since @{}{until}: {what}.", one.since_ms / 1000);
        writeln!(out, "{}", style.paint(Tint::Bad, &line))?;
    }
    Ok(())
}

/// Processes whose heap was not measured or only in part, and the first reason.
fn unseen_heaps(document: &Document) -> Option<String> {
    let processes = || document.processes.iter();
    let unseen = processes().filter(|one| one.heap.is_none()).count() as u64;
    let partial = processes().filter(|one| one.heap.is_some() && one.heap_reason.is_some());
    let partial = partial.count() as u64;
    let counted = |count| units::counted(count, "process", "processes");
    let what = match (unseen, partial) {
        (0, 0) => return None,
        (_, 0) => format!("heap of {} not measured", counted(unseen)),
        (0, _) => format!("heap of {} measured in part", counted(partial)),
        (_, _) => format!(
            "heap of {} not measured, of {partial} in part",
            counted(unseen)
        ),
    };
    let mut reasons = processes().filter_map(|one| one.heap_reason.as_deref());
    let reason = reasons.next().unwrap_or("reason unknown");
    Some(format!("{what}: {}", clean(reason)))
}

fn loss(document: &Document, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let coverage = &document.coverage;
    let unseen = unseen_heaps(document);
    let events = units::counted(coverage.events, "event", "events");
    if coverage.lost == 0 {
        let whole = !coverage.truncated && coverage.undecodable == 0;
        let attached = coverage
            .probes
            .iter()
            .filter(|probe| probe.attached)
            .count() as u64;
        let probes = units::counted(attached, "probe", "probes");
        let line = match unseen {
            None => format!("Nothing was lost: {events}, {probes} attached."),
            Some(unseen) => format!("{events}, {probes} attached; {unseen}."),
        };
        writeln!(
            out,
            "{}",
            style.paint(if whole { Tint::Faint } else { Tint::Strong }, &line)
        )?;
    } else {
        let lost = units::count(coverage.lost);
        let line =
            format!("LOST {lost} besides {events} seen: counts that rest on events are too low.");
        writeln!(out, "{}", style.paint(Tint::Bad, &line))?;
        if let Some(unseen) = unseen {
            writeln!(out, "Besides: {unseen}.")?;
        }
    }
    let mut table = Table::new(&[Column::Right(""), Column::Left(""), Column::Left("")]);
    for (reason, count) in coverage
        .lost_by_reason
        .iter()
        .filter(|(_, count)| **count > 0)
    {
        let note = if is_loss(reason) {
            ""
        } else {
            "(no event lost)"
        };
        table.row([units::count(*count), clean(reason), note.to_owned()]);
    }
    table.render(2, style, out)
}

fn is_loss(reason: &str) -> bool {
    Counter::ALL
        .iter()
        .find(|counter| counter.name() == reason)
        .is_none_or(|counter| counter.is_loss())
}

fn probes(coverage: &Coverage, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let missing: Vec<_> = coverage
        .probes
        .iter()
        .filter(|probe| !probe.attached)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!(
        "{} of {} probes not attached:",
        missing.len(),
        coverage.probes.len()
    );
    writeln!(out, "{}", style.paint(Tint::Bad, &line))?;
    let mut table = Table::new(&[Column::Left(""), Column::Left("")]);
    for probe in missing.iter().take(PROBES_LISTED) {
        let reason = probe
            .reason
            .as_deref()
            .map_or_else(|| "no reason known".to_owned(), clean);
        table.row([clean(&probe.name), reason]);
    }
    table.render(2, style, out)?;
    if missing.len() > PROBES_LISTED {
        super::section::more(missing.len() - PROBES_LISTED, "probe", "probes", out)?;
    }
    Ok(())
}

fn removed(style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let removed = &style.removed;
    if removed.suppressed.sites > 0 {
        writeln!(out, "Suppressed leaks: {}.", removed.suppressed)?;
    }
    if removed.young.sites > 0 {
        let age = units::duration(removed.min_age_ns);
        writeln!(
            out,
            "Leaks younger than {age}, left out: {}.",
            removed.young
        )?;
    }
    Ok(())
}

/// One line where it is the same for all processes, with the number of processes otherwise.
fn committed_source(document: &Document, out: &mut dyn Write) -> io::Result<()> {
    let mut sources = BTreeMap::new();
    for process in &document.processes {
        *sources
            .entry(process.address_space.committed_source.as_str())
            .or_insert(0u64) += 1;
    }
    let alone = sources.len() == 1;
    let named = sources.into_iter().map(|(source, count)| {
        let source = if source.is_empty() {
            "an unknown source".to_owned()
        } else {
            clean(source)
        };
        if alone {
            source
        } else {
            format!(
                "{source} ({})",
                units::counted(count, "process", "processes")
            )
        }
    });
    let named: Vec<String> = named.collect();
    if named.is_empty() {
        return Ok(());
    }
    writeln!(out, "Committed bytes come from {}.", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::document::{LeftOut, Probe};
    use crate::report::fixture;

    fn text(document: &Document) -> String {
        let mut out = Vec::new();
        render(document, &Style::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn all_is_well() {
        assert_eq!(
            text(&fixture::leaky()),
            concat!(
                "Nothing was lost: 3,198,000 events, 2 probes attached.\n",
                "Committed bytes come from kernel counters.\n"
            )
        );
    }

    #[test]
    fn a_heap_that_was_not_seen_is_named() {
        let mut document = fixture::leaky();
        document.processes[0].heap_reason = Some("attached late".into());
        assert!(text(&document).starts_with(
            "3,198,000 events, 2 probes attached; heap of 1 process measured in part: attached late.\n"
        ));
        document.processes[0].heap = None;
        document.processes.push(fixture::process());
        assert!(text(&document).starts_with(
            "3,198,000 events, 2 probes attached; heap of 1 process not measured: attached late.\n"
        ));
    }

    #[test]
    fn everything_is_wrong() {
        let mut document = fixture::leaky();
        let mut other = fixture::process();
        other.address_space.committed_source = "smaps".into();
        document.processes.push(other);
        document.coverage = Coverage {
            events: 1_000_000,
            lost: 12,
            truncated: true,
            lost_by_reason: BTreeMap::from([
                ("ring_full_allocation".into(), 7),
                ("ring_full_free".into(), 5),
                ("slot_collision".into(), 0),
                ("stack_truncated".into(), 1234),
            ]),
            undecodable: 1,
            unmatched_frees: 17,
            probes: vec![
                Probe {
                    name: "malloc".into(),
                    attached: true,
                    reason: None,
                },
                Probe {
                    name: "mi_malloc".into(),
                    attached: false,
                    reason: Some("stripped".into()),
                },
                Probe {
                    name: "rss_stat".into(),
                    attached: false,
                    reason: None,
                },
            ],
            processes_dropped: 3,
            left_out: vec![LeftOut {
                since_ms: 1_700_000_000_999,
                until_ms: Some(1_700_000_060_000),
                what: "heap probes of a (pid 7): why".into(),
            }],
        };
        assert_eq!(
            text(&document),
            concat!(
                "LOST 12 besides 1,000,000 events seen: counts that rest on events are too low.\n",
                "      7  ring_full_allocation\n",
                "      5  ring_full_free\n",
                "  1,234  stack_truncated       (no event lost)\n",
                "The recording was cut off: everything is as of its last readable moment.\n",
                "1 record could not be decoded.\n",
                "2 of 3 probes not attached:\n",
                "  mi_malloc  stripped\n",
                "  rss_stat   no reason known\n",
                "17 unmatched frees, of blocks allocated before tracing began.\n",
                "3 exited processes dropped to bound memory; their numbers appear nowhere.\n",
                "LEFT OUT since @1700000000 until @1700000060: heap probes of a (pid 7): why.\n",
                "Committed bytes come from kernel counters (1 process), smaps (1 process).\n",
            )
        );
    }
}
