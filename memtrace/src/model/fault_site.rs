//! Where a program takes its page faults.
//!
//! Each fault is told with the instruction that took it, and so the faults of an instruction are counted. A sample
//! of them, and all that waited for I/O, have their stack too: they say how the instruction's faults share between
//! the stacks that led there. So what is estimated sums up to what was counted, and an instruction that one stack
//! leads to is exact.
//!
//! The kernel's totals know all faults and these events some: what is missing here, whether lost, of a
//! program before exec or beyond the bound, is the difference to the totals.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::stacks::Stacks;

/// Instructions with a count of their own, and stacks.
const PLACES: usize = 1 << 16;

/// Faults of one instruction, or those of them that are in the sample for one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    minor: u64,
    minor_ns: u64,
    major: u64,
    major_ns: u64,
}

impl Count {
    fn add(&mut self, latency_ns: u64, major: bool) {
        let (count, sum) = if major {
            (&mut self.major, &mut self.major_ns)
        } else {
            (&mut self.minor, &mut self.minor_ns)
        };
        *count += 1;
        *sum = sum.saturating_add(latency_ns);
    }
}

/// An instruction, and the stack that led to it where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// As a word of [`memtrace_common::frame`].
    instruction: u64,
    /// Number of the stack.
    pub site: Option<u32>,
}

impl Place {
    /// The frames, innermost first: of the stack, or the instruction alone.
    pub fn frames(&self, stacks: &Stacks) -> Vec<u64> {
        let mut frames = self
            .site
            .map(|site| stacks.frames(site))
            .unwrap_or_default();
        if frames.is_empty() {
            frames.push(self.instruction);
        }
        frames
    }
}

/// What is known of one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultUse {
    /// Where.
    pub place: Place,
    /// Handled without I/O.
    pub minor: u64,
    /// Standard error of `minor`; `None` where it was counted and not estimated.
    pub minor_error: Option<u64>,
    /// Waited for I/O.
    pub major: u64,
    /// Sum of the latencies that were measured, in nanoseconds.
    pub latency_ns: u64,
}

/// The places of one program.
#[derive(Clone, Debug, Default)]
pub struct FaultSites {
    by_instruction: FxHashMap<u64, Count>,
    /// The sample.
    by_stack: FxHashMap<(u64, u32), Count>,
}

impl FaultSites {
    /// An instruction took a fault. `site` is that of its stack, where it is in the sample.
    pub fn record(&mut self, instruction: u64, latency_ns: u64, major: bool, site: Option<u32>) {
        let counted = bounded(&mut self.by_instruction, instruction);
        let Some(count) = counted else { return };
        count.add(latency_ns, major);
        if let Some(site) = site
            && let Some(count) = bounded(&mut self.by_stack, (instruction, site))
        {
            count.add(latency_ns, major);
        }
    }

    /// The places, most faults first.
    pub fn sorted(&self) -> Vec<FaultUse> {
        let mut stacks: FxHashMap<u64, Vec<(u32, Count)>> = FxHashMap::default();
        for (&(instruction, site), &count) in &self.by_stack {
            stacks.entry(instruction).or_default().push((site, count));
        }
        let mut places = Vec::with_capacity(self.by_instruction.len());
        for (&instruction, &all) in &self.by_instruction {
            let mut sample = stacks.remove(&instruction).unwrap_or_default();
            sample.sort_unstable_by_key(|(site, _)| *site);
            share(instruction, all, &sample, &mut places);
        }
        places.sort_unstable_by_key(|one| (Reverse(one.minor + one.major), one.place));
        places
    }

    /// Forgets all: the program was replaced.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

fn bounded<K: std::hash::Hash + Eq>(map: &mut FxHashMap<K, Count>, key: K) -> Option<&mut Count> {
    let room = map.len() < PLACES || map.contains_key(&key);
    room.then(|| map.entry(key).or_default())
}

/// Shares an instruction's faults between its stacks, as its sample does.
fn share(instruction: u64, all: Count, sample: &[(u32, Count)], places: &mut Vec<FaultUse>) {
    let sampled: u64 = sample.iter().map(|(_, count)| count.minor).sum();
    // What is left for the next stacks: so the parts sum up, whatever is rounded.
    let (mut left, mut left_ns, mut left_sampled) = (all.minor, all.minor_ns, sampled);
    let (mut major, mut major_ns) = (all.major, all.major_ns);
    for &(site, count) in sample {
        let minor = part(left, count.minor, left_sampled);
        let minor_ns = part(left_ns, count.minor, left_sampled);
        left -= minor;
        left_ns -= minor_ns;
        left_sampled -= count.minor;
        major -= count.major;
        major_ns -= count.major_ns.min(major_ns);
        places.push(FaultUse {
            place: Place {
                instruction,
                site: Some(site),
            },
            minor,
            minor_error: Some(standard_error(all.minor, sampled, count.minor)),
            major: count.major,
            latency_ns: minor_ns.saturating_add(count.major_ns),
        });
    }
    if left + major > 0 {
        places.push(FaultUse {
            place: Place {
                instruction,
                site: None,
            },
            minor: left,
            minor_error: None,
            major,
            latency_ns: left_ns.saturating_add(major_ns),
        });
    }
}

/// `all × some / whole`, rounded.
fn part(all: u64, some: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let (all, some, whole) = (u128::from(all), u128::from(some), u128::from(whole));
    ((all * some + whole / 2) / whole) as u64
}

/// Of an estimate by `found` of `sampled` draws without replacement from `all`. The share is taken as if two more
/// had been drawn, one of this stack and one of another (Laplace's rule of succession): otherwise a stack that is
/// alone in a small sample would be told to be alone for certain.
fn standard_error(all: u64, sampled: u64, found: u64) -> u64 {
    if sampled >= all {
        return 0;
    }
    let (all, sampled) = (all as f64, sampled as f64);
    let share = (found as f64 + 1.0) / (sampled + 2.0);
    let variance = share * (1.0 - share) / (sampled + 3.0) * (all - sampled) / all;
    (all * variance.sqrt()).round() as u64
}

#[cfg(test)]
mod tests {
    use memtrace_common::unwind::End;

