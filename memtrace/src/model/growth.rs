//! Growth of committed memory by the stacks that touched its pages first.
//!
//! A sample of the pages is known, each with the number of pages that it stands for. A page that is given back
//! (munmap, MADV_DONTNEED, a smaller heap, another mapping in its place) is taken off the site that touched it, so what
//! a site holds at a time is an estimate that is right on average. Its variance is that of drawing each page by itself:
//! `n (n - 1)` pages² for a page that stands for n, 512² times that where each brought a huge page; none where each page
//! is known.
//!
//! Stacks that differ within the allocator or the C library alone are one site: an allocator touches pages itself, at
//! many of its own instructions, and memset does for its caller.
//!
//! Only memory of the process's own or shared memory counts, not the pages of files: those the kernel takes back when it
//! needs them.

use std::{collections::BTreeMap, hash::BuildHasher as _, ops::Range};

use memtrace_common::frame::Frame;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::{
    pages::HUGE_PAGES,
    region::PAGE,
    trend::{Point, Series, Thresholds, Trend, judge},
};

/// Pages in the sample of one address space at most: beyond it fewer stand for more.
const MAX_PAGES: usize = 1 << 13;

/// Faults that one may stand for which brought a huge page: beyond, that counts as a single one.
const FAULTS_OF_HUGE: u64 = 32;

/// Sites of one address space at most; the pages of others are one site's, without a stack.
const MAX_SITES: usize = 128;

/// Sites that are known by their callers at most.
const MAX_STACKS: usize = 1 << 12;

/// Points of a site within the time after which it may be a candidate.
const POINTS: u64 = 36;

/// A page of the sample.
#[derive(Clone, Copy, Debug)]
struct Page {
    site: Option<u32>,
    /// Pages that it stands for.
    stands_for: u64,
    touched_ns: u64,
    /// Pages that its fault is taken to have brought, as far as they are there.
    brought: u64,
    /// They are the huge page around it, as a whole.
    huge: bool,
}

/// What is known of one site.
#[derive(Clone, Debug, Default)]
struct Site {
    pages: u64,
    samples: u64,
    /// Of all that came and went, in pages².
    variance: f64,
    low: u64,
    high: u64,
    series: Series,
}

impl Site {
    fn changed(&mut self, page: &Page) {
        self.variance += variance(page);
        self.low = self.low.min(self.pages);
        self.high = self.high.max(self.pages);
    }
}

fn variance(page: &Page) -> f64 {
    page.stands_for as f64 * page.stands_for.saturating_sub(page.brought) as f64
}

/// The sample of one address space.
#[derive(Clone, Debug, Default)]
pub struct Growth {
    /// When it was begun; `None` where none was ever taken.
    since_ns: Option<u64>,
    /// When it was stopped.
    until_ns: Option<u64>,
    pages: BTreeMap<u64, Page>,
    /// Pages that each of them stands for at least.
    least: u64,
    sites: FxHashMap<Option<u32>, Site>,
    /// The first stack of each site, by what is left of it without the allocator's frames.
    by_caller: FxHashMap<u64, u32>,
}

/// What a site holds, and how it grows.
#[derive(Clone, Debug)]
pub struct GrowthUse {
    /// Number of the site; `None` for what has no stack.
    pub site: Option<u32>,
    /// Bytes that it touched first and that were not given back.
    pub bytes: u64,
    /// Standard error of that.
    pub bytes_error: u64,
    /// Pages of the sample.
    pub samples: u64,
    /// When the first of them was touched, in nanoseconds.
    pub oldest_ns: u64,
    /// When the last of them was.
    pub newest_ns: u64,
    /// How it grows.
    pub trend: Trend,
    /// Its level over time.
    pub points: Vec<Point>,
}

/// All sites of an address space.
#[derive(Clone, Debug)]
pub struct GrowthUses {
    /// When the sample was begun, in nanoseconds.
    pub since_ns: u64,
    /// When it was stopped; `None` while it is taken.
    pub until_ns: Option<u64>,
    /// Leak candidates first, then most bytes first.
    pub sites: Vec<GrowthUse>,
}

impl GrowthUses {
    /// Numbers of the sites.
    pub fn stacks(&self) -> impl Iterator<Item = u32> + '_ {
        self.sites.iter().filter_map(|one| one.site)
    }
}

impl Growth {
    /// Whether any sample was ever taken.
    pub fn is_sampled(&self) -> bool {
        self.since_ns.is_some()
    }

    /// Pages are sampled from now on, or not any more.
    pub fn switch(&mut self, time_ns: u64, on: bool) {
        if on {
            self.since_ns.get_or_insert(time_ns);
            self.until_ns = None;
        } else if self.since_ns.is_some() {
            self.until_ns.get_or_insert(time_ns);
        }
    }

