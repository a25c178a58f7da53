//! How many shards there are changes nothing about what comes out.

use super::*;
use crate::model::random_events::{LIMITS, events};

fn of_shards(shards: usize, events: &[Event]) -> Model {
    let mut model = Model::in_shards(LIMITS, shards);
    events.iter().for_each(|event| model.apply(event));
    model
}

/// The whole document, as it is written.
fn lines(model: &Model) -> Vec<String> {
    let text = serde_json::to_string_pretty(&model.document()).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The lines that differ first.
fn first_difference(one: &Model, other: &Model) -> Option<(String, String)> {
    let (one, other) = (lines(one), lines(other));
    let mut pairs = one.iter().zip(&other);
    let differ = pairs.find(|(one, other)| one != other);
    let shorter =
        (one.len() != other.len()).then(|| (one.len().to_string(), other.len().to_string()));
    differ
        .map(|(one, other)| (one.clone(), other.clone()))
        .or(shorter)
}

#[test]
fn any_number_of_shards_makes_the_same_document() {
    for seed in 1..30 {
        let events = events(seed);
        let whole = of_shards(1, &events);
        for shards in [2, 4] {
            let several = of_shards(shards, &events);
            let difference = first_difference(&whole, &several);
            assert_eq!(difference, None, "{shards} shards, seed {seed}");
            assert!(
                several
                    .shards
                    .iter()
                    .all(|shard| !shard.processes.is_empty())
            );
            for pid in whole.pids() {
                assert_eq!(whole.unnamed(pid), several.unnamed(pid));
            }
        }
    }
}

type Turn = Box<dyn FnOnce(&mut Vec<Shard>)>;

/// Shards that do what they are told when they are let, as threads do.
struct Deferred {
    shards: Vec<Shard>,
    now: Event,
    waiting: Vec<Turn>,
    /// Sites of all summaries, where they were most.
    most: usize,
}

impl Settle for Deferred {
    fn settle(&mut self, shard: usize, settling: Settling) {
        let turn = move |shards: &mut Vec<Shard>| shards.settle(shard, settling);
        self.waiting.push(Box::new(turn));
    }
}

impl Shards for Deferred {
    fn order(&mut self, shard: usize, order: Order) {
        let event = self.now.clone();
        let turn = move |shards: &mut Vec<Shard>| shards[shard].execute(order, &event);
        self.waiting.push(Box::new(turn));
    }

    fn hand_over(&mut self, id: ProcessId, from: usize, to: usize) {
        let turn = move |shards: &mut Vec<Shard>| {
            let moved = shards[from].give(id).unwrap();
            shards[to].take(moved);
        };
        self.waiting.push(Box::new(turn));
    }
}

fn sites_kept(shards: &[Shard]) -> usize {
    let processes = shards.iter().flat_map(|shard| shard.processes.values());
    let summaries = processes.filter_map(|process| process.summary.as_ref());
    summaries.map(|summary| summary.sites.sites.len()).sum()
}

impl Deferred {
    /// They do everything, and what they tell of it is heard.
    fn let_go(&mut self, coordinator: &mut Coordinator) {
        for turn in std::mem::take(&mut self.waiting) {
            turn(&mut self.shards);
            self.most = self.most.max(sites_kept(&self.shards));
        }
        let told = self.shards.iter_mut().flat_map(Shard::take_summarised);
        let told: Vec<_> = told.collect();
        coordinator.trim(told.into_iter(), self);
    }

    /// The model that they make, and how often they had to be waited for.
    fn apply(mut model: Model, events: &[Event]) -> (Model, usize, usize) {
        let mut deferred = Self {
            shards: model.take_shards(),
            now: events[0].clone(),
            waiting: Vec::new(),
            most: 0,
        };
        let mut waits = 0;
        for event in events {
            deferred.now = event.clone();
            model.coordinator().plan(event, &mut deferred);
            if model.coordinator().awaited(MAX_UNDECIDED).is_some() {
                deferred.let_go(model.coordinator());
                waits += 1;
            }
        }
        deferred.let_go(model.coordinator());
        deferred.let_go(model.coordinator());
        model.bring_back(deferred.shards, std::iter::empty());
        (model, deferred.most, waits)
    }
}

/// A process with many sites has children, which end one after the other.
fn wide_children(children: Pid) -> Vec<Event> {
    let at = |time_ns, pid, kind| Event {
        time_ns,
        pid,
        tid: pid,
        kind,
    };
    let probes = EventKind::HeapProbes {
        allocator: "glibc".into(),
        unavailable: None,
        late: false,
    };
    let alloc = |site| EventKind::Alloc {
        function: Function::Malloc,
        address: site * 64,
        size: 16 + site,
        stack: site,
    };
    let fork = |child| EventKind::Fork {
        child,
        shares_memory: false,
        comm: "child".into(),
    };
    let exit = || EventKind::Exit {
        code: Some(0),
        signal: None,
    };
    let mut events = vec![at(6, 10, probes)];
    events.extend((1..300).map(|site| at(10, 10, alloc(site))));
    let lives = |child| [at(20, 10, fork(child)), at(20, child, exit())];
    events.extend((100..100 + children).flat_map(lives));
    events.push(at(5_000 * MS, 10, alloc(300)));
    events
}

#[test]
fn summaries_that_wait_for_a_shard_keep_few_more_sites_than_they_may() {
    let limits = Limits {
        exited_sites: 100,
        all_exited_sites: 1000,
        ..Limits::default()
    };
    let events = wide_children(1000);
    let mut whole = Model::new(limits);
    events.iter().for_each(|event| whole.apply(event));
    let kept = sites_kept(&whole.shards);
    assert_eq!(kept, 10 * 100 + 990 * 10);
    for shards in [1, 2] {
        let model = Model::in_shards(limits, shards);
        let (model, most, waits) = Deferred::apply(model, &events);
        assert_eq!(first_difference(&whole, &model), None);
        assert!(
            most <= kept + (MAX_UNDECIDED + 2) * 100,
            "{most} sites at a time"
        );
        assert_eq!(
            waits, 1,
            "where it is known that there is no room, nobody waits"
        );
    }
}

#[test]
fn a_loss_of_one_that_ended_is_of_its_memory_and_of_nobody_elses() {
    for (shards, guest) in [(1, true), (2, true), (1, false), (2, false)] {
        let mut trace = Trace(Model::in_shards(Limits::default(), shards));
        for pid in [10, 20] {
            trace.start(pid, false);
            trace.seen(pid);
            trace.alloc(10, pid, 0x100, 64, 0);
            trace.free(11, pid, 0x500);
        }
        if guest {
            trace.fork(12, 10, 11, true);
        }
        trace.exit(13, 10);
        trace.alloc(5_000 * MS, 20, 0x200, 64, 0);
        let invalid = |trace: &Trace, pid| trace.row(pid).heap.unwrap().invalid_frees;
        assert_eq!(
            (invalid(&trace, 10), invalid(&trace, 20)),
            (Some(1), Some(1))
        );
        trace.lose(10);
        assert_eq!(
            (invalid(&trace, 10), invalid(&trace, 20)),
            (Some(0), Some(1))
        );
        let mut spaces = trace
            .0
            .shards
            .iter()
            .flat_map(|shard| shard.spaces.values());
        assert_eq!(spaces.any(|space| space.lossy), guest);
        trace.lose(0);
        assert_eq!(invalid(&trace, 20), Some(0));
    }
}
