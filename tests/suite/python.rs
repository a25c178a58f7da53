//! Functions of a Python program stand in the place of the interpreter's loop, as Python itself tells them.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry};
use std::path::{Path, PathBuf};
use std::process::Command;

use memtrace::report::document::{FoundBy, Leak};
use memtrace_tests::binary::Attached;
use memtrace_tests::child::run;
use memtrace_tests::workload::tool;
use memtrace_tests::{Running, Scratch, memtrace};

/// Keeps blocks of sizes that nothing else has, and prints who called there: name, file and line, innermost first.
const SCRIPT: &str = r#"
import json, os, sys, threading

print("ready", flush=True)
sys.stdin.readline()

kept, told = [], {}

def callers(size):
    frame, found = sys._getframe(1), []
    while frame is not None:
        code = frame.f_code
        found.append([code.co_qualname, code.co_filename, frame.f_lineno])
        frame = frame.f_back
    told[size] = found
    return size - 33  # sys.getsizeof(b"") and the bytes

class Store:
    def keep(self, size):
        kept.append(bytes(callers(size)))

def recursive(depth, a=0, b=0, c=0, d=0, e=0, f=0, g=0, h=0):
    if depth > 0:
        return recursive(depth - 1)
    Store().keep(50101)

def through_c():
    # sort() is C: it calls the interpreter's loop anew.
    [1].sort(key=lambda one: kept.append(bytes(callers(50201))))

def generator():
    kept.append(bytes(callers(50301)))
    yield 1

def für(
    unused,
):
    x = [
        unused,
        kept.append(bytes(callers(50401))),
    ]
    return x

def comprehension():
    return [kept.append(bytes(callers(50501))) for _ in range(1)]

recursive(100)  # More than a chunk of Python's frames, 16 KiB, has room for.
through_c()
sum(generator())
für(1)
comprehension()
exec(compile("\n\nkept.append(bytes(callers(50601)))", "<made>", "exec"))
LONG
thread = threading.Thread(target=Store().keep, args=(50801,))
thread.start()
thread.join()
kept.append(bytes(callers(50901)))
print(json.dumps(told), flush=True)
os._exit(0)
"#;

/// A function so long that its line table has more than the usual bytes.
fn long_function() -> String {
    let lines = "    x = [1, 2, 3, {'a': 4}]\n".repeat(150);
    format!("def long():\n{lines}    kept.append(bytes(callers(50701)))\nlong()\n")
}

/// Name, file and line of the functions that a leak's stack has.
fn functions(leak: &Leak) -> Vec<(String, String, u32)> {
    let python = |frame: &&memtrace::report::document::Frame| frame.found_by == FoundBy::Python;
    let frames = leak.stack.iter().filter(python);
    frames
        .map(|frame| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            (
                text(&frame.function),
                text(&frame.file),
                frame.line.unwrap_or(0),
            )
        })
        .collect()
}

/// A CPython of a series that Debian does not have, as pyenv(1) installs it.
fn of_pyenv(series: &str) -> PathBuf {
    let home = || Some(Path::new(&std::env::var_os("HOME")?).join(".pyenv"));
    let root = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(home);
    let versions = root.and_then(|root| fs::read_dir(root.join("versions")).ok());
    let of_series = |entry: &DirEntry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with(&format!("{series}."))
    };
    let mut found = versions.into_iter().flatten().flatten().filter(of_series);
    let version = found.next();
    let version = version.unwrap_or_else(|| panic!("no CPython {series}: pyenv install {series}"));
    version.path().join(format!("bin/python{series}"))
}

#[test]
fn python_functions_files_and_lines_are_those_that_python_tells() {
    tool("python3.11", "python3");
    assert_as_python_tells(Path::new("/usr/bin/python3.11"));
}

#[test]
#[ignore = "needs CPython 3.12 and 3.13 of pyenv: cargo xtask test runs it where they are"]
fn pyenvs_3_12_tells_the_same() {
    assert_as_python_tells(&of_pyenv("3.12"));
}

