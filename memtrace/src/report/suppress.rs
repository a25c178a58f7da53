//! Leaks that are known and accepted, or too young to tell.
//!
//! A suppressions file has one rule per line:
//!
//! ```text
//! # Lines that begin with # are comments.
//! function png_create_*
//! function Cache::insert
//! module libfontconfig.so*
//! module /opt/vendor/lib/*
//! ```
//!
//! A leak is left out when any frame of its stack matches any rule. `*` stands for any characters, `?`
//! for one. `function` compares the whole demangled name, or the name without its arguments and return
//! type; `module` compares the whole path, or its last component. The counts of the heap stay as they
//! were: suppressed blocks are not freed ones.

use std::fmt;

use super::document::{Document, Frame, Leak};
use super::stack::without_arguments;
use super::text::base_name;
use crate::units;

/// Leaks in sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Allocation sites.
    pub sites: u64,
    /// Blocks.
    pub blocks: u64,
    /// Bytes as asked for.
    pub bytes: u64,
}

impl Amount {
    /// The sum of `leaks`.
    pub fn of(leaks: &[Leak]) -> Self {
        leaks.iter().fold(Self::default(), |mut amount, leak| {
            amount.add(leak);
            amount
        })
    }

    fn add(&mut self, leak: &Leak) {
        self.sites += 1;
        self.blocks = self.blocks.saturating_add(leak.blocks);
        self.bytes = self.bytes.saturating_add(leak.bytes);
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks = units::counted(self.blocks, "block", "blocks");
        let sites = units::counted(self.sites, "site", "sites");
        write!(f, "{} in {blocks} at {sites}", units::bytes(self.bytes))
    }
}

/// What was taken out of the leaks of a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Matched by a suppression.
    pub suppressed: Amount,
    /// All blocks younger than `min_age_ns`.
    pub young: Amount,
    /// The age asked for.
    pub min_age_ns: u64,
}

/// A line of a suppressions file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuppressionError {
    /// It begins with another word.
    #[error(
        "line {line}: {word:?} is no rule; write `function GLOB`, `module GLOB` or `# comment`"
    )]
    UnknownRule {
        /// From 1.
        line: usize,
        /// As written.
        word: String,
    },
    /// Nothing follows the rule's name.
    #[error("line {line}: `{rule}` needs a name or a pattern, as in `{rule} {example}`")]
    NoPattern {
        /// From 1.
        line: usize,
        /// `function` or `module`.
        rule: &'static str,
        /// A valid pattern.
        example: &'static str,
    },
}

/// The rules of a suppressions file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppressions {
    functions: Vec<String>,
    modules: Vec<String>,
}

impl Suppressions {
    /// Reads the text of a suppressions file.
    pub fn parse(text: &str) -> Result<Self, SuppressionError> {
        let mut rules = Self::default();
        for (index, text) in text.lines().enumerate() {
            let line = index + 1;
            let text = text.trim_start_matches('\u{feff}').trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let (word, pattern) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
            let (list, rule, example) = match word {
                "function" => (&mut rules.functions, "function", "cache_*"),
                "module" => (&mut rules.modules, "module", "libfoo.so*"),
                _ => {
                    return Err(SuppressionError::UnknownRule {
                        line,
                        word: word.to_owned(),
                    });
                }
            };
            let pattern = pattern.trim();
            if pattern.is_empty() {
                return Err(SuppressionError::NoPattern {
                    line,
                    rule,
                    example,
                });
            }
            list.push(pattern.to_owned());
        }
        Ok(rules)
    }

    /// Whether the leak is to be left out.
    pub fn matches(&self, leak: &Leak) -> bool {
        leak.stack.iter().any(|frame| self.matches_frame(frame))
    }

    fn matches_frame(&self, frame: &Frame) -> bool {
        let function = frame.function.as_deref().is_some_and(|name| {
            self.functions
                .iter()
                .any(|rule| glob(rule, name) || glob(rule, without_arguments(name)))
        });
        let module = frame.module.as_deref().is_some_and(|path| {
            self.modules
                .iter()
                .any(|rule| glob(rule, path) || glob(rule, base_name(path)))
        });
        function || module
    }
}

