//! `memtrace diff`: what changed between two documents.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Write};

use super::Style;
use super::document::{Document, Leak, Process};
use super::stack::{self, SiteKey};
use super::text::{Column, NOT_MEASURED, Table, Tint, base_name, clean};
use crate::units;

/// Sites listed per process.
const SITES: usize = 20;

/// A figure before and after; `None` where it was not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// In the old document.
    pub old: Option<u64>,
    /// In the new one.
    pub new: Option<u64>,
}

/// An allocation site whose leaks are not what they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteChange {
    /// As [`stack::title`] has it.
    pub title: String,
    /// Bytes in the old document; 0 for a new site.
    pub old_bytes: u64,
    /// Bytes in the new one; 0 for a site that is gone.
    pub new_bytes: u64,
    /// Blocks in the old document.
    pub old_blocks: u64,
    /// Blocks in the new one.
    pub new_blocks: u64,
}

/// Two runs of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessDiff {
    /// Name of the program.
    pub name: String,
    /// Pids, old and new.
    pub pids: (u32, u32),
    /// Figures by name; those in bytes first.
    pub figures: Vec<(Figure, Change)>,
    /// Largest growth first, then the largest shrinkage last.
    pub sites: Vec<SiteChange>,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Live heap bytes.
    HeapLive,
    /// Peak of live heap bytes.
    HeapPeak,
    /// Live blocks.
    HeapBlocks,
    /// Reserved bytes.
    Reserved,
    /// Committed bytes.
    Committed,
    /// Peak of committed bytes.
    PeakCommitted,
    /// Minor faults.
    MinorFaults,
    /// Major faults.
    MajorFaults,
    /// 99th percentile of fault latency.
    FaultP99,
}

/// How two documents differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Programs that both have.
    pub processes: Vec<ProcessDiff>,
    /// Programs that only the old one has, with how many of each.
    pub gone: BTreeMap<String, u64>,
    /// Programs that only the new one has.
    pub added: BTreeMap<String, u64>,
}

impl Figure {
    const ALL: [Self; 9] = [
        Self::HeapLive,
        Self::HeapPeak,
        Self::HeapBlocks,
        Self::Reserved,
        Self::Committed,
        Self::PeakCommitted,
        Self::MinorFaults,
        Self::MajorFaults,
        Self::FaultP99,
    ];

    /// As printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HeapLive => "live heap",
            Self::HeapPeak => "peak live heap",
            Self::HeapBlocks => "live blocks",
            Self::Reserved => "reserved",
            Self::Committed => "committed",
            Self::PeakCommitted => "peak committed",
            Self::MinorFaults => "minor faults",
            Self::MajorFaults => "major faults",
            Self::FaultP99 => "fault p99",
        }
    }

    fn of(self, process: &Process) -> Option<u64> {
        let space = &process.address_space;
        match self {
            Self::HeapLive => process.heap.map(|heap| heap.live_bytes),
            Self::HeapPeak => process.heap.map(|heap| heap.peak_live_bytes),
            Self::HeapBlocks => process.heap.map(|heap| heap.live_blocks),
            Self::Reserved => Some(space.reserved_bytes),
            Self::Committed => Some(space.committed_bytes),
            Self::PeakCommitted => Some(space.peak_committed_bytes),
            Self::MinorFaults => Some(process.faults.minor),
            Self::MajorFaults => Some(process.faults.major),
            Self::FaultP99 => process
                .faults
                .latency_ns
                .as_ref()
                .map(|latency| latency.p99),
        }
    }

    fn text(self, value: u64) -> String {
        match self {
            Self::HeapBlocks | Self::MinorFaults | Self::MajorFaults => units::count(value),
            Self::FaultP99 => units::latency(value),
            _ => units::bytes(value),
        }
    }
}

/// Compares two documents. A process that is in both matches itself. Else they are of two runs: the first of each
/// document, the traced command, match whatever they are called, the others by program, in order of start.
pub fn compare(old: &Document, new: &Document) -> Difference {
    let mut difference = Difference::default();
    let mut known: HashMap<_, &Process> = old
        .processes
        .iter()
        .map(|one| (identity(one), one))
        .collect();
    let (again, mut others): (Vec<&Process>, Vec<&Process>) = new
        .processes
        .iter()
        .partition(|one| known.contains_key(&identity(one)));
    let mut pairs: Vec<(&Process, &Process)> = again
        .into_iter()
        .filter_map(|one| Some((known.remove(&identity(one))?, one)))
        .collect();
    let mut left = old
        .processes
        .iter()
        .filter(|one| known.contains_key(&identity(one)));
    if pairs.is_empty() && !others.is_empty() {
        pairs.extend(left.next().map(|first| (first, others.remove(0))));
    }
    let mut waiting: HashMap<&str, VecDeque<&Process>> = HashMap::new();
    for process in left {
        let same = waiting.entry(program(process)).or_default();
        same.push_back(process);
    }
    for process in others {
        let same = waiting.get_mut(program(process));
        match same.and_then(VecDeque::pop_front) {
            Some(before) => pairs.push((before, process)),
            None => {
                *difference
                    .added
                    .entry(program(process).to_owned())
                    .or_default() += 1
            }
        }
    }
    for (program, left) in waiting.into_iter().filter(|(_, left)| !left.is_empty()) {
        let count = left.len() as u64;
        difference.gone.insert(program.to_owned(), count);
    }
    difference.processes = pairs.into_iter().map(|(old, new)| pair(old, new)).collect();
    difference
}

