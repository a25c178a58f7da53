//! Keeps to the budget: what is left out when the daemon costs too much, for how long, and that it is said.
//!
//! The sample of growth is an estimate anyhow: it is thinned first, to an eighth, and then not taken at all. Heap probes
//! are what costs most and what others feel, and what somebody asked for: those of the process that calls its allocator
//! most are paused next, then those of the one after. What remains, faults and system calls, is what the daemon is for: where that
//! alone costs too much, it is said and borne.

use super::{config, cost::Cost};
use crate::{event::Pid, report::document::LeftOut, trace::Thinning, units};

/// Readings in a row that must be over the budget: a burst is no reason.
const OVER_TURNS: u32 = 3;
/// How long it must cost little before a step is taken back, at first.
const HOLD_NS: u64 = 60_000_000_000;
/// The same at most: it doubles each time that a step was taken back in vain.
const MAX_HOLD_NS: u64 = 3_600_000_000_000;

/// A process with heap probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noisy {
    /// Which.
    pub pid: Pid,
    /// Name of the main thread.
    pub comm: String,
}

/// What can be left out now.
#[derive(Clone, Debug, Default)]
pub struct Optional {
    /// Processes whose growth is sampled.
    pub sampled: u64,
    /// The process with heap probes that calls its allocator most.
    pub noisiest: Option<Noisy>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sample growth so far.
    Sample(Thinning),
    /// Take the heap probes from a process for now.
    Pause(Pid),
    /// Give them back.
    Resume(Pid),
}

/// What was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Sample(Thinning),
    Heap(Pid),
    /// There was nothing to leave out.
    Nothing,
}

/// Steps taken, and when the next one is due.
pub struct Budget {
    limit: config::Budget,
    over: u32,
    calm_since_ns: Option<u64>,
    hold_ns: u64,
    resumed_ns: Option<u64>,
    /// The last one is taken back first.
    steps: Vec<(Step, LeftOut)>,
}

impl Budget {
    /// Nothing is left out yet.
    pub fn new(limit: config::Budget) -> Self {
        Self {
            limit,
            over: 0,
            calm_since_ns: None,
            hold_ns: HOLD_NS,
            resumed_ns: None,
            steps: Vec::new(),
        }
    }

    /// What is left out now.
    pub fn left_out(&self) -> Vec<LeftOut> {
        self.steps.iter().map(|(_, step)| step.clone()).collect()
    }

    /// The clock says `now_ms`: where it was set back, what is left out has been so from now on.
    pub fn read_clock(&mut self, now_ms: i64) {
        for (_, step) in &mut self.steps {
            step.since_ms = step.since_ms.min(now_ms);
        }
    }