/// Takes out what is suppressed, then the sites whose oldest block is younger than `min_age_ns`.
pub fn filter(document: &mut Document, suppressions: &Suppressions, min_age_ns: u64) -> Removed {
    let mut removed = Removed {
        min_age_ns,
        ..Removed::default()
    };
    for process in &mut document.processes {
        process.leaks.retain(|leak| {
            if suppressions.matches(leak) {
                removed.suppressed.add(leak);
                return false;
            }
            if leak.oldest_age_ns < min_age_ns {
                removed.young.add(leak);
                return false;
            }
            true
        });
    }
    removed
}

/// `*` and `?`. Goes back to the last `*` only, so that no pattern takes more than length times length.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((star, taken)) = retry else {
                    return false;
                };
                retry = Some((star, taken + 1));
                p = star + 1;
                t = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn globs() {
        for (pattern, text) in [
            ("a", "a"),
            ("*", ""),
            ("a*c", "abbc"),
            ("*.so*", "libx.so.6"),
            ("a?c", "aüc"),
            ("a**", "a"),
            ("*a*b", "aabab"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a", "ab"),
            ("a", ""),
            ("?", ""),
            ("a*c", "abcd"),
            ("", "a"),
            ("*a*b", "ba"),
        ] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
        assert!(!glob(&"*a".repeat(50), &"ab".repeat(5_000)));
    }

    #[test]
    fn files() {
        let rules =
            Suppressions::parse("\u{feff}# known\r\n\n  function  f(int) \r\nmodule lib*\n")
                .unwrap();
        assert_eq!(rules.functions, ["f(int)"]);
        assert_eq!(rules.modules, ["lib*"]);
        assert_eq!(Suppressions::parse("").unwrap(), Suppressions::default());
    }

    #[test]
    fn errors_name_the_line() {
        assert_eq!(
            Suppressions::parse("# x\nfunctions f")
                .unwrap_err()
                .to_string(),
            "line 2: \"functions\" is no rule; write `function GLOB`, `module GLOB` or `# comment`"
        );
        assert_eq!(
            Suppressions::parse("module").unwrap_err().to_string(),
            "line 1: `module` needs a name or a pattern, as in `module libfoo.so*`"
        );
    }

    #[test]
    fn any_frame_matches_and_the_heap_stays() {
        let mut document = fixture::leaky();
        let heap = document.processes[0].heap;
        let rules = Suppressions::parse("function leak_s*").unwrap();
        let removed = filter(&mut document, &rules, 0);
        assert_eq!(
            removed.suppressed,
            Amount {
                sites: 1,
                blocks: 1_000,
                bytes: 64_000
            }
        );
        assert_eq!(
            removed.suppressed.to_string(),
            "62.5 KiB in 1,000 blocks at 1 site"
        );
        assert_eq!(document.processes[0].leaks.len(), 1);
        assert_eq!(document.processes[0].heap, heap);
        let by_module = Suppressions::parse("module libc.so.6").unwrap();
        assert_eq!(filter(&mut document, &by_module, 0).suppressed.sites, 1);
    }

    #[test]
    fn arguments_need_not_be_written() {
        let mut leak = fixture::leak("void Cache::insert<int>(int, char const*)", 1, 1);
        leak.stack.truncate(2);
        assert!(
            Suppressions::parse("function Cache::insert*")
                .unwrap()
                .matches(&leak)
        );
        assert!(
            Suppressions::parse("function void Cache::insert<int>(*")
                .unwrap()
                .matches(&leak)
        );
        assert!(
            !Suppressions::parse("function insert")
                .unwrap()
                .matches(&leak)
        );
    }

    #[test]
    fn young_sites_are_left_out() {
        let mut document = fixture::leaky();
        document.processes[0].leaks[0].oldest_age_ns = 5;
        let removed = filter(&mut document, &Suppressions::default(), 6);
        assert_eq!(
            removed.young,
            Amount {
                sites: 1,
                blocks: 10,
                bytes: 10 << 20
            }
        );
        assert_eq!(removed.suppressed, Amount::default());
    }
}
