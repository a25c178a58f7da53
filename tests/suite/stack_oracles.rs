//! Stacks beside those of others: gdb call by call, heaptrack by its largest sites; and how far those of stock
//! programs reach.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use memtrace::report::document::Process;
use memtrace_tests::binary::Attached;
use memtrace_tests::expect::within;
use memtrace_tests::gdb;
use memtrace_tests::heaptrack_sites::{MAX_FRAMES, Site, bytes_by_site, file_name};
use memtrace_tests::oracle::record;
use memtrace_tests::stacks::{Stacks, allocated, cut};
use memtrace_tests::workload::{build, tool};
use memtrace_tests::{Scratch, Traced, trace};
use object::Object as _;

use crate::programs::Redis;

const SQL: &str = "create table t(a integer primary key, b text);
with recursive c(x) as (select 1 union all select x + 1 from c where x < 60)
insert into t select x, printf('row %d', x * 7919 % 100003) from c;
create index i on t(b);
select count(*), min(b), max(b) from t;";

const JSON: &str = "import json
text = json.dumps([{'id': i, 'name': 'row %d' % i, 'tags': [str(i % 7)]} for i in range(1000)])
rows = sorted(json.loads(text), key=lambda row: row['name'])
";

/// Without regular expressions, which json has: how they are compiled depends on addresses, which differ
/// from run to run.
const LISTS: &str = "import collections
rows = collections.deque(sorted([[i] * (i % 90) for i in range(1000)], key=len))
";

/// The same.
const ROWS: &str =
    "rows = [{'id': i, 'name': 'row %d' % i, 'tags': [str(i % 7)]} for i in range(2000)]
parts = sorted(repr(rows).split(', '), key=len)
";

fn python3() -> &'static str {
    tool("python3", "python3");
    "/usr/bin/python3"
}

/// The same program under a name that memtrace does not take for an interpreter's: others see its own functions, and
/// not those of Python.
fn unnamed_python3(scratch: &Scratch) -> String {
    let program = fs::canonicalize(python3()).expect("the program");
    let copy = scratch.copy(&program, "interpreter", 0o755);
    copy.to_str().expect("a path in UTF-8").to_owned()
}

/// Stacks of allocations before main, in the loader, are left out: gdb began later.
fn from(start: u64, stacks: &Stacks) -> Stacks {
    let begins = |stack: &[u64]| stack.last() == Some(&start);
    let stacks = stacks.iter().filter(|(stack, _)| begins(stack));
    stacks
        .map(|(stack, blocks)| (stack.clone(), *blocks))
        .collect()
}

/// Asserts that gdb and memtrace see the same calls on the same stacks.
#[track_caller]
fn assert_as_gdb(command: &[&str], calls: u64) {
    let expected = gdb::allocated(command);
    let traced = gdb::trace_alike(command);
    traced.nothing_lost();
    let seen = allocated(traced.first());
    let total: u64 = expected.values().map(|blocks| blocks.blocks).sum();
    assert!(total >= calls, "{total} calls");
    for (stack, blocks) in &expected {
        assert_eq!(seen.get(stack), Some(blocks), "{stack:x?}");
    }
    let starts = expected.keys().filter_map(|stack| stack.last());
    for &start in starts {
        for stack in from(start, &seen).keys() {
            assert!(expected.contains_key(stack), "gdb has no {stack:x?}");
        }
    }
}

#[test]
fn a_thousand_stacks_of_a_program_without_frame_pointers_equal_those_of_gdb() {
    let flags = ["-O2", "-fomit-frame-pointer"];
    let program = build("stacks.cpp", "g++", &flags, "g++");
    assert_as_gdb(
        &[program.to_str().expect("a path in UTF-8"), "silent"],
        1000,
    );
}

#[test]
fn stacks_of_sqlite3_and_python3_equal_those_of_gdb() {
    let scratch = Scratch::new();
    let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let sql = text(&scratch.write("fill.sql", SQL));
    let sqlite3 = text(&tool("sqlite3", "sqlite3"));
    assert_as_gdb(&[&sqlite3, "-init", &sql, ":memory:", ".quit"], 800);
    let script = text(&scratch.write("work.py", LISTS));
    assert_as_gdb(&[&unnamed_python3(&scratch), "-S", &script], 1000);
}

/// It makes its tables of commands and settings, by jemalloc, before it looks at what it is asked for.
#[test]
fn stacks_of_a_redis_server_that_starts_equal_those_of_gdb() {
    let redis = tool("redis-server", "redis-server");
    let command = [redis.to_str().expect("a path in UTF-8"), "--version"];
    let expected = gdb::first_allocated(&command, 1000);
    let traced = gdb::trace_alike(&command);
    traced.nothing_lost();
    let seen = allocated(traced.first());
    for (stack, first) in &expected {
        let all = seen.get(stack).copied().unwrap_or_default();
        let there = all.blocks >= first.blocks && all.bytes >= first.bytes;
        assert!(there, "{stack:x?}: {first:?} of {all:?}");
    }
    let calls: u64 = expected.values().map(|blocks| blocks.blocks).sum();
    assert_eq!(calls, 1000);
}

