//! Heap probes on the processes of an area that are chosen, and on no other.

use std::path::PathBuf;

use nix::unistd::User;

use super::{
    Session, descriptors,
    followed::{MAX_FOLLOWED_THREADS, each_thread},
    selection::{Released, Rule},
    selector::Selector,
};
use crate::{
    event::Pid,
    probe::{Error, heap::Watch, libraries, perf::Scope},
    seed,
};

/// How often a process that was just met is looked at again: it may change its user, or be moved to a cgroup, which
/// nothing tells.
const YOUNG_TURNS: u32 = 5;

/// Why a choice was not made, or not taken back.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// No such process in the area.
    #[error("no process with pid {pid} is traced")]
    NoProcess {
        /// As it was given.
        pid: Pid,
    },
    /// No such user.
    #[error("there is no user {name}")]
    NoUser {
        /// As it was given.
        name: String,
    },
    /// Nothing to take back.
    #[error("nothing has heap probes by {selector}")]
    NotSelected {
        /// As it was given.
        selector: Selector,
    },
    /// The probes.
    #[error(transparent)]
    Probe(#[from] Error),
}

impl Session {
    /// Probes the heap of the processes that a selector names, and of those that will come. How many there are now.
    pub fn heap_on(&mut self, selector: Selector) -> Result<usize, SelectError> {
        let selector = selector.resolved();
        let uid = match &selector {
            Selector::Pid(pid) if !self.traced.contains(pid) => {
                return Err(SelectError::NoProcess { pid: *pid });
            }
            Selector::User(name) => Some(uid(name)?),
            _ => None,
        };
        if self.selection.is_empty() {
            self.tell_memory_calls()?;
            // Of an execve that failed nothing was told meanwhile.
            self.executing.clear();
            self.prepare_usual()?;
            self.object.set_awaited(true)?;
        }
        let rule = Rule { selector, uid };
        self.selection.add(rule.clone());
        let mut chosen = 0;
        for pid in self.traced.iter().copied().collect::<Vec<Pid>>() {
            let Some(process) = seed::facts(pid) else {
                continue;
            };
            if rule.selector.matches(uid, &process) {
                if self.selection.is_outdone(&process) {
                    self.take_from(pid, None);
                }
                self.choose(pid, true);
                // One that is paused has none now.
                chosen += usize::from(self.selection.has(pid));
            }
        }
        Ok(chosen)
    }

    /// Takes back what [`Session::heap_on`] did; or turns off one process that was chosen otherwise. How many lost
    /// their probes.
    pub fn heap_off(&mut self, selector: Selector) -> Result<usize, SelectError> {
        let selector = selector.resolved();
        let removed = self.selection.remove(&selector);
        let known = removed.is_some();
        let mut had = Vec::new();
        for released in removed.unwrap_or_default() {
            had.extend_from_slice(&released.members);
            for &pid in &released.members {
                self.choose(pid, true);
            }
            self.release(&released);
        }
        if let Selector::Pid(pid) = selector
            && self.selection.has(pid)
        {
            self.selection.exempt(pid);
            self.take_from(pid, Some(pid));
            had.push(pid);
        }
        had.retain(|&pid| !self.selection.has(pid));
        if self.selection.is_empty() {
            self.object.set_awaited(false)?;
        }
        if had.is_empty() && !known {
            return Err(SelectError::NotSelected { selector });
        }
        Ok(had.len())
    }

    /// Takes the probes from a process for now.
    pub fn heap_pause(&mut self, pid: Pid) {
        self.selection.pause(pid, true);
        self.take_from(pid, Some(pid));
    }

    /// Gives them back, if a rule chooses it still.
    pub fn heap_resume(&mut self, pid: Pid) {
        self.selection.pause(pid, false);
        self.choose(pid, true);
    }

    /// Nanoseconds that the programs in the kernel took since they are measured.
    pub fn spent_ns(&self) -> u64 {
        self.object.spent_ns()
    }

    /// The allocators that most programs use are probed before anybody is, so that who is chosen at its exec has its
    /// probes at once.
    fn prepare_usual(&mut self) -> Result<(), Error> {
        // One for each event and chosen process.
        descriptors::allow();
        let files: Vec<PathBuf> = libraries::usual();
        self.heap.prepare(&mut self.object, &files)?;
        self.stream.prepare(&files);
        Ok(())
    }

    /// A process was forked: it has its parent's probes, or is chosen by itself.
    pub(super) fn choose_forked(&mut self, parent: Pid, child: Pid, time_ns: u64) {
        if self.selection.is_empty() {
            return;
        }
        if self.selection.forked(parent, child, time_ns) {
            if let Some(probes) = self.heap.probes() {
                probes.forked(parent, child);
            }
        } else {
            self.choose(child, true);
        }
    }

