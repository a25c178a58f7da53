//! What was reserved and never touched, by kind and by mapping.

use std::cmp::Reverse;
use std::io::{self, Write};

use super::document::{Document, Process, Region};
use super::text::{Column, Table, clean};
use super::{Report, Style, section};
use crate::units;

/// Mappings listed per process.
const MAPPINGS: usize = 15;

/// `lazy`.
pub(super) struct Lazy;

impl Report for Lazy {
    fn name(&self) -> &'static str {
        "lazy"
    }

    fn about(&self) -> &'static str {
        "memory reserved and never touched, by kind and by mapping"
    }

    fn render(&self, document: &Document, style: &Style, out: &mut dyn Write) -> io::Result<()> {
        let processes = section::worst_first(document, |process| process.address_space.lazy_bytes);
        section::each(&processes, style, out, |process, out| {
            let space = &process.address_space;
            writeln!(
                out,
                "  {} reserved, {} committed, {} lazy ({})",
                units::bytes(space.reserved_bytes),
                units::bytes(space.committed_bytes),
                units::bytes(space.lazy_bytes),
                units::percent(space.lazy_bytes, space.reserved_bytes),
            )?;
            kinds(process, style, out)?;
            mappings(process, style, out)
        })
    }
}

fn kinds(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    if process.address_space.by_kind.is_empty() {
        return Ok(());
    }
    let columns = [
        Column::Right("Lazy"),
        Column::Right("Reserved"),
        Column::Right("Committed"),
        Column::Right("Share"),
        Column::Left("Kind"),
    ];
    let mut kinds: Vec<_> = process.address_space.by_kind.iter().collect();
    let lazy = |bytes: &super::document::KindBytes| {
        bytes.reserved_bytes.saturating_sub(bytes.committed_bytes)
    };
    kinds.sort_by_key(|(_, bytes)| Reverse(lazy(bytes)));
    let mut table = Table::new(&columns);
    for (kind, bytes) in kinds {
        table.row([
            units::bytes(lazy(bytes)),
            units::bytes(bytes.reserved_bytes),
            units::bytes(bytes.committed_bytes),
            units::percent(lazy(bytes), bytes.reserved_bytes),
            clean(kind),
        ]);
    }
    writeln!(out)?;
    table.render(2, style, out)
}

fn mappings(process: &Process, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let lazy = |region: &Region| region.reserved_bytes.saturating_sub(region.committed_bytes);
    let mut regions: Vec<&Region> = process
        .regions
        .iter()
        .filter(|region| lazy(region) > 0)
        .collect();
    if regions.is_empty() {
        return Ok(());
    }
    regions.sort_by_key(|region| (Reverse(lazy(region)), region.start));
    let columns = [
        Column::Right("Lazy"),
        Column::Right("Reserved"),
        Column::Right("Committed"),
        Column::Right("Start"),
        Column::Left("Perm"),
        Column::Path("Mapping"),
    ];
    let mut table = Table::new(&columns);
    for region in regions.iter().take(MAPPINGS) {
        table.row([
            units::bytes(lazy(region)),
            units::bytes(region.reserved_bytes),
            units::bytes(region.committed_bytes),
            format!("{:x}", region.start),
            clean(&region.permissions),
            clean(region.path.as_deref().unwrap_or(&region.kind)),
        ]);
    }
    writeln!(out)?;
    table.render(2, style, out)?;
    if regions.len() > MAPPINGS {
        write!(out, "  ")?;
        section::more(regions.len() - MAPPINGS, "mapping", "mappings", out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{fixture, rendered};

    #[test]
    fn worst_first() {
        assert_eq!(
            rendered("lazy", &fixture::leaky(), &Style::default()),
            "\
leaky (pid 123), ran 1.2 s, exit 0
  ./leaky 'two words'
  10.0 GiB reserved, 112.0 MiB committed, 9.9 GiB lazy (98.9 %)

     Lazy  Reserved  Committed   Share  Kind
  9.9 GiB  10.0 GiB  104.0 MiB  98.9 %  anonymous
  2.0 MiB  10.0 MiB    8.0 MiB  20.0 %  file

     Lazy  Reserved  Committed         Start  Perm  Mapping
  9.9 GiB  10.0 GiB  104.0 MiB  7f0000000000  rw-p  anonymous
  2.0 MiB  10.0 MiB    8.0 MiB  555555554000  r-xp  …/x86_64-linux-gnu/libc.so.6

Nothing was lost: 3,198,000 events, 2 probes attached.
Committed bytes come from kernel counters.
"
        );
    }

    #[test]
    fn an_empty_address_space() {
        let mut document = fixture::leaky();
        document.processes[0].address_space = Default::default();
        document.processes[0].regions.clear();
        assert_eq!(
            rendered("lazy", &document, &Style::default()),
            "\
leaky (pid 123), ran 1.2 s, exit 0
  ./leaky 'two words'
  0 B reserved, 0 B committed, 0 B lazy (-)

Nothing was lost: 3,198,000 events, 2 probes attached.
Committed bytes come from an unknown source.
"
        );
    }

    #[test]
    fn mappings_are_capped() {
        let mut document = fixture::leaky();
        let region = document.processes[0].regions[0].clone();
        document.processes[0].regions = vec![region; 20];
        let text = rendered("lazy", &document, &Style::default());
        assert!(text.contains("  … and 5 more mappings (see --format json)\n"));
    }
}
