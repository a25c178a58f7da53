//! What each allocation site of a heap has handed out, holds, and held when the heap was at its peak.
//!
//! A peak is known to be one only when it is over, and copying what every site holds at each new one
//! would cost the number of sites per allocation. So peaks are numbered, and each site notes the number
//! of the peak that its `at_peak` speaks of. A site that has not changed since the latest peak holds now
//! what it held then. The first change after a peak is thus the moment to set `at_peak`: to what the
//! site holds just before it. Changes up to the next peak leave it alone, and one that finds an older
//! number begins anew. That is one comparison per change, however many sites and peaks there are.
//!
//! A heap that fork copied begins with empty tallies: they tell the difference to what was inherited,
//! and who reads them adds what the blocks themselves say. So amounts are differences, and wrap.

use roaring::RoaringBitmap;
use rustc_hash::FxHashMap;

use super::stacks::make_room;

/// Sites with a tally of their own in one heap; the rest share one.
const SITES: usize = 1 << 18;

/// Bytes and blocks, or a difference of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes asked for.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
}

impl Amount {
    /// One block.
    pub fn block(bytes: u64) -> Self {
        Self { bytes, blocks: 1 }
    }

    /// The sum.
    pub fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.wrapping_add(other.bytes),
            blocks: self.blocks.wrapping_add(other.blocks),
        }
    }

    /// The difference.
    pub fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.wrapping_sub(other.bytes),
            blocks: self.blocks.wrapping_sub(other.blocks),
        }
    }
}

/// How a block came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// A call that handed out a new block.
    Allocated,
    /// A reallocation.
    Reallocated,
}

/// One site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls that produced a block.
    pub allocations: u64,
    /// Reallocations.
    pub reallocations: u64,
    /// Bytes asked for by both.
    pub bytes_allocated: u64,
    live: Amount,
    at_peak: Amount,
    /// The peak that `at_peak` speaks of.
    peak: u64,
}

impl Tally {
    fn before_change(&mut self, peak: u64) {
        if self.peak != peak {
            self.at_peak = self.live;
            self.peak = peak;
        }
    }

    /// What the site held at the peak numbered `peak`, given that it holds `live` now.
    fn at_peak(&self, peak: u64, live: Amount) -> Amount {
        if self.peak == peak {
            live.plus(self.at_peak.minus(self.live))
        } else {
            live
        }
    }
}

/// The sites of one heap.
#[derive(Debug, Default)]
pub struct Tallies {
    /// Index into `own`, by site.
    by_site: FxHashMap<u32, u32>,
    own: Vec<Tally>,
    /// Sites that came when there was no room, in sum.
    others: Tally,
    dropped: RoaringBitmap,
    /// Number of the latest peak; 0 is the beginning.
    peak: u64,
}

impl Tallies {
    /// A block was made at `site`; `amount` is what it counts for.
    pub fn add(&mut self, site: u32, amount: Amount, made: Made) {
        let tally = self.changing(site);
        match made {
            Made::Allocated => tally.allocations += amount.blocks,
            Made::Reallocated => tally.reallocations += amount.blocks,
        }
        tally.bytes_allocated = tally.bytes_allocated.saturating_add(amount.bytes);
        tally.live = tally.live.plus(amount);
    }

    /// A block of `site` is gone.
    pub fn remove(&mut self, site: u32, amount: Amount) {
        let tally = self.changing(site);
        tally.live = tally.live.minus(amount);
    }

    /// The heap has never held as much as now.
    pub fn new_peak(&mut self) {
        self.peak += 1;
    }

    /// Every site with a tally.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Tally)> {
        let own = |(&site, &at): (&u32, &u32)| (site, &self.own[at as usize]);
        self.by_site.iter().map(own)
    }

    /// Whether the site has no tally of its own for want of room.
    pub fn is_dropped(&self, site: u32) -> bool {
        self.dropped.contains(site)
    }

    /// The sites that found no room: how many, and what they did.
    pub fn others(&self) -> (u64, &Tally) {
        (self.dropped.len(), &self.others)
    }

    /// What a site held at the heap's peak, given that it holds `live` now.
    pub fn at_peak(&self, tally: &Tally, live: Amount) -> Amount {
        tally.at_peak(self.peak, live)
    }

    fn changing(&mut self, site: u32) -> &mut Tally {
        let next = self.own.len();
        let tally = match self.by_site.get(&site) {
            Some(&at) => &mut self.own[at as usize],
            None if next < SITES => {
                self.by_site.insert(site, next as u32);
                make_room(&mut self.own);
                self.own.push(Tally::default());
                &mut self.own[next]
            }
            None => {
                self.dropped.insert(site);
                &mut self.others
            }
        };
        tally.before_change(self.peak);
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn sites_beyond_the_bound_share_a_tally_and_totals_stay_exact() {
        let mut tallies = Tallies::default();
        let sites = SITES as u32 + 10;
        for site in 0..sites {
            tallies.add(site, Amount::block(8), Made::Allocated);
            tallies.new_peak();
        }
        tallies.remove(sites - 1, Amount::block(8));
        let (count, others) = tallies.others();
        assert_eq!((count, others.allocations), (10, 10));
        assert!(tallies.is_dropped(sites - 1) && !tallies.is_dropped(0));
        let left = Amount {
            bytes: 72,
            blocks: 9,
        };
        assert_eq!(tallies.at_peak(others, left).bytes, 80);
        assert_eq!(tallies.iter().count(), SITES);
    }

    /// Random allocations and frees, against a copy of all sites taken at each new peak.
    #[test]
    fn the_peak_is_what_a_copy_at_that_moment_says() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        for round in 0..200 {
            let mut tallies = Tallies::default();
            let mut live: HashMap<u32, Amount> = HashMap::new();
            let mut blocks: Vec<(u32, u64)> = Vec::new();
            let (mut now, mut most) = (0, 0);
            let mut copy = live.clone();
            for _ in 0..random(400) {
                if random(5) < 3 || blocks.is_empty() {
                    let (site, bytes) = (random(12) as u32, random(100));
                    tallies.add(site, Amount::block(bytes), Made::Allocated);
                    let held = live.entry(site).or_default();
                    *held = held.plus(Amount::block(bytes));
                    blocks.push((site, bytes));
                    now += bytes;
                    if now > most {
                        most = now;
                        copy.clone_from(&live);
                        tallies.new_peak();
                    }
                } else {
                    let at = random(blocks.len() as u64) as usize;
                    let (site, bytes) = blocks.swap_remove(at);
                    tallies.remove(site, Amount::block(bytes));
                    let held = live.entry(site).or_default();
                    *held = held.minus(Amount::block(bytes));
                    now -= bytes;
                }
            }
            let mut sum = 0;
            for (site, tally) in tallies.iter() {
                let peak = tallies.at_peak(tally, live[&site]);
                let expected = copy.get(&site).copied().unwrap_or_default();
                assert_eq!(peak, expected, "round {round}, site {site}");
                sum += peak.bytes;
            }
            assert_eq!(sum, most, "round {round}");
        }
    }
}
