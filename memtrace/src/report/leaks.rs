//! Allocation sites whose blocks were not given back, most bytes first.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::document::{Document, Leak, Process};
use super::suppress::Amount;
use super::text::{Column, Table, Tint, capitalised};
use super::{Report, Style, backtrace, section, stack};
use crate::units;

/// Sites shown per process.
const SITES: usize = 30;

/// `leaks`.
pub(super) struct Leaks;

impl Report for Leaks {
    fn name(&self) -> &'static str {
        "leaks"
    }

    fn about(&self) -> &'static str {
        "allocation sites of blocks that were not given back, with stacks"
    }

    fn render(&self, document: &Document, style: &Style, out: &mut dyn Write) -> io::Result<()> {
        let processes = section::worst_first(document, |process| Amount::of(&process.leaks).bytes);
        // Hundreds of children without a leak would bury the one that has some.
        let mut quiet = processes;
        let mut shown: Vec<&Process> = quiet.drain(..quiet.len().min(1)).collect();
        shown.extend(quiet.extract_if(.., |process| !process.leaks.is_empty()));
        section::each(&shown, style, out, |process, out| body(process, style, out))?;
        others(&quiet, out)
    }
}

/// `10.1 MiB in 1,010 blocks at 2 sites`.
pub(super) fn total(leaks: &[Leak]) -> String {
    Amount::of(leaks).to_string()
}

fn body(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    if let Some(truth) = section::heap_truth(process) {
        writeln!(out, "  {}", style.paint(Tint::Bad, &capitalised(&truth)))?;
    }
    if process.leaks.is_empty() {
        if process.heap.is_some() {
            writeln!(out, "  No leaks.")?;
        }
        return Ok(());
    }
    writeln!(out)?;
    sites(&process.leaks, style, out)?;
    if process.leaks.len() > SITES {
        let rest = total(&process.leaks[SITES..]);
        writeln!(out, "  … and {rest} more (see --format json)")?;
    }
    writeln!(out, "  Total {}", total(&process.leaks))
}

fn sites(leaks: &[Leak], style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let columns = [
        Column::Right("Bytes"),
        Column::Right("Blocks"),
        Column::Right("Oldest"),
        Column::Right("Newest"),
        Column::Name("Site"),
    ];
    let mut table = Table::new(&columns);
    for leak in leaks.iter().take(SITES) {
        table.row([
            units::bytes(leak.bytes),
            units::count(leak.blocks),
            units::duration(leak.oldest_age_ns),
            units::duration(leak.newest_age_ns),
            stack::title(&leak.stack),
        ]);
        if let (Some(bytes), Some(blocks)) = (leak.bytes_error, leak.blocks_error) {
            let (bytes, blocks) = (
                units::bytes(bytes),
                units::counted(blocks, "block", "blocks"),
            );
            table.below(&format!("        ± {bytes}, ± {blocks} (standard error)\n"));
        }
        for line in backtrace::lines(&leak.stack, leak.stack_end) {
            table.below(&line);
        }
        table.below("\n");
    }
    table.render(2, style, out)
}

/// Processes without a section: how many had no leaks, and how many were not looked into, by reason.
fn others(quiet: &[&Process], out: &mut dyn Write) -> io::Result<()> {
    if quiet.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut kinds = BTreeMap::new();
    for process in quiet {
        let truth = section::heap_truth(process).unwrap_or_else(|| "no leaks".to_owned());
        *kinds.entry(truth).or_insert(0) += 1;
    }
    for (truth, count) in kinds {
        writeln!(
            out,
            "{}: {truth}.",
            units::counted(count, "other process", "other processes")
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::suppress::Removed;
    use crate::report::{fixture, rendered};

    #[test]
    fn sites_by_bytes() {
        assert_eq!(
            rendered("leaks", &fixture::leaky(), &Style::default()),
            "\
leaky (pid 123), ran 1.2 s, exit 0
  ./leaky 'two words'

     Bytes  Blocks  Oldest    Newest  Site
  10.0 MiB      10   1.1 s  900.0 ms  leak_big (leaky.c:12)
        malloc in libc.so.6
        leak_big (/src/leaky.c:12)
        main (/src/leaky.c:40)

  62.5 KiB   1,000   1.1 s  900.0 ms  leak_small (leaky.c:12)
        malloc in libc.so.6
        leak_small (/src/leaky.c:12)
        main (/src/leaky.c:40)

  Total 10.1 MiB in 1,010 blocks at 2 sites

Nothing was lost: 3,198,000 events, 2 probes attached.
Committed bytes come from kernel counters.
"
        );
    }

    #[test]
    fn heap_not_measured_prints_why() {
        let mut document = fixture::leaky();
        document.processes[0].heap = None;
        document.processes[0].heap_reason = Some("no allocator was found".into());
        document.processes[0].leaks.clear();
        let text = rendered("leaks", &document, &Style::default());
        assert!(
            text.contains("\n  Heap not measured: no allocator was found\n"),
            "{text}"
        );
        assert!(!text.contains("No leaks"));
    }

    #[test]
    fn quiet_processes_are_counted_and_removals_said() {
        let mut document = fixture::leaky();
        for index in 0..5 {
            let mut process = fixture::process();
            process.leaks.clear();
            if index < 2 {
                process.heap = None;
                process.heap_reason = Some("stripped".into());
            }
            document.processes.push(process);
        }
        let removed = Removed {
            suppressed: Amount {
                sites: 1,
                blocks: 3,
                bytes: 96,
            },
            young: Amount {
                sites: 2,
                blocks: 2,
                bytes: 2048,
            },
            min_age_ns: 1_000_000_000,
        };
        let text = rendered(
            "leaks",
            &document,
            &Style {
                removed,
                ..Style::default()
            },
        );
        let end = text.find("  Total").unwrap();
        assert_eq!(
            &text[end..],
            "  Total 10.1 MiB in 1,010 blocks at 2 sites

2 other processes: heap not measured: stripped.
3 other processes: no leaks.

3,198,000 events, 2 probes attached; heap of 2 processes not measured: stripped.
Suppressed leaks: 96 B in 3 blocks at 1 site.
Leaks younger than 1.0 s, left out: 2.0 KiB in 2 blocks at 2 sites.
Committed bytes come from kernel counters.
"
        );
    }

    #[test]
    fn many_sites_are_capped() {
        let mut document = fixture::leaky();
        document.processes[0].leaks = (0..40)
            .map(|n| fixture::leak(&format!("f{n}"), 1024, 1))
            .collect();
        let text = rendered("leaks", &document, &Style::default());
        assert!(
            text.contains("  … and 10.0 KiB in 10 blocks at 10 sites more (see --format json)\n")
        );
        assert!(text.contains("  Total 40.0 KiB in 40 blocks at 40 sites\n"));
    }
}
