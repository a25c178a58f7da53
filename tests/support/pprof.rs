//! Profiles, read by Go's own reader.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::process::Command;

use crate::child::run;
use crate::scratch::Scratch;
use crate::workload::tool;

/// Totals by sample type, and the text, of a file or of what a URL serves.
pub fn totals(profile: impl AsRef<OsStr>) -> (BTreeMap<String, i64>, String) {
    let scratch = Scratch::new();
    let raw = run(Command::new(tool("go", "golang-go"))
        // What it fetches it keeps in a directory.
        .env("PPROF_TMPDIR", scratch.path("pprof"))
        .args(["tool", "pprof", "-raw"])
        .arg(profile))
    .output();
    let samples = raw.split_once("Samples:\n").expect("samples").1;
    let (types, rest) = samples.split_once('\n').expect("sample types");
    let types: Vec<&str> = types
        .split_whitespace()
        .map(|one| one.split(['/', '[']).next().unwrap())
        .collect();
    let mut totals: BTreeMap<String, i64> = BTreeMap::new();
    for line in rest.split_once("Locations\n").unwrap().0.lines() {
        // Labels stand on lines of their own.
        let Some((values, _)) = line.split_once(": ") else {
            continue;
        };
        let values: Vec<i64> = values
            .split_whitespace()
            .map_while(|value| value.parse().ok())
            .collect();
        if values.len() == types.len() {
            for (name, value) in types.iter().zip(values) {
                *totals.entry((*name).to_owned()).or_default() += value;
            }
        }
    }
    (totals, raw)
}