    use super::*;

    /// Site, minor faults and their error, major faults, latency.
    type Row = (Option<u32>, u64, Option<u64>, u64, u64);

    fn rows(sites: &FaultSites) -> Vec<Row> {
        let row = |one: &FaultUse| {
            let FaultUse {
                place,
                minor,
                minor_error,
                major,
                latency_ns,
            } = *one;
            (place.site, minor, minor_error, major, latency_ns)
        };
        sites.sorted().iter().map(row).collect()
    }

    #[test]
    fn places_are_counted_up_to_the_bound() {
        let mut sites = FaultSites::default();
        for address in 0..PLACES as u64 + 5 {
            sites.record(address, 0, false, None);
        }
        sites.record(7, 30, true, None);
        sites.record(7, 12, false, None);
        let sorted = rows(&sites);
        assert_eq!(sorted.len(), PLACES);
        assert_eq!(sorted[0], (None, 2, None, 1, 42));
        sites.clear();
        assert!(sites.sorted().is_empty());
    }

    #[test]
    fn an_instructions_faults_are_shared_as_in_its_sample() {
        let mut sites = FaultSites::default();
        for fault in 0..100 {
            let site = match fault {
                0..3 => Some(1),
                3 => Some(2),
                _ => None,
            };
            sites.record(7, 10, false, site);
        }
        sites.record(7, 500, true, Some(2));
        sites.record(7, 600, true, None);
        let sorted = rows(&sites);
        // (3 + 1) / (4 + 2) = 2 / 3: 100 √(2/9 / 7 × 96 / 100) = 17.5, for both.
        assert_eq!(
            sorted,
            [
                (Some(1), 75, Some(17), 0, 750),
                (Some(2), 25, Some(17), 1, 750),
                (None, 0, None, 1, 600),
            ]
        );
    }

    #[test]
    fn where_each_fault_has_its_stack_nothing_is_estimated() {
        let mut sites = FaultSites::default();
        for site in [1, 1, 2] {
            sites.record(7, 10, false, Some(site));
        }
        assert_eq!(
            rows(&sites),
            [(Some(1), 2, Some(0), 0, 20), (Some(2), 1, Some(0), 0, 10)]
        );
    }

    #[test]
    fn estimates_scatter_as_their_errors_say() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) % bound
        };
        let (runs, truth, mut outside, mut sum) = (400, 500, 0, 0i64);
        for _ in 0..runs {
            let mut sites = FaultSites::default();
            for fault in 0..2000 {
                let stack = u32::from(fault % 4 != 0);
                let site = (random(32) == 0).then_some(stack);
                sites.record(7, 1, false, site);
            }
            let found = sites.sorted();
            let of_first = found.iter().find(|one| one.place.site == Some(0));
            let (minor, error) =
                of_first.map_or((0, 0), |one| (one.minor, one.minor_error.unwrap_or(0)));
            let off = minor as i64 - truth;
            sum += off;
            outside += u32::from(off.unsigned_abs() > 2 * error);
        }
        // Some 108 faults of 2,000 have a standard error near 100: of the mean of 400 runs, 5.
        assert!(sum.abs() / runs < 25, "{sum}");
        // 5 % of 400, within four standard deviations.
        assert!(outside < 40, "{outside}");
    }

    #[test]
    fn a_stack_whose_frames_were_lost_is_its_instruction() {
        let mut sites = Stacks::default();
        let (told, lost) = (sites.intern(7), sites.intern(8));
        sites.define(7, &[1, 2], End::Start);
        let of = |site| Place {
            instruction: 9,
            site,
        };
        assert_eq!(of(Some(told)).frames(&sites), [1, 2]);
        assert_eq!(of(Some(lost)).frames(&sites), [9]);
        assert_eq!(of(None).frames(&sites), [9]);
    }
}
