//! Comparisons, with both sides in the message.

use serde_json::Value;

/// A number that a workload printed.
#[track_caller]
pub fn number(object: &Value, key: &str) -> u64 {
    object[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {key} in {object}"))
}

/// Asserts that two numbers are within `percent` of the expected one.
#[track_caller]
pub fn within(percent: f64, actual: u64, expected: u64, what: &str) {
    let difference = actual.abs_diff(expected) as f64;
    assert!(
        difference <= expected as f64 * percent / 100.0,
        "{what}: {actual}, expected {expected} within {percent} %: off by {difference}"
    );
}
