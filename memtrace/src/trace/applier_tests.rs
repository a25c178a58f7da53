//! Threads change nothing about what comes out.

use std::path::Path;

use super::*;
use crate::{
    event::EventKind,
    model::random_events::{LIMITS, Random, events},
    store::recording::{Reader, WriteError},
};

fn rounded(seed: u64) -> Vec<Event> {
    let mut events = events(seed);
    events.iter_mut().for_each(Event::round);
    events
}

fn as_json(document: &Document) -> String {
    serde_json::to_string(document).unwrap()
}

fn one_after_the_other(events: &[Event]) -> String {
    let mut model = Model::new(LIMITS);
    events.iter().for_each(|event| model.apply(event));
    as_json(&model.document())
}

fn read(path: &Path) -> Vec<Event> {
    let mut reader = Reader::open(path).unwrap();
    let mut events = Vec::new();
    while let Some(batch) = reader.next_batch().unwrap() {
        events.extend(batch);
    }
    events
}

#[test]
fn live_and_from_the_recording_it_is_what_one_thread_makes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recording");
    for seed in 100..106 {
        let events = rounded(seed);
        let expected = one_after_the_other(&events);
        for shards in [1, 2, 4] {
            let writer = Writer::create(&path).unwrap();
            let model = Model::in_shards(LIMITS, shards);
            let mut applier = Applier::new(model, Some(writer));
            let mut random = Random(seed);
            let (before, after) = events.split_at(events.len() - 100);
            for event in before {
                applier.apply(event.clone());
                if random.below(100) == 0 {
                    applier.flush();
                }
            }
            applier.gather();
            after.iter().for_each(|event| applier.apply(event.clone()));
            assert!(
                as_json(&applier.document()) == expected,
                "{shards} shards, seed {seed}"
            );
            assert!(applier.finish_recording(None).is_none());

            let mut replay = Applier::replay(Model::in_shards(LIMITS, shards));
            let recorded = read(&path);
            assert_eq!(recorded.len(), events.len());
            recorded
                .chunks(700)
                .for_each(|some| replay.apply_all(some.to_vec()));
            replay.gather();
            assert!(replay.passed_on.is_empty(), "done with");
            assert!(
                as_json(&replay.document()) == expected,
                "{shards} shards, seed {seed}"
            );
        }
    }
}

#[test]
fn a_recording_that_fails_ends_alone() {
    let events = rounded(1);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recording");
    let writer = Writer::create(&path).unwrap();
    let mut applier = Applier::new(Model::in_shards(LIMITS, 2), Some(writer));
    let huge = Event {
        kind: EventKind::Rename {
            comm: "x".repeat((64 << 20) + 1).into(),
        },
        ..events[0].clone()
    };
    applier.apply(huge.clone());
    for event in &events {
        applier.apply(event.clone());
        applier.flush();
    }
    applier.gather();
    let all: Vec<Event> = [huge].into_iter().chain(events).collect();
    assert!(as_json(&applier.document()) == one_after_the_other(&all));
    let failure = applier.finish_recording(None);
    assert!(
        matches!(failure, Some(WriteError::EventTooLarge { .. })),
        "{failure:?}"
    );
    assert_eq!(read(&path).len(), 0);
}

#[test]
fn no_more_summaries_wait_than_may() {
    let exits = |child| {
        let (fork, exit) = (
            EventKind::Fork {
                child,
                shares_memory: false,
                comm: "child".into(),
            },
            EventKind::Exit {
                code: None,
                signal: None,
            },
        );
        [(9, fork), (child, exit)].map(|(pid, kind)| Event {
            time_ns: 1,
            pid,
            tid: pid,
            kind,
        })
    };
    let events: Vec<Event> = (10..5000).flat_map(exits).collect();
    let mut applier = Applier::replay(Model::in_shards(LIMITS, 2));
    applier.apply_all(events.clone());
    let coordinator = applier.model_mut().coordinator();
    assert_eq!(coordinator.awaited(MAX_UNDECIDED), None);
    applier.gather();
    assert!(as_json(&applier.document()) == one_after_the_other(&events));
}
