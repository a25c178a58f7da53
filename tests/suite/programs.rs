//! Real programs, unmodified: heaptrack sees the same allocations, and nobody sees a difference.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use memtrace::report::document::Process;
use memtrace_tests::binary::{Attached, heap};
use memtrace_tests::child::run;
use memtrace_tests::expect::within;
use memtrace_tests::oracle::{Heaptrack, heaptrack, same_as_untraced};
use memtrace_tests::workload::tool;
use memtrace_tests::{Running, Scratch, Traced};

/// Some functions to compile.
pub fn generated_source(functions: usize) -> String {
    let mut source = String::from("#include <stdio.h>\n#include <stdlib.h>\n");
    for i in 0..functions {
        let body = "for (int j = 0; j < n; j++) { s += (j ^ k) * s; if (s % 3 == 0) s /= 3; }";
        writeln!(
            source,
            "int f{i}(int n, int k) {{ int s = {i}; {body} return s; }}"
        )
        .expect("write to a string");
    }
    let calls: String = (0..functions)
        .map(|i| format!("s += f{i}(s, {i});"))
        .collect();
    writeln!(
        source,
        "int main(void) {{ int s = 1; {calls} printf(\"%d\\n\", s); return 0; }}"
    )
    .expect("write");
    source
}

const PYTHON: &str = "
import json, random
random.seed(1)
rows = [{'id': i, 'name': 'row %d' % random.randrange(10**6), 'tags': [str(i % 7), str(i % 11)]} for i in range(6000)]
text = json.dumps(rows)
back = sorted(json.loads(text), key=lambda row: (row['name'], row['id']))
print(len(text), back[0], back[-1])
";

fn compare_with_heaptrack(process: &Process, command: &[String]) {
    compare(process, &heaptrack(command, &[]));
}

fn compare(process: &Process, expected: &Heaptrack) {
    let seen = heap(process);
    within(
        0.1,
        seen.allocations + seen.reallocations,
        expected.calls,
        "calls to allocation functions",
    );
    let allowed = expected.peak_bytes / 100 + expected.peak_rounding;
    let difference = seen.peak_live_bytes.abs_diff(expected.peak_bytes);
    assert!(
        difference <= allowed,
        "peak {}, heaptrack {}",
        seen.peak_live_bytes,
        expected.peak_bytes
    );
}

#[test]
fn python_allocates_what_heaptrack_sees() {
    tool("python3", "python3");
    let scratch = Scratch::new();
    let script = scratch.write("work.py", PYTHON);
    let python = [
        "/usr/bin/python3".to_owned(),
        script.to_str().expect("a path in UTF-8").to_owned(),
    ];
    // Every malloc of the interpreter, in the same order in every run.
    let environment = [("PYTHONMALLOC", "malloc"), ("PYTHONHASHSEED", "0")];
    let mut command = vec!["env".to_owned()];
    command.extend(environment.map(|(name, value)| format!("{name}={value}")));
    command.extend_from_slice(&python);
    let (_, traced) = same_as_untraced(&command);
    traced.nothing_lost();
    compare(traced.first(), &heaptrack(&python, &environment));
}

#[test]
fn sqlite_allocates_what_heaptrack_sees() {
    let scratch = Scratch::new();
    let sqlite = tool("sqlite3", "sqlite3")
        .to_str()
        .expect("a path in UTF-8")
        .to_owned();
    let fill = "create table t(a integer primary key, b text);
        with recursive c(x) as (select 1 union all select x + 1 from c where x < 100000)
        insert into t select x, printf('row %d', x * 7919 % 100003) from c;
        create index i on t(b);
        select count(*), min(b), max(b), sum(length(b)) from t;";
    let script = scratch.write("fill.sql", fill);
    let read = format!(".read {}", script.display());
    let command = [
        sqlite,
        "-init".to_owned(),
        "/dev/null".to_owned(),
        ":memory:".to_owned(),
        read,
    ];
    let (_, traced) = same_as_untraced(&command);
    traced.nothing_lost();
    compare_with_heaptrack(traced.first(), &command);
}

/// The preprocessed source as gcc's compiler proper compiles it.
fn compiler_proper(scratch: &Scratch) -> Vec<String> {
    let gcc = tool("gcc", "gcc");
    let cc1 = run(Command::new(&gcc).arg("-print-prog-name=cc1")).output();
    let source = scratch.write("many.c", generated_source(80));
    let preprocessed = scratch.path("many.i");
    run(Command::new(&gcc)
        .arg("-E")
        .arg(&source)
        .arg("-o")
        .arg(&preprocessed))
    .exited(0);
    let text = |path: PathBuf| path.to_str().expect("a path in UTF-8").to_owned();
    let output = text(scratch.path("many.s"));
    vec![
        cc1.trim().to_owned(),
        "-quiet".into(),
        "-O2".into(),
        text(preprocessed),
        "-o".into(),
        output,
    ]
}

