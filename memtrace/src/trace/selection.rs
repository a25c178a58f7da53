//! Which processes of an area have heap probes, by which rule, and who has them together.
//!
//! A process that is chosen gets events of its own, which what it forks inherits: they are a watch. An exec ends it
//! for the process unless the rule holds whatever it executes.

use std::collections::{HashMap, HashSet};

use super::selector::Selector;
use crate::{event::Pid, probe::heap::Watch, seed};

/// A selector, and the user that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As it was given.
    pub selector: Selector,
    /// Of [`Selector::User`].
    pub uid: Option<u32>,
}

impl Rule {
    fn matches(&self, process: &seed::Facts) -> bool {
        self.selector.matches(self.uid, process)
    }
}

/// Processes that were given probes together.
#[derive(Debug)]
struct Held {
    rule: Rule,
    /// Whose events they are; what the others have are copies.
    owner: Pid,
    /// Forks since then inherited them; `None`: forks do not.
    inherits_ns: Option<u64>,
    members: HashSet<Pid>,
}

/// Rules, and whom they chose.
#[derive(Debug, Default)]
pub struct Selection {
    rules: Vec<Rule>,
    /// Turned off one by one.
    exempt: HashSet<Pid>,
    /// To be turned on again when there is room for what they cost.
    paused: HashSet<Pid>,
    watches: HashMap<Watch, Held>,
    of: HashMap<Pid, Watch>,
    last: u32,
}

/// Who loses probes with a watch, and who is to have others.
pub struct Released {
    /// What is given up.
    pub watch: Watch,
    /// Who had it.
    pub members: Vec<Pid>,
}

impl Selection {
    /// Whether nothing can be chosen.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a process has probes.
    pub fn has(&self, pid: Pid) -> bool {
        self.of.contains_key(&pid)
    }

    /// Adds a rule. A process that was turned off by itself may be turned on again by itself.
    pub fn add(&mut self, rule: Rule) {
        if let Selector::Pid(pid) = rule.selector {
            self.exempt.remove(&pid);
        }
        if self.rules.contains(&rule) {
            return;
        }
        // What a process has by a rule for any program stays through its execs: those go first.
        match rule.selector.outlives_exec() {
            true => self.rules.insert(0, rule),
            false => self.rules.push(rule),
        }
    }

    /// The rule that chooses a process, as it is now.
    pub fn rule_for(&self, process: &seed::Facts) -> Option<&Rule> {
        if self.exempt.contains(&process.pid) || self.paused.contains(&process.pid) {
            return None;
        }
        self.rules.iter().find(|rule| rule.matches(process))
    }

    /// Takes a rule away: the watches that it made are to be released. `None` where there is no such rule.
    pub fn remove(&mut self, selector: &Selector) -> Option<Vec<Released>> {
        let at = self
            .rules
            .iter()
            .position(|rule| rule.selector == *selector)?;
        let rule = self.rules.remove(at);
        let of_rule = self.watches.iter().filter(|(_, held)| held.rule == rule);
        let watches: Vec<Watch> = of_rule.map(|(&watch, _)| watch).collect();
        Some(
            watches
                .into_iter()
                .filter_map(|one| self.release(one))
                .collect(),
        )
    }

    /// Turns a process off that a rule for others chose.
    pub fn exempt(&mut self, pid: Pid) {
        self.exempt.insert(pid);
    }

    /// Turns a process off for now, or lets rules choose it again.
    pub fn pause(&mut self, pid: Pid, paused: bool) {
        match paused {
            true => self.paused.insert(pid),
            false => self.paused.remove(&pid),
        };
    }

    /// Whether it is turned off for now.
    pub fn is_paused(&self, pid: Pid) -> bool {
        self.paused.contains(&pid)
    }

    /// A process is given probes of its own.
    pub fn begin(&mut self, pid: Pid, rule: Rule) -> Watch {
        self.last += 1;
        let watch = Watch(self.last);
        let held = Held {
            rule,
            owner: pid,
            inherits_ns: None,
            members: HashSet::from([pid]),
        };
        self.watches.insert(watch, held);
        self.of.insert(pid, watch);
        watch
    }

    /// From now on what the process forks inherits its probes.
    pub fn inherits(&mut self, watch: Watch, now_ns: u64) {
        if let Some(held) = self.watches.get_mut(&watch) {
            held.inherits_ns = Some(now_ns);
        }
    }

    /// A child was forked. Whether it has its parent's probes.
    pub fn forked(&mut self, parent: Pid, child: Pid, time_ns: u64) -> bool {
        let Some(&watch) = self.of.get(&parent) else {
            return false;
        };
        let Some(held) = self.watches.get_mut(&watch) else {
            return false;
        };
        let inherited = held.inherits_ns.is_some_and(|since| time_ns >= since);
        if inherited {
            held.members.insert(child);
            self.of.insert(child, watch);
        }
        inherited
    }

    /// Whether an exec would end a process's probes that it would keep by a rule there is now.
    pub fn is_outdone(&self, process: &seed::Facts) -> bool {
        let held = self
            .of
            .get(&process.pid)
            .and_then(|watch| self.watches.get(watch));
        let outlives = |rule: &Rule| rule.selector.outlives_exec();
        held.is_some_and(|held| !outlives(&held.rule))
            && self.rule_for(process).is_some_and(outlives)
    }