    /// A process executed another program: what chose it before may not hold any more.
    pub(super) fn choose_executed(&mut self, pid: Pid) {
        if self.selection.is_empty() {
            return;
        }
        let process = seed::facts(pid);
        if process.is_some_and(|process| self.selection.keeps(&process)) {
            return;
        }
        if self.selection.shed(pid) {
            self.forget_heap(pid);
        } else {
            self.take_from(pid, Some(pid));
        }
        self.choose(pid, false);
    }

    /// Gives a process probes if a rule names it and it has none. `in_use`: its allocator may have handed out blocks
    /// already.
    pub(super) fn choose(&mut self, pid: Pid, in_use: bool) {
        if self.selection.is_empty() || self.selection.has(pid) {
            return;
        }
        let rule = seed::facts(pid).and_then(|process| self.selection.rule_for(&process).cloned());
        match rule {
            Some(rule) => self.watch(pid, rule, in_use),
            None => {
                self.young.insert(pid, YOUNG_TURNS);
            }
        }
    }

    /// Once a second: those that were not chosen when they were met.
    pub(super) fn choose_young(&mut self) {
        for (pid, turns) in std::mem::take(&mut self.young) {
            if !self.traced.contains(&pid) {
                continue;
            }
            self.choose(pid, true);
            if let Some(left) = self.young.get_mut(&pid) {
                *left = turns - 1;
            }
        }
        self.young.retain(|_, turns| *turns > 0);
    }

    /// A process ended, and its probes with it.
    pub(super) fn choose_ended(&mut self, pid: Pid) {
        self.young.remove(&pid);
        let last = self.selection.ended(pid);
        if let (Some(watch), Some(probes)) = (last, self.heap.probes()) {
            probes.release(watch);
        }
    }

    fn watch(&mut self, pid: Pid, rule: Rule, in_use: bool) {
        let outlives_exec = rule.selector.outlives_exec();
        let watch = self.selection.begin(pid, rule);
        if let Err(error) = self.open(pid, watch, outlives_exec) {
            self.heap.failures.push(error.to_string());
        }
        if in_use {
            let smaps = seed::smaps(pid);
            self.stream.take_stacks(pid, &[]);
            if let Err(error) = self.seed_heap(pid, &smaps, true) {
                self.heap.failures.push(error.to_string());
            }
            for event in smaps {
                self.stream.push(event);
            }
        } else {
            self.stream.take_stacks(pid, self.modules.of(pid));
            self.consume(self.unavailable(pid, seed::now_ns()));
        }
        let statuses = self.heap.statuses();
        self.tell(&statuses);
    }

    /// Opens the probes for each thread, so that what each forks inherits them; of a process with very many threads
    /// for one, which serves its whole address space.
    fn open(&mut self, pid: Pid, watch: Watch, outlives_exec: bool) -> Result<(), Error> {
        let Some(probes) = self.heap.probes() else {
            return Ok(());
        };
        if seed::threads(pid).len() > MAX_FOLLOWED_THREADS {
            let scope = Scope::Thread {
                tid: pid,
                inherit: false,
            };
            return probes.follow(pid, scope, watch);
        }
        each_thread(pid, |tid| {
            let scope = if outlives_exec {
                Scope::Thread { tid, inherit: true }
            } else {
                Scope::Program { tid }
            };
            probes.follow(pid, scope, watch)
        })?;
        self.selection.inherits(watch, seed::now_ns());
        Ok(())
    }

    /// Takes the probes from all that share them with a process, and gives others to all but one before.
    fn take_from(&mut self, pid: Pid, except: Option<Pid>) {
        let Some((released, rule)) = self.selection.leave(pid) else {
            return;
        };
        for &other in released
            .members
            .iter()
            .filter(|&&other| Some(other) != except)
        {
            let process = seed::facts(other);
            let rule_now = process.and_then(|process| self.selection.rule_for(&process).cloned());
            let rule = rule_now.unwrap_or_else(|| rule.clone());
            let outlives_exec = rule.selector.outlives_exec();
            let watch = self.selection.begin(other, rule);
            if let Err(error) = self.open(other, watch, outlives_exec) {
                self.heap.failures.push(error.to_string());
            }
        }
        self.release(&released);
    }

    fn release(&mut self, released: &Released) {
        if let Some(probes) = self.heap.probes() {
            probes.release(released.watch);
        }
        for &pid in &released.members {
            if !self.selection.has(pid) {
                self.forget_heap(pid);
            }
        }
    }

    /// A process has no probes any more.
    fn forget_heap(&mut self, pid: Pid) {
        if let Some(probes) = self.heap.probes() {
            probes.forget(pid);
        }
        self.stream.leave_stacks(pid);
        self.consume(self.unavailable(pid, seed::now_ns()));
    }
}

fn uid(name: &str) -> Result<u32, SelectError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let user = User::from_name(name).ok().flatten();
    let name = name.to_owned();
    user.map(|user| user.uid.as_raw())
        .ok_or(SelectError::NoUser { name })
}
