//! The rules, each with its reason.

use super::{
    File, Violation,
    source::{NamedPath, Token, paths, tokens},
};

const LONGEST_FILE: usize = 600;

/// Spelt apart, so that this file keeps the rule it states.
const MARKERS: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("todo", "!"),
];

/// Code as the rules see it.
struct Code<'a> {
    file: &'a File,
    tokens: Vec<Token>,
    paths: Vec<NamedPath>,
}

impl<'a> Code<'a> {
    fn of(file: &'a File) -> Self {
        let tokens = tokens(&file.text);
        let paths = paths(&tokens);
        Self {
            file,
            tokens,
            paths,
        }
    }

    fn is_under(&self, places: &[&str]) -> bool {
        places.iter().any(|place| is_at(&self.file.path, place))
    }

    fn violation(&self, line: usize, what: String, reason: &'static str) -> Violation {
        Violation {
            path: self.file.path.clone(),
            line,
            what,
            reason,
        }
    }
}

/// A place is a file, or a directory when it ends in a slash; the module `a/` may also be `a.rs`.
fn is_at(path: &str, place: &str) -> bool {
    match place.strip_suffix('/') {
        Some(module) => path.starts_with(place) || path.strip_suffix(".rs") == Some(module),
        None => path == place,
    }
}

/// Every violation in these files.
pub fn check(files: &[File]) -> Vec<Violation> {
    let mut found = Vec::new();
    for file in files {
        found.extend(markers(file));
        if file.path.ends_with(".rs") {
            let code = Code::of(file);
            for rule in [length, aya, wire, model, output, unsafety] {
                found.extend(rule(&code));
            }
        }
    }
    found
}

fn markers(file: &File) -> Vec<Violation> {
    let reason = "what is left to do is in the issues, where it is seen";
    let mut found = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for marker in MARKERS.iter().filter(|marker| contains_word(line, marker)) {
            found.push(Violation {
                path: file.path.clone(),
                line: index + 1,
                what: format!("says {marker}"),
                reason,
            });
        }
    }
    found
}

fn contains_word(line: &str, word: &str) -> bool {
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word)
    })
}

fn length(code: &Code) -> Vec<Violation> {
    let lines = code.file.text.lines().count();
    if lines <= LONGEST_FILE {
        return Vec::new();
    }
    let what = format!("{lines} lines, {LONGEST_FILE} at most");
    vec![code.violation(
        LONGEST_FILE + 1,
        what,
        "a file that long is more than one topic",
    )]
}

fn aya(code: &Code) -> Vec<Violation> {
    let places = ["memtrace/src/probe/", "memtrace/src/stream/"];
    if !code.is_under(&["memtrace/src/"]) || code.is_under(&places) {
        return Vec::new();
    }
    let reason =
        "only probe/ and stream/ know aya, so that the rest runs, and is tested, without a kernel";
    let named = |token: &&Token| token.text == "aya" || token.text.starts_with("aya_");
    code.tokens
        .iter()
        .filter(named)
        .map(|token| code.violation(token.line, format!("names {}", token.text), reason))
        .collect()
}

fn wire(code: &Code) -> Vec<Violation> {
    let places = ["memtrace/src/stream/decode.rs", "memtrace/src/probe/"];
    if !code.is_under(&["memtrace/src/"]) || code.is_under(&places) {
        return Vec::new();
    }
    let reason = "only stream/decode.rs reads wire structs, so that nothing else trusts what the kernel side sent";
    code.paths
        .iter()
        .filter(|named| starts_with_path(&named.path, "memtrace_common::record"))
        // A vocabulary shared by the wire and the events, not a layout.
        .filter(|named| !starts_with_path(&named.path, "memtrace_common::record::Call"))
        .map(|named| code.violation(named.line, format!("names {}", named.path), reason))
        .collect()
}

fn model(code: &Code) -> Vec<Violation> {
    if !code.is_under(&["memtrace/src/model/"]) {
        return Vec::new();
    }
    let reason = "the model is pure, no I/O, no clock, no logging, so that replay equals live";
    let forbidden = [
        "std::fs",
        "std::io",
        "std::net",
        "std::env",
        "std::process",
        "std::thread",
        "std::time::Instant",
        "std::time::SystemTime",
        "Instant::now",
        "SystemTime::now",
        "log",
        "tokio",
        "nix",
        "libc",
        "procfs",
        "indicatif",
    ];
    code.paths
        .iter()
        .filter(|named| {
            forbidden
                .iter()
                .any(|path| starts_with_path(&named.path, path))
        })
        .map(|named| code.violation(named.line, format!("names {}", named.path), reason))
        .collect()
}

fn output(code: &Code) -> Vec<Violation> {
    if !code.is_under(&["memtrace/src/report/", "memtrace/src/export/"]) {
        return Vec::new();
    }
    let reason = "reports and exports are made from report::document alone, so that live, replayed and baseline are one";
    let behind = [
        "model", "event", "stream", "probe", "seed", "store", "procfs", "stack", "trace", "daemon",
        "cli",
    ];
    code.paths
        .iter()
        .filter_map(|named| {
            let path = resolve(&code.file.path, &named.path)?;
            let module = path.split("::").next()?;
            behind
                .contains(&module)
                .then(|| code.violation(named.line, format!("names crate::{path}"), reason))
        })
        .collect()
}

