//! Folded stacks: what flame-graph tools read.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::Export;
use super::sample::{Measure, Stack, samples};
use crate::report::document::Document;
use crate::report::stack;
use crate::report::text::clean;

/// `process;outermost;…;innermost VALUE`, a line per stack, as stackcollapse-perf.pl writes it.
pub(super) struct Folded;

impl Export for Folded {
    fn name(&self) -> &'static str {
        "folded"
    }

    fn export(&self, document: &Document, measure: Measure, out: &mut dyn Write) -> io::Result<()> {
        for line in lines(document, measure) {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

/// The lines in order. Stacks that read the same are one line; what weighs nothing is left out.
pub(super) fn lines(document: &Document, measure: Measure) -> Vec<String> {
    let mut folded: BTreeMap<String, u64> = BTreeMap::new();
    for sample in samples(document, measure) {
        let value = sample.values[measure.main_column()];
        if value == 0 {
            continue;
        }
        let mut line = part(&sample.process.comm);
        let mut push = |name: &str| {
            line.push(';');
            line.push_str(&part(name));
        };
        match sample.stack {
            Stack::Frames(frames) => {
                for frame in frames.iter().rev() {
                    push(&stack::name(frame));
                }
            }
            Stack::Words(words) => push(words),
        }
        let sum = folded.entry(line).or_default();
        *sum = sum.saturating_add(value);
    }
    let line = |(stack, value)| format!("{stack} {value}");
    folded.into_iter().map(line).collect()
}

/// A name that neither ends the line nor the frame.
fn part(name: &str) -> String {
    clean(name).replace(';', ":")
}

#[cfg(test)]
mod tests {
    use super::super::exported;
    use super::*;
    use crate::report::fixture;

    fn folded(document: &Document, measure: Measure) -> String {
        String::from_utf8(exported("folded", document, measure)).unwrap()
    }

    #[test]
    fn every_measure_has_its_own_sum() {
        let document = fixture::with_sites();
        assert_eq!(
            folded(&document, Measure::Leaks),
            "leaky;(other sites) 7\n\
             leaky;main;leak_big;malloc 10485760\n\
             leaky;main;leak_small;malloc 64000\n"
        );
        assert_eq!(
            folded(&document, Measure::Allocations),
            "leaky;(other sites) 100\n\
             leaky;main;leak_big;malloc 3000\n\
             leaky;main;work;malloc 2000\n"
        );
        assert_eq!(
            folded(&document, Measure::Peak),
            "leaky;(other sites) 50\nleaky;main;work;malloc 1500\n"
        );
        assert_eq!(
            folded(&document, Measure::Faults),
            "leaky;(elsewhere) 9\nleaky;work 121\n"
        );
    }

    #[test]
    fn names_cannot_break_the_lines() {
        let mut document = fixture::leaky();
        let process = &mut document.processes[0];
        process.comm = "a;b c\n".into();
        process.leaks.truncate(1);
        process.leaks[0].stack = vec![fixture::frame("f(int;\n)", "/a.c", 1)];
        assert_eq!(
            folded(&document, Measure::Leaks),
            "a:b c\\n;f(int:\\n) 10485760\n"
        );
        document.processes[0].leaks[0].stack.clear();
        let text = folded(&document, Measure::Leaks);
        assert_eq!(text, "a:b c\\n;(no stack was taken) 10485760\n");
        document.processes.clear();
        assert_eq!(folded(&document, Measure::Leaks), "");
    }
}
