//! The address space as it lies.

use std::io::{self, Write};

use super::document::{Document, Process};
use super::text::{Column, Table, clean};
use super::{Report, Style, section};
use crate::units;

/// `layout`.
pub(super) struct Layout;

impl Report for Layout {
    fn name(&self) -> &'static str {
        "layout"
    }

    fn about(&self) -> &'static str {
        "mappings in order of address, with what is resident of each"
    }

    fn render(&self, document: &Document, style: &Style, out: &mut dyn Write) -> io::Result<()> {
        let processes =
            section::worst_first(document, |process| process.address_space.reserved_bytes);
        section::each(&processes, style, out, |process, out| {
            body(process, style, out)
        })
    }
}

fn body(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    if process.regions.is_empty() {
        return writeln!(out, "  No mappings were recorded.");
    }
    let columns = [
        Column::Right("Start"),
        Column::Right("Reserved"),
        Column::Right("Committed"),
        Column::Right("Faults"),
        Column::Left("Perm"),
        Column::Path("Mapping"),
    ];
    let mut regions: Vec<_> = process.regions.iter().collect();
    regions.sort_by_key(|region| region.start);
    let mut table = Table::new(&columns);
    for region in regions {
        table.row([
            format!("{:x}", region.start),
            units::bytes(region.reserved_bytes),
            units::bytes(region.committed_bytes),
            units::count(region.faults),
            clean(&region.permissions),
            clean(region.path.as_deref().unwrap_or(&region.kind)),
        ]);
    }
    writeln!(out)?;
    table.render(2, style, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{fixture, rendered};

    #[test]
    fn in_order_of_address() {
        assert_eq!(
            rendered("layout", &fixture::leaky(), &Style::default()),
            "\
leaky (pid 123), ran 1.2 s, exit 0
  ./leaky 'two words'

         Start  Reserved  Committed  Faults  Perm  Mapping
  555555554000  10.0 MiB    8.0 MiB   2,048  r-xp  …b/x86_64-linux-gnu/libc.so.6
  7f0000000000  10.0 GiB  104.0 MiB  26,624  rw-p  anonymous

Nothing was lost: 3,198,000 events, 2 probes attached.
Committed bytes come from kernel counters.
"
        );
    }

    #[test]
    fn no_mappings() {
        let mut document = fixture::leaky();
        document.processes[0].regions.clear();
        let text = rendered("layout", &document, &Style::default());
        assert!(text.contains("  No mappings were recorded.\n"));
    }
}
