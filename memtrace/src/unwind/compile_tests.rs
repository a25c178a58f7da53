use std::{fmt::Write as _, path::PathBuf, process::Command};

use memtrace_common::unwind::search;

use super::*;

const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

fn rules_of(path: &str) -> Vec<u64> {
    compile(&*std::fs::read(path).unwrap()).unwrap()
}

fn at(rows: &[u64], offset: u64) -> Rule {
    search(0, rows.len() as u32, offset as u32, |index| {
        rows.get(index as usize).copied()
    })
}

/// What readelf makes of a file's rules: (address, CFA, saved rbp, return address), as it prints them.
fn by_readelf(path: &str) -> Vec<(u64, String, String, String)> {
    let output = Command::new("readelf").args(["-wF", path]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let (mut columns, mut rows) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first() == Some(&"LOC") {
            columns = words.iter().map(|word| (*word).to_owned()).collect();
        } else if words.len() == columns.len()
            && let Some(address) = words
                .first()
                .and_then(|word| u64::from_str_radix(word, 16).ok())
            && words[0].len() == 16
        {
            let column = |name| {
                let index = columns.iter().position(|column| column == name);
                index.map_or("u", |index| words[index]).to_owned()
            };
            rows.push((address, column("CFA"), column("rbp"), column("ra")));
        }
    }
    rows
}

/// The rule as readelf would print it.
fn printed(rule: Rule) -> (String, String) {
    let (words, saved) = (rule.0 >> 3 & 0x1_ffff, rule.0 >> 20);
    let cfa = match rule.cfa() {
        1 => format!("rsp+{}", 8 * words),
        2 => format!("rbp+{}", 8 * words),
        _ => "other".to_owned(),
    };
    let bp = match saved {
        0 => "u".to_owned(),
        saved => format!("c-{}", 8 * saved),
    };
    (cfa, bp)
}

#[test]
fn rules_equal_those_that_readelf_prints() {
    let rows = rules_of(LOADER);
    let data = std::fs::read(LOADER).unwrap();
    let elf = ElfFile64::<Endianness>::parse(&*data).unwrap();
    let segments = segments(&elf, &*data);
    let (mut compared, mut wrong) = (0, String::new());
    let expected = by_readelf(LOADER);
    for (index, (address, cfa, bp, ra)) in expected.iter().enumerate() {
        // Where the next row has the same address it is the one that holds.
        if expected
            .get(index + 1)
            .is_some_and(|next| next.0 == *address)
        {
            continue;
        }
        let plain = cfa.starts_with("rsp+") || cfa.starts_with("rbp+");
        let segment = segments.iter().find(|one| one.addresses.contains(address));
        let (true, true, Some(segment)) = (plain, ra == "c-8", segment) else {
            continue;
        };
        let rule = at(&rows, address - segment.addresses.start + segment.offset);
        let bp = if bp.starts_with("c-") { bp } else { "u" };
        compared += 1;
        if printed(rule) != (cfa.clone(), bp.to_owned()) {
            writeln!(wrong, "{address:x}: {cfa} {bp} and not {:?}", printed(rule)).unwrap();
        }
    }
    assert!(compared > 1500, "{compared}");
    assert_eq!(wrong, "");
}

#[test]
fn the_trampoline_of_signals_is_known() {
    let rows = rules_of(LIBC);
    let signal = rows
        .iter()
        .filter(|&&row| Rule(row as u32).cfa() == Cfa::Signal as u32);
    assert_eq!(signal.count(), 1);
}

#[test]
fn tables_of_common_libraries_take_less_than_4_mib() {
    let python = [
        "/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0",
        "/usr/bin/python3.11",
    ];
    let python = python.into_iter().find(|path| PathBuf::from(path).exists());
    let files = [LIBC, "/lib/x86_64-linux-gnu/libstdc++.so.6"];
    let files = files.into_iter().chain(python);
    let bytes: usize = files.map(|path| 8 * rules_of(path).len()).sum();
    assert!(bytes > 100 << 10 && bytes < 4 << 20, "{bytes}");
}

#[test]
fn a_function_that_ends_before_it_begins_has_no_rows() {
    let segments = [Segment {
        addresses: 0x1000..0x3000,
        offset: 0,
        code: &[],
    }];
    for end in [0, 0x100, 0x1000, 0x2000] {
        let function = Function {
            range: 0x2000..end,
            rules: vec![(0x2000, Rule::plain(Cfa::Start))],
        };
        let mut rows = Rows::default();
        rows.add(&function, &segments).unwrap();
        assert_eq!(rows.finish(), [0u64; 0], "{end:x}");
    }
}

#[test]
fn damaged_tables_give_sorted_rows_or_an_error() {
    let whole = std::fs::read(LOADER).unwrap();
    let elf = ElfFile64::<Endianness>::parse(&*whole).unwrap();
    let (start, length) = elf
        .section_by_name(".eh_frame")
        .unwrap()
        .file_range()
        .unwrap();
    let mut state = 7u64;
    for round in 0..60 {
        let mut data = whole.clone();
        for _ in 0..20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Every fourth time anywhere in the headers.
            let place = if round % 4 == 0 {
                state % 4096
            } else {
                start + state % length
            };
            data[place as usize] = (state >> 40) as u8;
        }
        if let Ok(rows) = compile(&*data) {
            assert!(rows.is_sorted_by_key(|row| row >> 32), "round {round}");
            let _ = at(&rows, state);
        }
    }
    for length in (0..whole.len()).step_by(whole.len() / 20) {
        let _ = compile(&whole[..length]);
    }
}
