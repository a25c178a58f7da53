//! How many allocation sites the summaries of exited processes may keep, all together.
//!
//! Shards summarise at their own pace. What is kept depends on the order in which processes ended alone: so the
//! numbers are added up in that order, each once it is known.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::{Limits, orders::Summarised, process::ProcessId};

#[derive(Clone, Copy, Debug)]
enum Step {
    Summarised { id: ProcessId, shard: usize },
    Forgotten { id: ProcessId },
}

/// What summaries hold.
#[derive(Debug, Default)]
pub struct ExitedSites {
    /// Not yet added up, oldest first.
    steps: VecDeque<Step>,
    /// Sites of those, as far as they were told.
    told: FxHashMap<ProcessId, usize>,
    /// Sites of each that was added up.
    kept: FxHashMap<ProcessId, usize>,
    /// Their sum.
    sum: usize,
}

impl ExitedSites {
    /// A process is summarised.
    pub fn summarise(&mut self, id: ProcessId, shard: usize) {
        self.steps.push_back(Step::Summarised { id, shard });
    }

    /// A summary goes.
    pub fn forget(&mut self, id: ProcessId) {
        self.steps.push_back(Step::Forgotten { id });
    }

    /// Whether something is not yet added up.
    pub fn is_behind(&self) -> bool {
        !self.steps.is_empty()
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
                    self.sum -= self.kept.remove(&id).unwrap_or(0);
                    self.steps.pop_front();
                }
                Step::Summarised { id, shard } => {
                    let sites = self.told.remove(&id)?;
                    self.steps.pop_front();
                    let room = self.sum < limits.all_exited_sites;
                    let few = limits.few_exited_sites();
                    let kept = if room { sites } else { sites.min(few) };
                    self.kept.insert(id, kept);
                    self.sum += kept;
                    if !room {
                        return Some((id, shard));
                    }
                }
            }
        }
        None
    }
}
