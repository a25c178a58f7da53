//! What the history is told of growth: of each process that is sampled its largest sites once a minute, and at once
//! where another site has become a leak candidate.

use rustc_hash::FxHashMap;

use crate::{
    event::Pid,
    model::Model,
    report::document::{Frame, Growth, GrowthSite},
    store::history::Grown,
};

/// Milliseconds between two looks: each judges every site.
const LOOK_MS: i64 = 10_000;

/// Milliseconds between two times that a process is written.
const WRITE_MS: i64 = 60_000;

/// Sites of one process that are written.
const SITES: usize = 16;

type Key = (Pid, u64);

/// What was told last of each process.
#[derive(Default)]
pub struct Told {
    processes: FxHashMap<Key, Last>,
    /// Processes whose candidates have frames without a name.
    nameless: Vec<Pid>,
}

#[derive(Default)]
struct Last {
    looked_ms: i64,
    written_ms: i64,
    candidates: Vec<Vec<u64>>,
}

impl Told {
    /// The sites to write now of a process that runs.
    pub fn due(
        &mut self,
        model: &Model,
        key: Key,
        now_ms: i64,
        wall: &dyn Fn(u64) -> i64,
    ) -> Vec<Grown> {
        if !model.has_growth(key.0) {
            return Vec::new();
        }
        let last = self.processes.entry(key).or_default();
        let passed = |since_ms: i64, ms: i64| !(since_ms..since_ms + ms).contains(&now_ms);
        if !passed(last.looked_ms, LOOK_MS) {
            return Vec::new();
        }
        last.looked_ms = now_ms;
        let Some((growth, frames)) = model.growth(key.0) else {
            return Vec::new();
        };
        let candidates = candidates(&growth, &frames);
        if !passed(last.written_ms, WRITE_MS) && candidates == last.candidates {
            return Vec::new();
        }
        (last.written_ms, last.candidates) = (now_ms, candidates);
        let nameless = |site: &&GrowthSite| {
            let mut own = stack(site, &frames);
            site.leak_candidate && own.any(|frame| frame.function.is_none())
        };
        if growth.sites.iter().any(|site| nameless(&site)) {
            self.nameless.push(key.0);
        }
        let now_ns = model.now_ns();
        grown(&growth, &frames, now_ns, wall)
    }

    /// Processes whose candidates are to be named, since the last call.
    pub fn take_nameless(&mut self) -> Vec<Pid> {
        std::mem::take(&mut self.nameless)
    }

    /// Names were found: they are written at once.
    pub fn named(&mut self) {
        for last in self.processes.values_mut() {
            *last = Last::default();
        }
    }

    /// The process ended.
    pub fn forget(&mut self, key: Key) {
        self.processes.remove(&key);
    }
}

/// The largest sites, candidates first, for the history; `now_ns` is when their ages are of.
pub fn grown(
    growth: &Growth,
    frames: &[Frame],
    now_ns: u64,
    wall: &dyn Fn(u64) -> i64,
) -> Vec<Grown> {
    let since_ms = wall(growth.since_ns);
    let of_site = |site: &GrowthSite| Grown {
        frames: stack(site, frames).cloned().collect(),
        since_ms,
        oldest_ms: wall(now_ns.saturating_sub(site.oldest_age_ns)),
        newest_ms: wall(now_ns.saturating_sub(site.newest_age_ns)),
        site: GrowthSite {
            points: Vec::new(),
            stack: Vec::new(),
            ..site.clone()
        },
    };
    growth.sites.iter().take(SITES).map(of_site).collect()
}

fn stack<'a>(site: &'a GrowthSite, frames: &'a [Frame]) -> impl Iterator<Item = &'a Frame> {
    site.stack
        .iter()
        .filter_map(|&index| frames.get(index as usize))
}

/// The candidates, by the addresses of their stacks.
fn candidates(growth: &Growth, frames: &[Frame]) -> Vec<Vec<u64>> {
    let candidates = growth.sites.iter().filter(|site| site.leak_candidate);
    let mut stacks: Vec<Vec<u64>> = candidates
        .map(|site| stack(site, frames).map(|frame| frame.address).collect())
        .collect();
    stacks.sort_unstable();
    stacks
}
