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