/// Allocations of a process, and those of them whose stack begins in the program's entry.
fn from_the_entry(process: &Process) -> (u64, u64) {
    let path = fs::canonicalize(&process.exe).expect("the program");
    let program = fs::read(&path).expect("the program");
    let elf = object::File::parse(&*program).expect("an ELF file");
    let (mut all, mut whole) = (0, 0);
    for site in &process.sites {
        let totals = &site.totals;
        let calls = totals.allocations + totals.reallocations;
        all += calls;
        let outermost = process.stack(&site.stack).last();
        let begins = outermost.is_some_and(|frame| {
            // _start is a few instructions, of which one calls; it is at the same place in its page wherever it is.
            let distance = frame.address.wrapping_sub(elf.entry()) & 0xfff;
            frame.module.as_deref().map(Path::new) == Some(&path) && distance < 64
        });
        whole += if begins { calls } else { 0 };
    }
    (all, whole)
}

#[track_caller]
fn assert_reach_the_start(traced: &Traced, process: &Process) {
    traced.nothing_lost();
    let (all, whole) = from_the_entry(process);
    assert!(
        all > 1000 && whole * 1000 >= all * 995,
        "{whole} of {all}: {:?}",
        cut(traced)
    );
}

#[test]
fn stacks_of_python3_and_sqlite3_reach_the_start() {
    let scratch = Scratch::new();
    let script = scratch.write("work.py", JSON);
    let traced = trace(&[python3().as_ref(), script.as_os_str()]);
    traced.finished.exited(0);
    assert_reach_the_start(&traced, traced.first());
    let sqlite3 = tool("sqlite3", "sqlite3");
    let sql = SQL.replace("x < 60", "x < 5000");
    let traced = trace(&[sqlite3.as_os_str(), ":memory:".as_ref(), sql.as_ref()]);
    traced.finished.exited(0);
    assert_reach_the_start(&traced, traced.first());
}

#[test]
fn stacks_of_a_redis_server_under_load_reach_the_start() {
    let redis = Redis::start();
    let trace = Attached::to(redis.pid());
    redis.load(5000);
    let traced = trace.stop();
    assert_reach_the_start(&traced, traced.process(redis.pid().into()));
}

/// Bytes by site as heaptrack would have them.
fn by_site(process: &Process) -> HashMap<Site, u64> {
    let mut sites = HashMap::new();
    for site in &process.sites {
        let frames = process.stack(&site.stack).filter(|frame| !frame.inlined);
        let call = |frame: &memtrace::report::document::Frame| {
            let module = frame.module.as_deref().unwrap_or_default();
            (file_name(module), (frame.address - 1) & 0xfff)
        };
        let key: Site = frames.map(call).take(MAX_FRAMES).collect();
        *sites.entry(key).or_default() += site.totals.bytes_allocated;
    }
    sites
}

fn largest(sites: &HashMap<Site, u64>) -> Vec<(&Site, u64)> {
    let mut sites: Vec<_> = sites.iter().map(|(site, bytes)| (site, *bytes)).collect();
    sites.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    sites.truncate(10);
    sites
}

#[test]
fn the_ten_sites_with_most_bytes_are_those_of_heaptrack() {
    let scratch = Scratch::new();
    let script = scratch.write("work.py", ROWS);
    let interpreter = unnamed_python3(&scratch);
    let command = [interpreter.as_ref(), "-S".as_ref(), script.as_os_str()];
    let environment = [("PYTHONMALLOC", "malloc"), ("PYTHONHASHSEED", "0")];
    let mut expected = bytes_by_site(&record(&command, &environment, &scratch));
    // heaptrack brings the C++ library and its first allocation into the process.
    expected.retain(|site, _| !site.iter().any(|(module, _)| module.contains("stdc++")));
    let assignments = environment.map(|(name, value)| format!("{name}={value}"));
    let with_environment = [
        "env".as_ref(),
        assignments[0].as_ref(),
        assignments[1].as_ref(),
    ];
    let traced = trace(&[&with_environment[..], &command[..]].concat());
    traced.finished.exited(0);
    traced.nothing_lost();
    let seen = by_site(traced.first());
    for ((site, bytes), (_, other)) in largest(&expected).into_iter().zip(largest(&seen)) {
        within(
            0.1,
            seen.get(site).copied().unwrap_or(0),
            bytes,
            &format!("{site:x?}"),
        );
        within(0.1, other, bytes, "the one of that rank");
    }
}