/// The path inside the crate that a path in this file means, if it begins with `crate` or `super`.
fn resolve(file: &str, path: &str) -> Option<String> {
    if let Some(inner) = path.strip_prefix("crate::") {
        return Some(inner.to_owned());
    }
    let module = file.strip_prefix("memtrace/src/")?.strip_suffix(".rs")?;
    let module = module.strip_suffix("/mod").unwrap_or(module);
    let mut segments: Vec<&str> = module.split('/').collect();
    let mut rest = path;
    while let Some(inner) = rest.strip_prefix("super::") {
        segments.pop()?;
        rest = inner;
    }
    if rest == path {
        return None;
    }
    segments.push(rest);
    Some(segments.join("::"))
}

fn unsafety(code: &Code) -> Vec<Violation> {
    let places = [
        "memtrace/src/probe/",
        "memtrace/src/stream/",
        "memtrace/src/stack/",
        // Between fork and exec there is no safe way to do anything.
        "memtrace/src/trace/launch.rs",
        // Descriptors that the kernel makes and tokio watches: neither has a safe call for it.
        "memtrace/src/trace/watch.rs",
        // aya::Pod can be implemented only beside the types.
        "memtrace-common/src/lib.rs",
    ];
    if !code.is_under(&["memtrace/src/", "memtrace-common/", "xtask/"]) || code.is_under(&places) {
        return Vec::new();
    }
    let reason = "unsafe stays where the kernel is met: probe/, stream/, stack/, trace/launch.rs and trace/watch.rs";
    code.tokens
        .iter()
        .filter(|token| token.text == "unsafe")
        .map(|token| code.violation(token.line, "is unsafe".to_owned(), reason))
        .collect()
}

fn starts_with_path(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong in a tree of one file.
    fn wrong(path: &str, text: &str) -> Vec<(usize, String)> {
        let file = File {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        check(&[file])
            .into_iter()
            .map(|violation| (violation.line, violation.what))
            .collect()
    }

    fn is_fine(path: &str, text: &str) {
        assert_eq!(wrong(path, text), [], "{path}");
    }

    #[test]
    fn aya_stays_in_probe_and_stream() {
        let text = "// aya\nuse aya::Ebpf;\nuse aya_log::EbpfLogger;";
        assert_eq!(
            wrong("memtrace/src/daemon/mod.rs", text),
            [(2, "names aya".to_owned()), (3, "names aya_log".to_owned())]
        );
        is_fine("memtrace/src/probe/load.rs", text);
        is_fine("memtrace/src/stream.rs", text);
        is_fine("memtrace-ebpf/src/main.rs", "use aya_ebpf::EbpfContext;");
    }

    #[test]
    fn wire_structs_stay_in_decode() {
        let text = "use memtrace_common::{heap::Function, record::{Call, Header}};";
        assert_eq!(
            wrong("memtrace/src/event.rs", text),
            [(1, "names memtrace_common::record::Header".to_owned())]
        );
        is_fine("memtrace/src/stream/decode.rs", text);
        assert_eq!(wrong("memtrace/src/stream/ring.rs", text).len(), 1);
        is_fine(
            "memtrace/src/event.rs",
            "use memtrace_common::{heap::Function, record::Call};",
        );
    }

    #[test]
    fn the_model_is_pure() {
        let text = "use std::{collections::BTreeMap, time::{Duration, Instant}};\nfn f() { log::warn!(\"x\"); }";
        assert_eq!(
            wrong("memtrace/src/model/heap.rs", text),
            [
                (1, "names std::time::Instant".to_owned()),
                (2, "names log::warn".to_owned())
            ]
        );
        is_fine("memtrace/src/daemon/mod.rs", text);
        is_fine(
            "memtrace/src/model/heap.rs",
            "fn f(x: logarithm::Log) { x.log(); }",
        );
    }

    #[test]
    fn reports_see_the_document_only() {
        let text = "use crate::{report::document::Report, store::Recording};";
        assert_eq!(
            wrong("memtrace/src/report/leaks.rs", text),
            [(1, "names crate::store::Recording".to_owned())]
        );
        assert_eq!(
            wrong(
                "memtrace/src/export/pprof.rs",
                "use super::super::model::Model;"
            ),
            [(1, "names crate::model::Model".to_owned())]
        );
        is_fine(
            "memtrace/src/report/leaks.rs",
            "use super::document::Report;",
        );
        is_fine("memtrace/src/cli/report.rs", text);
    }

    #[test]
    fn unsafe_stays_where_the_kernel_is_met() {
        let text = "#![deny(unsafe_op_in_unsafe_fn)]\nunsafe fn f() {}";
        for path in [
            "memtrace/src/model/mod.rs",
            "memtrace-common/src/heap.rs",
            "xtask/src/main.rs",
        ] {
            assert_eq!(wrong(path, text), [(2, "is unsafe".to_owned())], "{path}");
        }
        is_fine("memtrace/src/probe/perf.rs", text);
        is_fine("memtrace-ebpf/src/heap.rs", text);
    }

    #[test]
    fn markers_are_found_in_any_text() {
        for marker in MARKERS {
            let text = format!("fine\n# {marker} x\n");
            assert_eq!(
                wrong("docs/notes.md", &text),
                [(2, format!("says {marker}"))]
            );
        }
        is_fine("docs/notes.md", "PIXTODOX\n");
    }

    #[test]
    fn a_file_has_an_end() {
        let long = "\n".repeat(LONGEST_FILE + 1);
        assert_eq!(
            wrong("tests/src/a.rs", &long),
            [(601, "601 lines, 600 at most".to_owned())]
        );
        is_fine("tests/src/a.rs", &"\n".repeat(LONGEST_FILE));
    }
}