fn identity(process: &Process) -> (u32, u64) {
    (process.pid, process.start_time_ns)
}

fn program(process: &Process) -> &str {
    if process.exe.is_empty() {
        &process.comm
    } else {
        &process.exe
    }
}

fn pair(old: &Process, new: &Process) -> ProcessDiff {
    let change = |figure: Figure| {
        (
            figure,
            Change {
                old: figure.of(old),
                new: figure.of(new),
            },
        )
    };
    ProcessDiff {
        name: new.comm.clone(),
        pids: (old.pid, new.pid),
        figures: Figure::ALL.into_iter().map(change).collect(),
        // Sites of a heap that one side did not see would all look new, or all gone.
        sites: if old.heap.is_some() && new.heap.is_some() {
            sites(&old.leaks, &new.leaks)
        } else {
            Vec::new()
        },
    }
}

fn sites(old: &[Leak], new: &[Leak]) -> Vec<SiteChange> {
    let mut sites: BTreeMap<SiteKey, SiteChange> = BTreeMap::new();
    for (leak, is_new) in old
        .iter()
        .map(|leak| (leak, false))
        .chain(new.iter().map(|leak| (leak, true)))
    {
        let site = sites
            .entry(SiteKey::new(&leak.stack))
            .or_insert_with(|| SiteChange {
                title: String::new(),
                old_bytes: 0,
                new_bytes: 0,
                old_blocks: 0,
                new_blocks: 0,
            });
        site.title = stack::title(&leak.stack);
        let (bytes, blocks) = if is_new {
            (&mut site.new_bytes, &mut site.new_blocks)
        } else {
            (&mut site.old_bytes, &mut site.old_blocks)
        };
        *bytes = bytes.saturating_add(leak.bytes);
        *blocks = blocks.saturating_add(leak.blocks);
    }
    let mut changed: Vec<SiteChange> = sites.into_values().filter(SiteChange::changed).collect();
    changed.sort_by_key(|site| {
        std::cmp::Reverse(i128::from(site.new_bytes) - i128::from(site.old_bytes))
    });
    changed
}

impl SiteChange {
    fn changed(&self) -> bool {
        self.old_bytes != self.new_bytes || self.old_blocks != self.new_blocks
    }
}

/// Writes the difference for people.
pub fn render(difference: &Difference, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    for (index, process) in difference.processes.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        one(process, style, out)?;
    }
    for (programs, title) in [
        (&difference.gone, "Only in the old"),
        (&difference.added, "Only in the new"),
    ] {
        if programs.is_empty() {
            continue;
        }
        let listed = programs.iter().map(|(program, count)| match count {
            1 => clean(base_name(program)),
            count => format!("{} × {}", clean(base_name(program)), units::count(*count)),
        });
        writeln!(out, "\n{title}: {}", listed.collect::<Vec<_>>().join(", "))?;
    }
    if difference == &Difference::default() {
        writeln!(out, "No process in either.")?;
    }
    Ok(())
}

fn one(process: &ProcessDiff, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let (old, new) = process.pids;
    let name = clean(&process.name);
    let title = if old == new {
        format!("{name} (pid {old})")
    } else {
        format!("{name} (pid {old}, then {new})")
    };
    writeln!(out, "{}", style.paint(Tint::Strong, &title))?;
    let columns = [
        Column::Left(""),
        Column::Right("Old"),
        Column::Right("New"),
        Column::Right("Change"),
    ];
    let mut table = Table::new(&columns);
    for (figure, change) in &process.figures {
        let text = |value: Option<u64>| {
            value.map_or_else(|| NOT_MEASURED.to_owned(), |value| figure.text(value))
        };
        let delta = match (change.old, change.new) {
            (Some(old), Some(new)) => signed(old, new, |value| figure.text(value)),
            _ => "?".to_owned(),
        };
        table.row([
            figure.name().to_owned(),
            text(change.old),
            text(change.new),
            delta,
        ]);
    }
    table.render(2, style, out)?;
    sites_table(&process.sites, style, out)
}

