//! Allocation sites by what they asked for, and by what they held when the heap was at its peak.

use std::io::{self, Write};

use super::document::{Document, Heap, Process, Site, SiteTotals};
use super::text::{Column, Table, Tint, capitalised};
use super::{Report, Style, backtrace, section, stack};
use crate::units;

/// Sites shown per process.
const SITES: usize = 30;

/// A report of all sites in the order of one of their figures.
pub(super) struct Sites {
    name: &'static str,
    about: &'static str,
    blocks: &'static str,
    /// Bytes and blocks of a site.
    amount: fn(&SiteTotals) -> (u64, u64),
    /// Bytes of a whole heap.
    total: fn(&Heap) -> u64,
}

/// `allocations`.
pub(super) const ALLOCATIONS: Sites = Sites {
    name: "allocations",
    about: "allocation sites by the bytes they asked for, freed or not",
    blocks: "Calls",
    amount: |totals| {
        let calls = totals.allocations.saturating_add(totals.reallocations);
        (totals.bytes_allocated, calls)
    },
    total: |heap| heap.bytes_allocated,
};

/// `peak`.
pub(super) const PEAK: Sites = Sites {
    name: "peak",
    about: "allocation sites by what they held when the heap held most",
    blocks: "Blocks",
    amount: |totals| (totals.peak_bytes, totals.peak_blocks),
    total: |heap| heap.peak_live_bytes,
};

impl Report for Sites {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn render(&self, document: &Document, style: &Style, out: &mut dyn Write) -> io::Result<()> {
        let key = |process: &Process| process.heap.as_ref().map(self.total);
        let processes = section::worst_first(document, key);
        section::each(&processes, style, out, |process, out| {
            self.body(process, style, out)
        })
    }
}

impl Sites {
    fn body(&self, process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
        if let Some(truth) = section::heap_truth(process) {
            writeln!(out, "  {}", style.paint(Tint::Bad, &capitalised(&truth)))?;
        }
        let Some(heap) = &process.heap else {
            return Ok(());
        };
        let mut sites: Vec<&Site> = process.sites.iter().collect();
        sites.retain(|site| (self.amount)(&site.totals).1 > 0);
        sites.sort_by_key(|site| std::cmp::Reverse((self.amount)(&site.totals)));
        writeln!(out)?;
        let columns = [
            Column::Right("Bytes"),
            Column::Right(self.blocks),
            Column::Name("Site"),
        ];
        let mut table = Table::new(&columns);
        for site in sites.iter().take(SITES) {
            let frames: Vec<_> = process.stack(&site.stack).cloned().collect();
            let (bytes, blocks) = (self.amount)(&site.totals);
            table.row([
                units::bytes(bytes),
                units::count(blocks),
                stack::title(&frames),
            ]);
            for line in backtrace::lines(&frames, site.stack_end) {
                table.below(&line);
            }
            table.below("\n");
        }
        table.render(2, style, out)?;
        let others = process.other_sites.map_or(0, |others| others.sites);
        let listed = sites.len().saturating_sub(SITES) as u64 + others;
        if listed > 0 {
            let more = units::counted(listed, "more site", "more sites");
            writeln!(out, "  … and {more} (see --format json)")?;
        }
        writeln!(out, "  Total {}", units::bytes((self.total)(heap)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{fixture, rendered};

    #[test]
    fn sites_by_volume() {
        assert_eq!(
            rendered("allocations", &fixture::with_sites(), &Style::default()),
            "\
leaky (pid 123), ran 1.2 s, exit 0
  ./leaky 'two words'

    Bytes  Calls  Site
  2.9 KiB     10  leak_big (leaky.c:12)
        malloc in libc.so.6
        leak_big (/src/leaky.c:12)
        main (/src/leaky.c:40)

  2.0 KiB     20  work (leaky.c:20)
        malloc in libc.so.6
        work (/src/leaky.c:20)
        main (/src/leaky.c:40)

  … and 3 more sites (see --format json)
  Total 3.0 GiB

Nothing was lost: 3,198,000 events, 2 probes attached.
Committed bytes come from kernel counters.
"
        );
    }

    #[test]
    fn sites_at_the_peak() {
        let text = rendered("peak", &fixture::with_sites(), &Style::default());
        assert!(
            text.contains("1.5 KiB      15  work (leaky.c:20)\n"),
            "{text}"
        );
        assert!(!text.contains("leak_big"), "{text}");
        assert!(text.contains("  Total 15.0 MiB\n"), "{text}");
    }

    #[test]
    fn a_heap_that_was_not_seen_has_no_sites() {
        let mut document = fixture::with_sites();
        document.processes[0].heap = None;
        document.processes[0].heap_reason = Some("no allocator was found".into());
        let text = rendered("peak", &document, &Style::default());
        assert!(
            text.contains("Heap not measured: no allocator was found"),
            "{text}"
        );
        assert!(!text.contains("Total"), "{text}");
    }
}
