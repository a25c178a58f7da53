//! Sites and their stacks, from numbers and addresses to rows of the report.

use memtrace_common::{
    frame::{self, Found, named_by},
    unwind::End,
};
use rustc_hash::FxHashMap;

use crate::{
    event::Symbol,
    report::document::{
        FaultSite, FoundBy, Frame, Growth, GrowthPoint, GrowthSite, Leak, OtherSites,
        Process as Row, Site, SiteTotals, StackEnd,
    },
};

use super::{
    fault_site::FaultUse,
    growth::{GrowthUse, GrowthUses},
    process::Module,
    site::{SiteUses, Use},
    stacks::Stacks,
};

/// What frames of a process are named by.
pub struct Names<'a> {
    /// What symbolization found, by [`named_by`].
    pub symbols: &'a FxHashMap<u64, Symbol>,
    /// File mappings, lowest first.
    pub modules: &'a [Module],
}

impl Names<'_> {
    /// The frames that one word stands for: the functions inlined there, then the real one.
    fn frames(&self, word: u64) -> Vec<Frame> {
        frames(word, self.symbols.get(&named_by(word)), self.modules)
    }
}

/// The frames of a row, each word once.
#[derive(Default)]
struct FrameTable {
    frames: Vec<Frame>,
    /// First and last index, exclusive.
    by_word: FxHashMap<u64, (u32, u32)>,
}

impl FrameTable {
    fn stack(&mut self, words: &[u64], names: &Names<'_>) -> Vec<u32> {
        let mut stack = Vec::with_capacity(words.len());
        for &word in words {
            let range = *self.by_word.entry(word).or_insert_with(|| {
                let first = self.frames.len() as u32;
                self.frames.extend(names.frames(word));
                (first, self.frames.len() as u32)
            });
            stack.extend(range.0..range.1);
        }
        stack
    }
}

/// Fills the sites, the leaks, the fault sites and the growth of a row.
pub fn fill(
    row: &mut Row,
    (stacks, uses): (&Stacks, &SiteUses),
    (faults, growth): (&[FaultUse], Option<&GrowthUses>),
    names: &Names<'_>,
    now_ns: u64,
) {
    row.leaks = uses
        .live()
        .map(|one| Leak {
            bytes: one.total.live.bytes,
            blocks: one.total.live.blocks,
            bytes_error: one.errors.map(|errors| errors.bytes),
            blocks_error: one.errors.map(|errors| errors.blocks),
            oldest_age_ns: now_ns.saturating_sub(one.oldest_ns),
            newest_age_ns: now_ns.saturating_sub(one.newest_ns),
            stack_end: stacks.end(one.site).map(stack_end),
            stack: (stacks.frames(one.site).iter())
                .flat_map(|word| names.frames(*word))
                .collect(),
        })
        .collect();
    let mut table = FrameTable::default();
    row.sites = uses
        .sites
        .iter()
        .map(|one| Site {
            totals: totals(&one.total),
            stack_end: stacks.end(one.site).map(stack_end),
            stack: table.stack(&stacks.frames(one.site), names),
        })
        .collect();
    row.sites
        .sort_by_key(|site| std::cmp::Reverse(site.totals.bytes_allocated));
    row.other_sites = (uses.other_sites > 0).then(|| OtherSites {
        sites: uses.other_sites,
        totals: totals(&uses.others),
    });
    row.fault_sites = faults
        .iter()
        .map(|one| FaultSite {
            minor: one.minor,
            minor_error: one.minor_error,
            major: one.major,
            latency_ns: one.latency_ns,
            stack_end: (one.place.site)
                .and_then(|site| stacks.end(site))
                .map(stack_end),
            stack: table.stack(&one.place.frames(stacks), names),
        })
        .collect();
    row.growth = growth.map(|growth| growth_in(growth, stacks, &mut table, names, now_ns));
    row.frames = table.frames;
}

/// Growth alone, and the frames that its stacks are made of.
pub fn growth(
    uses: &GrowthUses,
    stacks: &Stacks,
    names: &Names<'_>,
    now_ns: u64,
) -> (Growth, Vec<Frame>) {
    let mut table = FrameTable::default();
    let growth = growth_in(uses, stacks, &mut table, names, now_ns);
    (growth, table.frames)
}