fn sites_table(sites: &[SiteChange], style: &Style, out: &mut dyn Write) -> io::Result<()> {
    if sites.is_empty() {
        return Ok(());
    }
    let columns = [
        Column::Right("Bytes"),
        Column::Right("Blocks"),
        Column::Left(""),
        Column::Name("Site"),
    ];
    let mut table = Table::new(&columns);
    // Growth is at the top and shrinkage at the bottom: what is left out lies between.
    let (head, tail) = if sites.len() > SITES {
        (&sites[..SITES / 2], &sites[sites.len() - SITES / 2..])
    } else {
        (sites, &sites[..0])
    };
    for site in head.iter().chain(tail) {
        let note = match (site.old_blocks, site.new_blocks) {
            (0, _) => "new",
            (_, 0) => "gone",
            _ => "",
        };
        table.row([
            signed(site.old_bytes, site.new_bytes, units::bytes),
            signed(site.old_blocks, site.new_blocks, units::count),
            note.to_owned(),
            site.title.clone(),
        ]);
    }
    writeln!(out)?;
    table.render(2, style, out)?;
    if sites.len() > SITES {
        writeln!(
            out,
            "  … and {} sites that changed less",
            sites.len() - SITES
        )?;
    }
    Ok(())
}

fn signed(old: u64, new: u64, text: impl Fn(u64) -> String) -> String {
    match new.cmp(&old) {
        std::cmp::Ordering::Equal => "=".to_owned(),
        std::cmp::Ordering::Greater => format!("+{}", text(new - old)),
        std::cmp::Ordering::Less => format!("-{}", text(old - new)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    fn text(old: &Document, new: &Document) -> String {
        let mut out = Vec::new();
        render(&compare(old, new), &Style::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_grew_and_what_shrank() {
        let old = fixture::leaky();
        let mut new = fixture::leaky();
        let process = &mut new.processes[0];
        process.pid = 456;
        process.leaks[1].bytes += 1024;
        process.leaks[0].bytes -= 1 << 20;
        process.leaks[0].blocks -= 1;
        process.leaks.push(fixture::leak("leak_new", 100, 1));
        process.faults.latency_ns = None;
        process.faults.minor += 1000;
        if let Some(heap) = &mut process.heap {
            heap.live_bytes -= 1 << 19;
        }
        assert_eq!(
            text(&old, &new),
            "\
leaky (pid 123, then 456)
                        Old           New      Change
  live heap        10.1 MiB       9.6 MiB  -512.0 KiB
  peak live heap   15.0 MiB      15.0 MiB           =
  live blocks         1,010         1,010           =
  reserved         10.0 GiB      10.0 GiB           =
  committed       112.0 MiB     112.0 MiB           =
  peak committed  120.0 MiB     120.0 MiB           =
  minor faults          129         1,129      +1,000
  major faults            1             1           =
  fault p99         34.0 µs  not measured           ?

     Bytes  Blocks       Site
  +1.0 KiB       =       leak_small (leaky.c:12)
    +100 B      +1  new  leak_new (leaky.c:12)
  -1.0 MiB      -1       leak_big (leaky.c:12)
"
        );
    }

    #[test]
    fn processes_match_by_program_in_order() {
        let named = |pid, exe: &str| Process {
            pid,
            exe: exe.into(),
            ..fixture::process()
        };
        let document = |processes| Document {
            processes,
            ..fixture::empty()
        };
        let old = document(vec![
            named(1, "/bin/make"),
            named(2, "/bin/cc"),
            named(3, "/bin/ld"),
            named(4, "/bin/cc"),
        ]);
        let new = document(vec![
            named(11, "/new/make"),
            named(12, "/bin/cc"),
            named(13, "/bin/as"),
            named(14, "/bin/as"),
        ]);
        let difference = compare(&old, &new);
        let pids: Vec<(u32, u32)> = difference
            .processes
            .iter()
            .map(|process| process.pids)
            .collect();
        assert_eq!(pids, [(1, 11), (2, 12)]);
        assert!(
            text(&old, &new).ends_with("\nOnly in the old: cc, ld\n\nOnly in the new: as × 2\n")
        );
    }

    #[test]
    fn a_process_of_both_matches_itself() {
        let started = |pid, start_time_ns| Process {
            pid,
            start_time_ns,
            ..fixture::process()
        };
        let document = |processes| Document {
            processes,
            ..fixture::empty()
        };
        let old = document(vec![started(1, 10), started(2, 20), started(3, 30)]);
        let new = document(vec![started(3, 30), started(2, 21), started(4, 40)]);
        let difference = compare(&old, &new);
        let pids: Vec<(u32, u32)> = difference.processes.iter().map(|one| one.pids).collect();
        assert_eq!(pids, [(3, 3), (1, 2), (2, 4)]);
        assert!(text(&old, &new).starts_with("leaky (pid 3)\n"));
    }

    #[test]
    fn nothing_to_compare() {
        assert_eq!(
            text(&fixture::empty(), &fixture::empty()),
            "No process in either.\n"
        );
        let mut unseen = fixture::leaky();
        unseen.processes[0].heap = None;
        assert_eq!(compare(&fixture::leaky(), &unseen).processes[0].sites, []);
    }

    #[test]
    fn many_sites_keep_both_ends() {
        let old = fixture::leaky();
        let mut new = fixture::leaky();
        new.processes[0].leaks = (0..30)
            .map(|n| fixture::leak(&format!("f{n}"), 100 + n, 1))
            .collect();
        let text = text(&old, &new);
        assert!(text.contains("f29") && text.contains("leak_big") && !text.contains("f15 "));
        assert!(text.contains("  … and 12 sites that changed less\n"));
    }
}