    /// Judges a reading; `now` is its moment, on the clock of events and in milliseconds since 1970.
    pub fn judge(&mut self, now: (u64, i64), cost: Cost, optional: Optional) -> Option<Action> {
        let (now_ns, now_ms) = now;
        if let Some(why) = self.excess(cost) {
            self.calm_since_ns = None;
            self.over += 1;
            if self.over < OVER_TURNS {
                return None;
            }
            self.over = 0;
            return self.step_down(now_ns, now_ms, &why, optional);
        }
        self.over = 0;
        if !self.is_calm(cost) {
            self.calm_since_ns = None;
            return None;
        }
        let since_ns = *self.calm_since_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since_ns) < self.hold_ns {
            return None;
        }
        self.calm_since_ns = None;
        let (step, _) = self.steps.pop()?;
        self.resumed_ns = Some(now_ns);
        match step {
            Step::Sample(_) => Some(Action::Sample(self.thinning())),
            Step::Heap(pid) => Some(Action::Resume(pid)),
            Step::Nothing => None,
        }
    }

    fn step_down(
        &mut self,
        now_ns: u64,
        since_ms: i64,
        why: &str,
        optional: Optional,
    ) -> Option<Action> {
        let in_vain = |resumed_ns| now_ns.saturating_sub(resumed_ns) < self.hold_ns;
        if self.resumed_ns.take().is_some_and(in_vain) {
            self.hold_ns = (self.hold_ns * 2).min(MAX_HOLD_NS);
        }
        let (step, what) = match (optional, self.thinning()) {
            (Optional { sampled: 1.., .. }, Thinning::None) => (
                Step::Sample(Thinning::Eighth),
                format!("up to seven eighths of the sample of growth: {why}"),
            ),
            (Optional { sampled: 1.., .. }, Thinning::Eighth) => (
                Step::Sample(Thinning::All),
                format!("the sample of growth: {why}"),
            ),
            (
                Optional {
                    noisiest: Some(Noisy { pid, comm }),
                    ..
                },
                _,
            ) => (
                Step::Heap(pid),
                format!("heap probes of {comm} (pid {pid}): {why}"),
            ),
            // Said once.
            _ if self.has(Step::Nothing) => return None,
            _ => (Step::Nothing, format!("nothing, though {why}")),
        };
        let step_down = LeftOut {
            since_ms,
            until_ms: None,
            what,
        };
        self.steps.push((step, step_down));
        match step {
            Step::Sample(thinning) => Some(Action::Sample(thinning)),
            Step::Heap(pid) => Some(Action::Pause(pid)),
            Step::Nothing => None,
        }
    }

    fn has(&self, step: Step) -> bool {
        self.steps.iter().any(|(taken, _)| *taken == step)
    }

    /// How much of growth is sampled by the steps that were taken.
    fn thinning(&self) -> Thinning {
        let thinning = |step: &Step| match step {
            Step::Sample(thinning) => Some(*thinning),
            _ => None,
        };
        let mut steps = self.steps.iter().rev();
        steps
            .find_map(|(step, _)| thinning(step))
            .unwrap_or_default()
    }

    fn excess(&self, cost: Cost) -> Option<String> {
        let limit = &self.limit;
        if cost.cpu_percent > limit.cpu_percent {
            let (took, allowed) = (cost.cpu_percent, limit.cpu_percent);
            return Some(format!(
                "{took:.1} % of the CPUs were taken, {allowed} % are allowed"
            ));
        }
        (cost.memory > limit.memory).then(|| {
            let (held, allowed) = (units::bytes(cost.memory), units::bytes(limit.memory));
            format!("{held} were held, {allowed} are allowed")
        })
    }

    /// Little enough for one step more.
    fn is_calm(&self, cost: Cost) -> bool {
        cost.cpu_percent < self.limit.cpu_percent / 2.0 && cost.memory < self.limit.memory / 10 * 9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Judges a reading a second from `from` on until something is to be done, and says when.
    fn until(
        budget: &mut Budget,
        from: u64,
        cpu_percent: f64,
        noisiest: Option<Noisy>,
    ) -> Option<(u64, Action)> {
        let cost = Cost {
            cpu_percent,
            memory: 100 << 20,
        };
        (from..from + 5000).find_map(|second| {
            let now = (second * SECOND, second as i64 * 1000);
            Some((second, budget.judge(now, cost, heap(noisiest.clone()))?))
        })
    }

    fn heap(noisiest: Option<Noisy>) -> Optional {
        Optional {
            sampled: 0,
            noisiest,
        }
    }

    fn noisy(pid: Pid) -> Option<Noisy> {
        Some(Noisy {
            pid,
            comm: format!("p{pid}"),
        })
    }

    #[test]
    fn probes_of_the_noisiest_are_paused_and_given_back_last_first() {
        let mut budget = Budget::new(config::Budget::default());
        assert_eq!(
            until(&mut budget, 0, 5.0, noisy(7)),
            Some((2, Action::Pause(7)))
        );
        assert_eq!(
            until(&mut budget, 3, 5.0, noisy(9)),
            Some((5, Action::Pause(9)))
        );
        let said = budget.left_out();
        assert_eq!(
            said[0].what,
            "heap probes of p7 (pid 7): 5.0 % of the CPUs were taken, 2 % are allowed"
        );
        assert_eq!(
            (said[0].since_ms, said[0].until_ms, said.len()),
            (2000, None, 2)
        );
        // Between half of the budget and all of it nothing changes.
        assert_eq!(until(&mut budget, 6, 1.5, noisy(9)), None);
        assert_eq!(
            until(&mut budget, 10_000, 0.5, None),
            Some((10_060, Action::Resume(9)))
        );
        assert_eq!(
            until(&mut budget, 10_061, 0.5, None),
            Some((10_121, Action::Resume(7)))
        );
        assert_eq!(budget.left_out(), []);
    }

    #[test]
    fn the_sample_of_growth_goes_first_and_comes_back_last() {
        let mut budget = Budget::new(config::Budget::default());
        let mut judge = |second: u64, cpu_percent, sampled| {
            let cost = Cost {
                cpu_percent,
                memory: 1,
            };
            let optional = Optional {
                sampled,
                noisiest: noisy(7),
            };
            let now = (second * SECOND, second as i64 * 1000);
            let action = budget.judge(now, cost, optional)?;
            Some((
                action,
                budget.left_out().last().map(|last| last.what.clone()),
            ))
        };
        let why = "5.0 % of the CPUs were taken, 2 % are allowed";
        let said = |what: &str| Some(format!("{what}: {why}"));
        let mut taken = Vec::new();
        for second in 0..9 {
            taken.extend(judge(second, 5.0, u64::from(second < 6)));
        }
        assert_eq!(
            taken,
            [
                (
                    Action::Sample(Thinning::Eighth),
                    said("up to seven eighths of the sample of growth")
                ),
                (Action::Sample(Thinning::All), said("the sample of growth")),
                (Action::Pause(7), said("heap probes of p7 (pid 7)")),
            ]
        );
        let back: Vec<Action> = (9..300)
            .filter_map(|second| Some(judge(second, 0.1, 0)?.0))
            .collect();
        assert_eq!(
            back,
            [
                Action::Resume(7),
                Action::Sample(Thinning::Eighth),
                Action::Sample(Thinning::None)
            ]
        );
    }

    #[test]
    fn a_step_taken_back_in_vain_is_kept_twice_as_long() {
        let mut budget = Budget::new(config::Budget::default());
        until(&mut budget, 0, 5.0, noisy(7));
        assert_eq!(
            until(&mut budget, 10, 0.5, None),
            Some((70, Action::Resume(7)))
        );
        assert_eq!(
            until(&mut budget, 75, 5.0, noisy(7)),
            Some((77, Action::Pause(7)))
        );
        assert_eq!(
            until(&mut budget, 80, 0.5, None),
            Some((200, Action::Resume(7)))
        );
    }

    #[test]
    fn a_burst_is_no_reason_and_what_cannot_be_left_out_is_said_once() {
        let mut budget = Budget::new(config::Budget::default());
        let mut judge = |second: u64, memory| {
            let now = (second * SECOND, second as i64 * 1000);
            budget.judge(
                now,
                Cost {
                    cpu_percent: 0.1,
                    memory,
                },
                Optional::default(),
            )
        };
        for second in 0..10 {
            let memory = if second % 3 == 2 { 0 } else { 300 << 20 };
            assert_eq!(judge(second, memory), None);
        }
        for second in 10..20 {
            assert_eq!(judge(second, 300 << 20), None);
        }
        let said = budget.left_out();
        assert_eq!(said.len(), 1);
        assert_eq!(
            said[0].what,
            "nothing, though 300.0 MiB were held, 256.0 MiB are allowed"
        );
    }
}
