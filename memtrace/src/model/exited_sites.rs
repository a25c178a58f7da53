//! How many allocation sites the summaries of exited processes may keep, all together.
//!
//! Shards summarise at their own pace. What is kept depends on the order in which processes ended alone: so the
//! numbers are added up in that order, each once it is known. Until then a summary has all its sites, unless those
//! that were added up leave no room whatever the others have: there are to be few that wait for that.

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Limits,
    orders::{Settling, Summarised},
    process::ProcessId,
};

/// Summaries with all their sites of which it is not yet known whether they keep them: whoever lets a shard work at
/// its own pace waits for it where there are so many.
pub const MAX_UNDECIDED: usize = 64;

#[derive(Clone, Copy, Debug)]
enum Step {
    Summarised {
        id: ProcessId,
        shard: usize,
        /// It has few sites already.
        few: bool,
    },
    Forgotten {
        id: ProcessId,
    },
}

/// What summaries hold.
#[derive(Debug, Default)]
pub struct ExitedSites {
    /// Not yet added up, oldest first.
    steps: VecDeque<Step>,
    /// Summaries with all their sites among those.
    undecided: usize,
    /// To be forgotten, among those.
    going: FxHashSet<ProcessId>,
    /// Sites of those, as far as they were told.
    told: FxHashMap<ProcessId, usize>,
    /// Sites of each that was added up.
    kept: FxHashMap<ProcessId, usize>,
    /// Their sum.
    sum: usize,
    /// What of it goes with those that are to be forgotten.
    leaving: usize,
}

impl ExitedSites {
    /// A process is to be summarised: in which way, as far as that is known.
    pub fn summarise(&mut self, id: ProcessId, shard: usize, limits: &Limits) -> Settling {
        // What is not yet added up only adds to it, apart from what leaves.
        let few = self.sum - self.leaving >= limits.all_exited_sites;
        self.steps.push_back(Step::Summarised { id, shard, few });
        if few {
            return Settling::SummariseFew(id);
        }
        self.undecided += 1;
        Settling::Summarise(id)
    }

    /// A summary goes.
    pub fn forget(&mut self, id: ProcessId) {
        self.steps.push_back(Step::Forgotten { id });
        self.going.insert(id);
        self.leaving += self.kept.get(&id).unwrap_or(&0);
    }

    /// Whether something is not yet added up.
    pub fn is_behind(&self) -> bool {
        !self.steps.is_empty()
    }

    /// How many summaries have all their sites and may have to lose most of them.
    pub fn undecided(&self) -> usize {
        self.undecided
    }

    /// The shard that has to tell next, if something is not yet added up.
    pub fn awaited(&self) -> Option<usize> {
        self.steps.iter().find_map(|step| match step {
            Step::Summarised { shard, .. } => Some(*shard),
            Step::Forgotten { .. } => None,
        })
    }

    /// A summary was made.
    pub fn tell(&mut self, told: Summarised) {
        self.told.insert(told.id, told.sites);
    }

    /// Adds up what is known; the next one, with its shard, that is to be trimmed.
    pub fn next_to_trim(&mut self, limits: &Limits) -> Option<(ProcessId, usize)> {
        while let Some(&step) = self.steps.front() {
            match step {
                Step::Forgotten { id } => {
                    self.steps.pop_front();
                    self.going.remove(&id);
                    let kept = self.kept.remove(&id).unwrap_or(0);
                    self.sum -= kept;
                    self.leaving -= kept;
                }
                Step::Summarised { id, shard, few } => {
                    let sites = self.told.remove(&id)?;
                    self.steps.pop_front();
                    let room = self.sum < limits.all_exited_sites;
                    self.keep(
                        id,
                        if room {
                            sites
                        } else {
                            sites.min(limits.few_exited_sites())
                        },
                    );
                    self.undecided -= usize::from(!few);
                    if !room && !few {
                        return Some((id, shard));
                    }
                }
            }
        }
        None
    }

    fn keep(&mut self, id: ProcessId, sites: usize) {
        self.kept.insert(id, sites);
        self.sum += sites;
        if self.going.contains(&id) {
            self.leaving += sites;
        }
    }
}
