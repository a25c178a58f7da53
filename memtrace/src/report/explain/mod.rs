//! `memtrace explain WORD`: what a word in a report means, and what to do about it.

use std::io::{self, Write};

use super::Style;
use super::text::Tint;

mod words;

/// One word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As the reports print it.
    pub word: &'static str,
    /// Other spellings, JSON keys and counters among them.
    pub aliases: &'static [&'static str],
    /// What it means.
    pub meaning: &'static str,
    /// What to do about it.
    pub action: &'static str,
}

/// No entry has that word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no report says {word:?}{}", hint(.suggestions))]
pub struct UnknownWord {
    /// As typed.
    pub word: String,
    /// Words that are close, closest first.
    pub suggestions: Vec<&'static str>,
}

fn hint(suggestions: &[&str]) -> String {
    if suggestions.is_empty() {
        "; `memtrace explain` alone lists all words".to_owned()
    } else {
        format!("; did you mean {}?", suggestions.join(", "))
    }
}

/// Every word, in the order the reports bring them up.
pub fn words() -> impl Iterator<Item = &'static str> {
    words::ENTRIES.iter().map(|entry| entry.word)
}

/// The entry of a word, however it is cased and joined: `Lazy bytes`, `lazy_bytes`, `lazy-bytes`.
pub fn explain(word: &str) -> Result<&'static Entry, UnknownWord> {
    let wanted = normal(word);
    let found = words::ENTRIES
        .iter()
        .find(|entry| spellings(entry).any(|known| normal(known) == wanted));
    found.ok_or_else(|| UnknownWord {
        word: word.to_owned(),
        suggestions: suggest(&wanted),
    })
}

impl Entry {
    /// Writes the entry, wrapped to the width.
    pub fn render(&self, style: &Style, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", style.paint(Tint::Strong, self.word))?;
        wrap(self.meaning, style.width, out)?;
        writeln!(out)?;
        wrap(&format!("What to do: {}", self.action), style.width, out)
    }
}

fn spellings(entry: &'static Entry) -> impl Iterator<Item = &'static str> {
    std::iter::once(entry.word).chain(entry.aliases.iter().copied())
}

/// Lower case, words joined by one space, without a plural's s.
fn normal(word: &str) -> String {
    let lower = word.to_lowercase();
    let words = lower.split(|c: char| c.is_whitespace() || matches!(c, '_' | '-'));
    let joined = words
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    match joined.strip_suffix('s') {
        Some(singular) if !singular.ends_with('s') => singular.to_owned(),
        _ => joined,
    }
}

fn suggest(wanted: &str) -> Vec<&'static str> {
    const SUGGESTIONS: usize = 3;
    let far = wanted.chars().count() / 3 + 1;
    let distance = |entry: &'static Entry| {
        let each = spellings(entry).map(|known| {
            let known = normal(known);
            let within = wanted.len() > 2 && (known.contains(wanted) || wanted.contains(&known));
            if within { 1 } else { edits(wanted, &known) }
        });
        each.min().unwrap_or(usize::MAX)
    };
    let mut near: Vec<(usize, &'static str)> = words::ENTRIES
        .iter()
        .map(|entry| (distance(entry), entry.word))
        .filter(|(edits, _)| *edits <= far)
        .collect();
    near.sort_by_key(|(edits, _)| *edits);
    near.into_iter()
        .take(SUGGESTIONS)
        .map(|(_, word)| word)
        .collect()
}

/// Levenshtein's distance, a row at a time.
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, to) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

fn wrap(text: &str, width: usize, out: &mut dyn Write) -> io::Result<()> {
    let limit = width.max(24);
    let mut line = String::from(" ");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > limit && line.len() > 1 {
            writeln!(out, "{line}")?;
            line = String::from(" ");
        }
        line.push(' ');
        line.push_str(word);
    }
    writeln!(out, "{line}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use memtrace_common::counter::Counter;

    use super::*;

    #[test]
    fn every_counter_is_explained() {
        for counter in Counter::ALL {
            assert!(explain(counter.name()).is_ok(), "{}", counter.name());
        }
    }

    #[test]
    fn every_spelling_is_unique() {
        let mut seen = HashSet::new();
        for entry in words::ENTRIES {
            let mut own: Vec<String> = spellings(entry).map(normal).collect();
            own.sort();
            own.dedup();
            for spelling in own {
                assert!(seen.insert(spelling.clone()), "{spelling} twice");
            }
        }
    }

    #[test]
    fn words_of_the_brief_and_their_spellings() {
        for word in [
            "reserved",
            "Reserved_Bytes",
            "committed",
            "lazy",
            "live bytes",
            "peak",
            "minor fault",
            "major faults",
            "leak",
            "Leaks",
            "allocation site",
            "program break",
            "unmatched free",
            "lost",
            "double-free",
            "ring_full_free",
            "committed source",
            "address space",
            "not measured",
            "truncated",
        ] {
            assert!(explain(word).is_ok(), "{word}");
        }
    }

    #[test]
    fn unknown_words_get_near_ones() {
        assert_eq!(explain("comitted").unwrap_err().suggestions[0], "committed");
        assert_eq!(
            explain("zygote").unwrap_err().to_string(),
            "no report says \"zygote\"; `memtrace explain` alone lists all words"
        );
        assert!(explain("").is_err());
        assert!(
            explain("brk are")
                .unwrap_err()
                .suggestions
                .contains(&"program break")
        );
    }

    #[test]
    fn entries_are_wrapped() {
        let mut out = Vec::new();
        explain("lazy")
            .unwrap()
            .render(
                &Style {
                    width: 60,
                    ..Style::default()
                },
                &mut out,
            )
            .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
lazy
  Reserved and not committed: pages that were asked for and
  not touched, or given back. The kernel provides a page at
  the first touch, with a minor fault.

  What to do: No cost as it stands. Where the first touch
  must not wait, touch it beforehand (MAP_POPULATE, mlock).
"
        );
    }
}