    /// What becomes of the pages of before is not told any more.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// The site of a stack with these frames; `is_plumbing` knows the code of allocators and of the C library.
    pub fn site(&mut self, stack: u32, frames: &[u64], is_plumbing: impl Fn(u64) -> bool) -> u32 {
        let address = |&word: &u64| Frame::of(word).address;
        let own = frames.iter().position(|word| !is_plumbing(address(word)));
        let Some(own) = own.filter(|&own| own > 0) else {
            return stack;
        };
        let caller = FxBuildHasher.hash_one(&frames[own..]);
        if self.by_caller.len() >= MAX_STACKS && !self.by_caller.contains_key(&caller) {
            return stack;
        }
        *self.by_caller.entry(caller).or_insert(stack)
    }

    /// A page was touched first, by one of `faults` faults; `may_be_huge`: it may have brought the huge page around it.
    pub fn touch(
        &mut self,
        time_ns: u64,
        page: u64,
        site: Option<u32>,
        faults: u64,
        may_be_huge: bool,
    ) {
        // Touched again: it was given back unseen.
        self.take_off(page);
        // Where few faults are told, the first one that is known of a huge page need not be the first.
        let told = faults <= FAULTS_OF_HUGE;
        let huge = may_be_huge && self.is_first_of_huge(page) && told;
        let brought = if huge { HUGE_PAGES } else { 1 };
        let touched = Page {
            site,
            stands_for: faults * brought,
            touched_ns: time_ns,
            brought,
            huge,
        };
        self.since_ns.get_or_insert(time_ns);
        self.put(page, time_ns, touched);
    }

    /// Whether no other page is known within the huge page around this one. A second fault there proves that the first
    /// brought a single page.
    fn is_first_of_huge(&mut self, page: u64) -> bool {
        let first = page / HUGE_PAGES * HUGE_PAGES;
        let range = first..first + HUGE_PAGES;
        let is_first = self.pages.range(range.clone()).next().is_none();
        self.none_is_huge(range, u64::MAX);
        is_first
    }

    /// No page touched before `until_ns` in this range brought a huge page.
    pub fn none_is_huge(&mut self, pages: Range<u64>, until_ns: u64) {
        if self.pages.is_empty() || pages.is_empty() {
            return;
        }
        let range = self.pages.range(pages);
        let wrong: Vec<(u64, Page)> = range
            .filter(|(_, known)| known.huge && known.touched_ns < until_ns)
            .map(|(&page, &known)| (page, known))
            .collect();
        for (page, known) in wrong {
            self.pages.remove(&page);
            if let Some(site) = self.sites.get_mut(&known.site) {
                site.pages = site.pages.saturating_sub(known.stands_for);
                site.samples = site.samples.saturating_sub(1);
                // It was wrong from the start.
                site.variance = (site.variance - variance(&known)).max(0.0);
            }
            let single = Page {
                stands_for: (known.stands_for / known.brought).max(1),
                brought: 1,
                huge: false,
                ..known
            };
            self.put(page, known.touched_ns, single);
        }
    }

    /// Takes a page in, which may have to stand for more than it did.
    fn put(&mut self, page: u64, time_ns: u64, touched: Page) {
        let Some(stands_for) = self.thinned(page ^ time_ns, touched.stands_for) else {
            return;
        };
        let room = self.sites.contains_key(&touched.site) || self.has_room();
        let page_of = Page {
            site: touched.site.filter(|_| room),
            stands_for,
            ..touched
        };
        self.pages.insert(page, page_of);
        let known = self.sites.entry(page_of.site).or_insert_with(|| Site {
            series: Series::begin(time_ns),
            ..Site::default()
        });
        known.pages += stands_for;
        known.samples += 1;
        known.changed(&page_of);
        if self.pages.len() > MAX_PAGES {
            self.thin();
        }
    }

    /// Pages were given back.
    pub fn remove(&mut self, pages: Range<u64>) {
        if self.pages.is_empty() || pages.is_empty() {
            return;
        }
        let range = self.pages.range(pages.clone());
        let gone: Vec<u64> = range.map(|(&page, _)| page).collect();
        for page in gone {
            self.take_off(page);
        }
        let (first, last) = (pages.start / HUGE_PAGES, (pages.end - 1) / HUGE_PAGES);
        self.cut(first, &pages);
        if last != first {
            self.cut(last, &pages);
        }
    }

    /// A part of a huge page was given back: the rest are single pages.
    fn cut(&mut self, at: u64, pages: &Range<u64>) {
        let start = at * HUGE_PAGES;
        let whole = start..start.saturating_add(HUGE_PAGES);
        let gone = pages.end.min(whole.end) - pages.start.max(whole.start);
        for (_, known) in self.pages.range_mut(whole).filter(|(_, known)| known.huge) {
            let faults = known.stands_for / known.brought;
            known.huge = false;
            known.brought = known.brought.saturating_sub(gone).max(1);
            let left = faults * known.brought;
            if let Some(site) = self.sites.get_mut(&known.site) {
                site.pages = site
                    .pages
                    .saturating_sub(known.stands_for.saturating_sub(left));
                site.low = site.low.min(site.pages);
            }
            known.stands_for = left;
        }
    }