#[test]
#[ignore = "needs CPython 3.12 and 3.13 of pyenv: cargo xtask test runs it where they are"]
fn pyenvs_3_13_tells_the_same() {
    assert_as_python_tells(&of_pyenv("3.13"));
}

/// sort() calls a function whose first act, before it has begun, is to make a cell.
const CELLS: &str = "\
import os, sys
kept = []
def key(x):
    kept.append(lambda: x)
    return 0
print('ready', flush=True)
sys.stdin.readline()
list(range(1000)).sort(key=key)
os._exit(0)
";

/// The interpreter does not tell such a function, and its call of the loop does not pass for another's.
#[test]
#[ignore = "needs CPython 3.12 and 3.13 of pyenv: cargo xtask test runs it where they are"]
fn pyenvs_function_that_has_not_begun_leaves_the_loops_own_frame() {
    for series in ["3.12", "3.13"] {
        let scratch = Scratch::new();
        let script = scratch.write("cells.py", CELLS);
        let mut command = Command::new(of_pyenv(series));
        let mut program = Running::start(command.env("PYTHONMALLOC", "malloc").arg(&script));
        program.stdout_has("ready");
        let trace = Attached::to(program.pid());
        program.send(b"\n");
        let traced = trace.wait();
        program.finish().exited(0);
        let place = |leak: &Leak, part: &str| {
            let mut names = leak.stack.iter().map(|frame| frame.function.as_deref());
            names.position(|name| name.is_some_and(|name| name.contains(part)))
        };
        let leaks = &traced.first().leaks;
        let cells = leaks
            .iter()
            .find(|leak| leak.blocks == 1000 && place(leak, "PyCell_New").is_some());
        let cells = cells.unwrap_or_else(|| panic!("{series}: {leaks:?}"));
        let path = script.to_str().expect("a path in UTF-8").to_owned();
        assert_eq!(functions(cells), [("<module>".to_owned(), path, 8)]);
        let order = [
            "PyCell_New",
            "_PyEval_EvalFrameDefault",
            "list_sort",
            "<module>",
        ];
        let places = order.map(|part| place(cells, part));
        assert!(places.is_sorted() && places[0].is_some(), "{places:?}");
    }
}

#[track_caller]
fn assert_as_python_tells(interpreter: &Path) {
    let scratch = Scratch::new();
    let script = scratch.write("app.py", SCRIPT.replace("LONG\n", &long_function()));
    let recording = scratch.path("recording");
    // What is attached to is known before it is traced: a program that has just begun is not yet, for a moment.
    let mut command = Command::new(interpreter);
    let mut program = Running::start(command.env("PYTHONMALLOC", "malloc").arg(&script));
    program.stdout_has("ready");
    let path = recording.to_str().expect("a path in UTF-8");
    let trace = Attached::with(program.pid(), &["-o", path]);
    program.send(b"\n");
    let traced = trace.wait();
    let finished = program.finish();
    finished.exited(0);
    traced.nothing_lost();
    let told: BTreeMap<u64, Vec<(String, String, u32)>> = serde_json::from_str(
        finished
            .output()
            .lines()
            .last()
            .expect("what the script printed"),
    )
    .expect("its JSON");
    assert_eq!(told.len(), 9);
    let process = traced.first();
    for (size, expected) in &told {
        let leak = process.leaks.iter().find(|leak| leak.bytes == *size);
        let leak = leak.unwrap_or_else(|| panic!("no leak of {size} bytes"));
        assert_eq!(&functions(leak), expected, "{size} bytes");
        let loops = |leak: &Leak| {
            let mut names = leak.stack.iter().map(|frame| frame.function.as_deref());
            names.any(|name| name.is_some_and(|name| name.starts_with("_PyEval_EvalFrameDefault")))
        };
        assert!(!loops(leak), "{:?}", leak.stack);
    }
    let unresolved = traced
        .document
        .coverage
        .lost_by_reason
        .get("python_unresolved");
    assert_eq!(unresolved, None);
    let report = run(memtrace(&["report", "leaks", "--from"]).arg(&recording));
    let text = report.exited(0).output();
    assert!(text.contains("  Store.keep (app.py:20)\n"), "{text}");
}
