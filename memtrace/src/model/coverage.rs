//! What was seen of the traced processes, and what was not.

use std::collections::BTreeMap;

use crate::report::document;

/// Running counts of what reports say under `coverage`.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Events applied.
    pub events: u64,
    /// Processes dropped to bound memory.
    pub processes_dropped: u64,
    lost: u64,
    undecodable: u64,
    truncated: bool,
    by_reason: BTreeMap<Box<str>, u64>,
    probes: Vec<document::Probe>,
}

impl Coverage {
    /// `count` things named by `reason` happened.
    pub fn count(&mut self, reason: &str, count: u64, loss: bool) {
        match reason {
            "truncated" => {
                self.truncated = true;
                return;
            }
            "undecodable" => {
                self.undecodable = self.undecodable.saturating_add(count);
                return;
            }
            _ => {}
        }
        if loss {
            self.lost = self.lost.saturating_add(count);
        }
        let sum = self.by_reason.entry(reason.into()).or_default();
        *sum = sum.saturating_add(count);
    }

    /// Events known to be lost so far.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The state of a probe; a later one replaces an earlier one of the same name.
    pub fn probe(&mut self, name: &str, attached: bool, reason: Option<&str>) {
        let probe = document::Probe {
            name: name.to_owned(),
            attached,
            reason: reason.map(str::to_owned),
        };
        match self.probes.iter_mut().find(|old| old.name == name) {
            Some(old) => *old = probe,
            None => self.probes.push(probe),
        }
    }

    /// For the report, with what heaps add.
    pub fn document(&self, unmatched_frees: u64, implied_frees: u64) -> document::Coverage {
        let mut lost_by_reason: BTreeMap<String, u64> = self
            .by_reason
            .iter()
            .map(|(reason, count)| (reason.to_string(), *count))
            .collect();
        if implied_frees > 0 {
            *lost_by_reason.entry("implied_free".to_owned()).or_default() += implied_frees;
        }
        document::Coverage {
            events: self.events,
            lost: self.lost,
            truncated: self.truncated,
            lost_by_reason,
            undecodable: self.undecodable,
            unmatched_frees,
            probes: self.probes.clone(),
            processes_dropped: self.processes_dropped,
            left_out: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_summed_and_only_losses_are_lost() {
        let mut coverage = Coverage::default();
        coverage.count("ring_full_fault", 3, true);
        coverage.count("ring_full_fault", 4, true);
        coverage.count("stack_truncated", 9, false);
        coverage.count("undecodable", 2, false);
        coverage.count("truncated", 1, false);
        coverage.probe("malloc", true, None);
        coverage.probe("malloc", false, Some("gone"));
        let document = coverage.document(5, 6);
        assert_eq!((document.lost, document.undecodable), (7, 2));
        assert!(document.truncated);
        let reasons: Vec<(&str, u64)> = document
            .lost_by_reason
            .iter()
            .map(|(reason, count)| (reason.as_str(), *count))
            .collect();
        let expected = [
            ("implied_free", 6),
            ("ring_full_fault", 7),
            ("stack_truncated", 9),
        ];
        assert_eq!(reasons, expected);
        assert_eq!(document.unmatched_frees, 5);
        assert_eq!(document.probes.len(), 1);
        assert_eq!(document.probes[0].reason.as_deref(), Some("gone"));
    }
}