    /// Pages moved to another address.
    pub fn move_range(&mut self, from: Range<u64>, to: u64) {
        if self.pages.is_empty() || from.is_empty() {
            return;
        }
        let moved: Vec<(u64, Page)> = self
            .pages
            .range(from.clone())
            .map(|(&page, &known)| (page, known))
            .collect();
        for (page, _) in &moved {
            self.pages.remove(page);
        }
        for (page, known) in moved {
            self.pages.insert(page - from.start + to, known);
        }
    }

    /// Time passes: the level of each site is noted now and then.
    pub fn tick(&mut self, time_ns: u64, thresholds: &Thresholds) {
        for site in self.sites.values_mut() {
            if time_ns
                < site
                    .series
                    .last_ns()
                    .saturating_add(thresholds.after_ns / POINTS)
            {
                continue;
            }
            site.series.push(Point {
                time_ns,
                bytes: site.pages * PAGE,
                low: site.low * PAGE,
                high: site.high * PAGE,
                variance: site.variance * (PAGE * PAGE) as f64,
            });
            (site.low, site.high) = (site.pages, site.pages);
        }
    }

    /// The sites, and how they grow; `None` where no sample was taken.
    pub fn uses(&self, thresholds: &Thresholds) -> Option<GrowthUses> {
        let mut live: FxHashMap<Option<u32>, (f64, u64, u64)> = FxHashMap::default();
        for page in self.pages.values() {
            let (sum, oldest, newest) = live.entry(page.site).or_insert((0.0, u64::MAX, 0));
            *sum += variance(page);
            *oldest = page.touched_ns.min(*oldest);
            *newest = page.touched_ns.max(*newest);
        }
        let of_site = |(&site, known): (&Option<u32>, &Site)| {
            let &(variance, oldest_ns, newest_ns) = live.get(&site)?;
            let mut trend = judge(known.series.points(), thresholds);
            // Many stacks together are none to name.
            trend.is_candidate &= site.is_some();
            Some(GrowthUse {
                site,
                bytes: known.pages * PAGE,
                bytes_error: (variance.sqrt() * PAGE as f64) as u64,
                samples: known.samples,
                oldest_ns,
                newest_ns,
                trend,
                points: known.series.points().to_vec(),
            })
        };
        let mut sites: Vec<GrowthUse> = self.sites.iter().filter_map(of_site).collect();
        sites.sort_by_key(|one| std::cmp::Reverse((one.trend.is_candidate, one.bytes, one.site)));
        Some(GrowthUses {
            since_ns: self.since_ns?,
            until_ns: self.until_ns,
            sites,
        })
    }

    /// Room for one site more: one that holds nothing may go for it.
    fn has_room(&mut self) -> bool {
        if self.sites.len() >= MAX_SITES {
            let empty = self.sites.iter().find(|(_, site)| site.samples == 0);
            let empty = empty.map(|(&site, _)| site);
            return empty.is_some_and(|site| self.sites.remove(&site).is_some());
        }
        true
    }

    fn take_off(&mut self, page: u64) {
        let Some(known) = self.pages.remove(&page) else {
            return;
        };
        if let Some(site) = self.sites.get_mut(&known.site) {
            site.pages = site.pages.saturating_sub(known.stands_for);
            site.samples = site.samples.saturating_sub(1);
            site.changed(&known);
            // A site that never lasted until its level was noted is none that grows.
            if site.samples == 0 && site.series.points().len() <= 1 {
                self.sites.remove(&known.site);
            }
        }
    }

    /// What a page that stands for so many is to stand for, if it stays at all.
    fn thinned(&self, seed: u64, stands_for: u64) -> Option<u64> {
        if stands_for >= self.least {
            return Some(stands_for);
        }
        let drawn = mixed(seed ^ mixed(self.least)) % self.least;
        (drawn < stands_for).then_some(self.least)
    }

    /// Lets each page stand for twice as many at least.
    fn thin(&mut self) {
        self.least = self.least.max(1).saturating_mul(2);
        let least = self.least;
        for (page, known) in std::mem::take(&mut self.pages) {
            let before = known.stands_for;
            let now = self.thinned(page, before);
            if let Some(site) = self.sites.get_mut(&known.site) {
                // That of drawing it with the probability before / least.
                site.variance += before as f64 * least.saturating_sub(before) as f64;
                site.pages = (site.pages + now.unwrap_or(0)).saturating_sub(before);
                site.samples -= u64::from(now.is_none());
            }
            if let Some(stands_for) = now {
                self.pages.insert(
                    page,
                    Page {
                        stands_for,
                        ..known
                    },
                );
            }
        }
        for site in self.sites.values_mut() {
            (site.low, site.high) = (site.low.min(site.pages), site.high.max(site.pages));
        }
    }
}

/// splitmix64's finalizer: pages that follow one another are drawn as if at random.
fn mixed(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
#[path = "growth_tests.rs"]
mod tests;