    /// Whether a process that just executed a program keeps its probes.
    pub fn keeps(&self, process: &seed::Facts) -> bool {
        let held = self
            .of
            .get(&process.pid)
            .and_then(|watch| self.watches.get(watch));
        held.is_some_and(|held| held.rule.selector.outlives_exec() && held.rule.matches(process))
    }

    /// Whether a process lost its probes by executing a program: copies of events that do not outlive an exec go at
    /// once (perf_event_remove_on_exec(), kernel/events/core.c), their owner's stay open.
    pub fn shed(&mut self, pid: Pid) -> bool {
        let held = self
            .of
            .get(&pid)
            .and_then(|watch| self.watches.get_mut(watch));
        let Some(held) = held.filter(|held| held.owner != pid) else {
            return false;
        };
        let gone = !held.rule.selector.outlives_exec();
        if gone {
            held.members.remove(&pid);
            self.of.remove(&pid);
        }
        gone
    }

    /// A process is to have no probes of the watch it is in. The others in it need new ones, with the same rule,
    /// before the watch is released: its events are of all.
    pub fn leave(&mut self, pid: Pid) -> Option<(Released, Rule)> {
        let watch = *self.of.get(&pid)?;
        let rule = self.watches.get(&watch)?.rule.clone();
        Some((self.release(watch)?, rule))
    }

    /// A process ended: the watch that was its alone is to be released.
    pub fn ended(&mut self, pid: Pid) -> Option<Watch> {
        self.exempt.remove(&pid);
        self.paused.remove(&pid);
        self.rules
            .retain(|rule| rule.selector != Selector::Pid(pid));
        let watch = self.of.remove(&pid)?;
        let held = self.watches.get_mut(&watch)?;
        held.members.remove(&pid);
        if !held.members.is_empty() {
            return None;
        }
        self.watches.remove(&watch);
        Some(watch)
    }

    fn release(&mut self, watch: Watch) -> Option<Released> {
        let held = self.watches.remove(&watch)?;
        let members: Vec<Pid> = held.members.into_iter().collect();
        for pid in &members {
            self.of.remove(pid);
        }
        Some(Released { watch, members })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(selector: Selector) -> Rule {
        Rule {
            selector,
            uid: None,
        }
    }

    fn process(pid: Pid, comm: &str) -> seed::Facts {
        seed::Facts {
            pid,
            comm: comm.into(),
            exe: String::new(),
            uid: 0,
            cgroups: vec!["/a".into()],
        }
    }

    #[test]
    fn children_share_a_watch_until_the_last_one_ends() {
        let mut selection = Selection::default();
        let command = rule(Selector::Command("a".into()));
        selection.add(command.clone());
        let watch = selection.begin(1, command);
        assert!(!selection.forked(1, 2, 10), "nothing is inherited yet");
        selection.inherits(watch, 20);
        assert!(!selection.forked(1, 2, 10), "forked before");
        assert!(selection.forked(1, 2, 30) && selection.forked(2, 3, 40));
        assert_eq!(selection.ended(1), None);
        assert_eq!(selection.ended(3), None);
        assert_eq!(selection.ended(2), Some(watch));
        assert!(!selection.has(2) && !selection.is_empty());
    }

    #[test]
    fn a_child_that_executes_a_program_leaves_its_parents_probes() {
        let mut selection = Selection::default();
        let command = rule(Selector::Command("a".into()));
        selection.add(command.clone());
        let watch = selection.begin(1, command);
        selection.inherits(watch, 0);
        assert!(selection.forked(1, 2, 1));
        assert!(!selection.shed(1), "its own events stay open");
        assert!(selection.shed(2) && !selection.has(2));
        assert_eq!(selection.ended(1), Some(watch));
    }

    #[test]
    fn an_exec_keeps_the_probes_where_the_rule_holds_for_any_program() {
        let mut selection = Selection::default();
        for (pid, selector) in [
            (1, Selector::Cgroup("/a".into())),
            (2, Selector::Command("x".into())),
        ] {
            selection.add(rule(selector.clone()));
            selection.begin(pid, rule(selector));
        }
        assert!(selection.keeps(&process(1, "y")));
        assert!(!selection.keeps(&process(2, "x")), "its events are gone");
        assert!(!selection.keeps(&process(3, "x")), "it had none");
    }

    #[test]
    fn a_process_that_is_turned_off_stays_off_until_it_is_turned_on() {
        let mut selection = Selection::default();
        selection.add(rule(Selector::Command("x".into())));
        assert!(selection.rule_for(&process(1, "x")).is_some());
        selection.exempt(1);
        assert!(selection.rule_for(&process(1, "x")).is_none());
        assert!(selection.rule_for(&process(2, "x")).is_some());
        selection.add(rule(Selector::Pid(1)));
        assert!(selection.rule_for(&process(1, "x")).is_some());
    }

    #[test]
    fn a_rule_goes_with_its_watches_and_a_pids_with_the_process() {
        let mut selection = Selection::default();
        let command = rule(Selector::Command("x".into()));
        selection.add(command.clone());
        selection.add(rule(Selector::Pid(9)));
        let watch = selection.begin(1, command.clone());
        let released = selection.remove(&command.selector).unwrap();
        assert_eq!(released.len(), 1);
        assert_eq!(
            (released[0].watch, &released[0].members[..]),
            (watch, &[1][..])
        );
        assert!(selection.remove(&command.selector).is_none());
        selection.ended(9);
        assert!(selection.is_empty());
    }
}
