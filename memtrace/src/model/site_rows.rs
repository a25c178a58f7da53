//! Sites and their stacks, from numbers and addresses to rows of the report.

use rustc_hash::FxHashMap;

use crate::{
    event::Symbol,
    report::document::{FaultSite, Frame, Leak, OtherSites, Process as Row, Site, SiteTotals},
};

use super::{
    fault_site::FaultCount,
    process::Module,
    site::{SiteUses, Use},
    stacks::Stacks,
};

/// What addresses of a process are named by.
pub struct Names<'a> {
    /// What symbolization found.
    pub symbols: &'a FxHashMap<u64, Symbol>,
    /// File mappings, lowest first.
    pub modules: &'a [Module],
}

impl Names<'_> {
    /// The frames that one address stands for: the functions inlined there, then the real one.
    fn frames(&self, address: u64) -> Vec<Frame> {
        frames(address, self.symbols.get(&address), self.modules)
    }
}

/// The frames of a row, each address once.
#[derive(Default)]
struct FrameTable {
    frames: Vec<Frame>,
    /// First and last index, exclusive.
    by_address: FxHashMap<u64, (u32, u32)>,
}

impl FrameTable {
    fn stack(&mut self, addresses: &[u64], names: &Names<'_>) -> Vec<u32> {
        let mut stack = Vec::with_capacity(addresses.len());
        for &address in addresses {
            let range = *self.by_address.entry(address).or_insert_with(|| {
                let first = self.frames.len() as u32;
                self.frames.extend(names.frames(address));
                (first, self.frames.len() as u32)
            });
            stack.extend(range.0..range.1);
        }
        stack
    }
}

/// Fills the sites, the leaks and the fault sites of a row.
pub fn fill(
    row: &mut Row,
    (stacks, uses): (&Stacks, &SiteUses),
    faults: &[(u64, FaultCount)],
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
            stack: (stacks.frames(one.site).iter())
                .flat_map(|address| names.frames(*address))
                .collect(),
        })
        .collect();
    let mut table = FrameTable::default();
    row.sites = uses
        .sites
        .iter()
        .map(|one| Site {
            totals: totals(&one.total),
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
        .map(|(address, count)| FaultSite {
            minor: count.minor,
            major: count.major,
            latency_ns: count.latency_ns,
            stack: table.stack(&[*address], names),
        })
        .collect();
    row.frames = table.frames;
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

/// The frames that one address stands for: the functions inlined there, then the real one.
fn frames(address: u64, symbol: Option<&Symbol>, modules: &[Module]) -> Vec<Frame> {
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