#[test]
fn the_compiler_proper_allocates_what_heaptrack_sees() {
    let scratch = Scratch::new();
    let command = compiler_proper(&scratch);
    let (_, traced) = same_as_untraced(&command);
    traced.nothing_lost();
    compare_with_heaptrack(traced.first(), &command);
}

#[test]
fn gcc_compiles_the_same_file_and_its_whole_tree_is_reported() {
    let scratch = Scratch::new();
    let source = scratch.write("many.c", generated_source(80));
    let program = scratch.path("many");
    let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let command = [
        "gcc".to_owned(),
        "-O2".into(),
        text(&source),
        "-o".into(),
        text(&program),
    ];
    run(Command::new(tool("gcc", "gcc")).args(&command[1..])).exited(0);
    let untraced = fs::read(&program).expect("the program");
    let traced = memtrace_tests::trace(&command);
    traced.finished.exited(0);
    assert!(
        fs::read(&program).expect("the program") == untraced,
        "the same program, byte for byte"
    );
    assert_tree(&traced);
}

/// The driver starts the compiler, the assembler and the linker, each the parent's child and each with a heap.
fn assert_tree(traced: &Traced) {
    let driver = traced.first().pid;
    for (part, parent) in [("cc1", Some(driver)), ("collect2", Some(driver))] {
        let found = traced.running(part);
        assert_eq!(found.len(), 1, "one {part}");
        assert!(
            parent.is_none_or(|parent| found[0].parent_pid == parent),
            "{part}'s parent"
        );
    }
    let count = traced.document.processes.len();
    assert!(count >= 5, "driver, cc1, as, collect2 and ld, not {count}");
    for process in &traced.document.processes {
        assert!(
            heap(process).allocations > 0,
            "{} allocated nothing",
            process.exe
        );
        assert_eq!(
            process.exit.and_then(|exit| exit.code),
            Some(0),
            "{}",
            process.exe
        );
        assert!(
            process
                .end_time_ns
                .is_some_and(|end| end >= process.start_time_ns),
            "{}",
            process.exe
        );
    }
}

/// A redis server on a socket of its own.
pub struct Redis {
    server: Running,
    socket: String,
    _scratch: Scratch,
}

impl Redis {
    pub fn start() -> Redis {
        let scratch = Scratch::new();
        let socket = scratch
            .path("socket")
            .to_str()
            .expect("a path in UTF-8")
            .to_owned();
        let mut command = Command::new(tool("redis-server", "redis-server"));
        command.args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--unixsocket",
            &socket,
        ]);
        let server = Running::start(command.current_dir(scratch.path("")));
        server.stdout_has("eady to accept connections");
        Redis {
            server,
            socket,
            _scratch: scratch,
        }
    }

    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Sets so many keys of a million.
    pub fn load(&self, sets: u32) {
        let mut load = Command::new(tool("redis-benchmark", "redis-tools"));
        load.args(["-s", &self.socket, "-t", "set", "-n", &sets.to_string()]);
        load.args(["-r", "1000000", "-d", "200", "-q"]);
        run(&mut load).exited(0);
    }

    fn ask(&self, question: &[&str]) -> String {
        let mut command = Command::new(tool("redis-cli", "redis-tools"));
        run(command.args(["-s", &self.socket]).args(question))
            .exited(0)
            .output()
    }

    fn number(&self, section: &str, key: &str) -> u64 {
        let text = self.ask(&["info", section]);
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or_else(|| panic!("no {key} in {text}"))
    }
}

#[test]
fn redis_under_load_is_traced_by_attach_and_goes_on() {
    let redis = Redis::start();
    let trace = Attached::to(redis.server.pid());
    let before = redis.number("memory", "used_memory");
    redis.load(20_000);
    let keys: u64 = redis
        .ask(&["dbsize"])
        .trim()
        .parse()
        .expect("a number of keys");
    let grown = redis.number("memory", "used_memory") - before;
    let traced = trace.stop();
    assert_eq!(redis.ask(&["ping"]).trim(), "PONG", "the server goes on");

    traced.nothing_lost();
    let heap = heap(traced.process(redis.server.pid().into()));
    // redis says what it uses as the allocator rounds it up: a quarter at most.
    assert!(
        heap.live_bytes <= grown + grown / 20,
        "{} live, redis says {grown}",
        heap.live_bytes
    );
    assert!(
        heap.live_bytes >= grown * 3 / 4,
        "{} live, redis says {grown}",
        heap.live_bytes
    );
    assert!(
        heap.live_blocks >= keys,
        "{} blocks for {keys} keys",
        heap.live_blocks
    );
    assert_eq!((heap.invalid_frees, heap.double_frees), (Some(0), Some(0)));
}