fn growth_in(
    growth: &GrowthUses,
    stacks: &Stacks,
    table: &mut FrameTable,
    names: &Names<'_>,
    now_ns: u64,
) -> Growth {
    Growth {
        since_ns: growth.since_ns,
        until_ns: growth.until_ns,
        sites: (growth.sites.iter())
            .map(|one| growth_site(one, stacks, table, names, now_ns))
            .collect(),
    }
}

fn growth_site(
    one: &GrowthUse,
    stacks: &Stacks,
    table: &mut FrameTable,
    names: &Names<'_>,
    now_ns: u64,
) -> GrowthSite {
    let frames = one.site.map(|site| stacks.frames(site));
    GrowthSite {
        bytes: one.bytes,
        bytes_error: one.bytes_error,
        samples: one.samples,
        bytes_per_second: one.trend.bytes_per_second,
        bytes_per_second_error: one.trend.error,
        confidence: one.trend.confidence,
        over_ns: one.trend.over_ns,
        leak_candidate: one.trend.is_candidate,
        oldest_age_ns: now_ns.saturating_sub(one.oldest_ns),
        newest_age_ns: now_ns.saturating_sub(one.newest_ns),
        points: (one.points.iter())
            .map(|point| GrowthPoint {
                time_ns: point.time_ns,
                bytes: point.bytes,
            })
            .collect(),
        stack_end: (one.site).and_then(|site| stacks.end(site)).map(stack_end),
        stack: table.stack(&frames.unwrap_or_default(), names),
    }
}

fn stack_end(end: End) -> StackEnd {
    match end {
        End::Start => StackEnd::Start,
        End::Truncated => StackEnd::Truncated,
        End::NoRules => StackEnd::NoRules,
        End::Unreadable => StackEnd::Unreadable,
        End::Unsupported => StackEnd::UnsupportedRule,
        End::NoMapping => StackEnd::NoMapping,
        End::StackPointer => StackEnd::StackPointer,
        End::NotKnown => StackEnd::NotKnown,
    }
}

fn totals(total: &Use) -> SiteTotals {
    SiteTotals {
        allocations: total.allocations,
        reallocations: total.reallocations,
        bytes_allocated: total.bytes_allocated,
        live_blocks: total.live.blocks,
        live_bytes: total.live.bytes,
        peak_blocks: total.peak.blocks,
        peak_bytes: total.peak.bytes,
    }
}

/// The frames that one word stands for: the functions inlined there, then the real one.
fn frames(word: u64, symbol: Option<&Symbol>, modules: &[Module]) -> Vec<Frame> {
    let frame::Frame { address, found } = frame::Frame::of(word);
    let module = modules[..modules.partition_point(|module| module.start <= address)]
        .last()
        .filter(|module| address < module.end);
    let bare = Frame {
        address,
        module: module.map(|module| module.mapped.path.to_string()),
        build_id: module
            .map(|module| hexadecimal(&module.mapped.build_id))
            .filter(|id| !id.is_empty()),
        offset: module.map(|module| (address - module.start).wrapping_add(module.offset)),
        function: None,
        file: None,
        line: None,
        inlined: false,
        found_by: match found {
            Found::Rules => FoundBy::Rules,
            Found::FramePointer => FoundBy::FramePointer,
            Found::Interrupted => FoundBy::Interrupted,
            Found::Kernel => FoundBy::Kernel,
            Found::Python => FoundBy::Python,
        },
    };
    let Some(symbol) = symbol else {
        return vec![bare];
    };
    let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
    let named = Frame {
        module: text(&symbol.module).or(bare.module),
        build_id: text(&symbol.build_id).or(bare.build_id),
        offset: symbol.offset.or(bare.offset),
        ..bare
    };
    let last = symbol.functions.len().saturating_sub(1);
    let functions: Vec<Frame> = symbol
        .functions
        .iter()
        .enumerate()
        .map(|(index, function)| Frame {
            function: Some(function.name.to_string()),
            file: text(&function.file),
            line: function.line,
            inlined: index < last,
            ..named.clone()
        })
        .collect();
    if functions.is_empty() {
        vec![named]
    } else {
        functions
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
