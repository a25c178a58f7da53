//! Every allocation of a program and its stack, as gdb sees them.

use std::fs;
use std::process::Command;

use crate::binary::{Traced, path, read};
use crate::child::run;
use crate::scratch::Scratch;
use crate::stacks::Stacks;
use crate::workload::tool;

/// Stops at each call of the allocating functions from `__libc_start_main` on, and writes its size and
/// the return addresses of its callers. `realloc` of nothing goes on in `malloc`, where it is seen, but in jemalloc.
/// Frames of inlined functions and of tail calls are on no stack.
const SCRIPT: &str = r#"
import gdb
for setting in ("startup-with-shell on", "debuginfod enabled off", "pagination off", "confirm off",
                "backtrace past-main on", "backtrace past-entry on", "breakpoint pending on"):
    gdb.execute("set " + setting)
for variable in ("LINES", "COLUMNS"):
    gdb.execute("unset environment " + variable)
out = open(CALLS, "w")
left = LIMIT
class Entry(gdb.Breakpoint):
    def __init__(self, function, size):
        address = int(gdb.parse_and_eval("(unsigned long)&" + function))
        super().__init__("*%d" % address)
        self.of_nothing = function == "realloc" and "jemalloc" not in (gdb.solib_name(address) or "")
        self.size = size
    def stop(self):
        global left
        if self.of_nothing and int(gdb.parse_and_eval("$rdi")) == 0:
            return False
        words = [str(int(gdb.parse_and_eval(self.size)))]
        frame = gdb.newest_frame().older()
        while frame is not None:
            if frame.type() in (gdb.NORMAL_FRAME, gdb.SIGTRAMP_FRAME):
                words.append("%x" % frame.pc())
            frame = frame.older()
        out.write(" ".join(words) + "\n")
        left -= 1
        return left == 0
gdb.execute("tbreak __libc_start_main")
gdb.execute("run")
Entry("malloc", "(unsigned long)$rdi")
Entry("calloc", "(unsigned long)$rdi * (unsigned long)$rsi")
Entry("realloc", "(unsigned long)$rsi")
gdb.execute("continue")
out.close()
"#;

/// What a program sees of its surroundings, and allocates by, is the same under gdb and under memtrace.
fn alike(command: &mut Command) -> &mut Command {
    let environment = [
        ("PATH", "/usr/bin:/bin"),
        ("HOME", "/"),
        ("SHELL", "/bin/sh"),
        // The shell that gdb starts programs by sets it.
        ("PWD", "/"),
        ("PYTHONHASHSEED", "0"),
    ];
    command.env_clear().envs(environment).current_dir("/")
}

/// What a command allocates in its own run under gdb, by stack. Addresses are not random there.
#[track_caller]
pub fn allocated(command: &[&str]) -> Stacks {
    calls(command, 0)
}

/// What its first calls allocate, so many of them; the command is ended then.
#[track_caller]
pub fn first_allocated(command: &[&str], count: u32) -> Stacks {
    calls(command, count)
}

/// `limit` calls, all for 0.
#[track_caller]
fn calls(command: &[&str], limit: u32) -> Stacks {
    let scratch = Scratch::new();
    let calls = scratch.path("calls");
    let script = format!("CALLS, LIMIT = {calls:?}, {limit}\n{SCRIPT}");
    let script = scratch.write("calls.py", script);
    let mut gdb = Command::new(tool("gdb", "gdb"));
    gdb.args(["-nx", "-batch", "-x"]).arg(script).arg("--args");
    let finished = run(alike(gdb.args(command)));
    let calls = fs::read_to_string(calls).unwrap_or_default();
    let mut stacks = Stacks::new();
    for line in calls.lines() {
        let mut words = line.split(' ');
        let size = words.next().and_then(|size| size.parse().ok());
        let address = |word: &str| u64::from_str_radix(word, 16).expect("an address");
        let blocks = stacks.entry(words.map(address).collect()).or_default();
        blocks.add(1, size.expect("a size"));
    }
    assert!(!stacks.is_empty(), "{}", finished.messages());
    stacks
}

/// Traces a command in the surroundings that [`allocated`] gives it, with the same addresses.
#[track_caller]
pub fn trace_alike(command: &[&str]) -> Traced {
    let scratch = Scratch::new();
    let report = scratch.path("report.json");
    let mut memtrace = Command::new(tool("setarch", "util-linux"));
    memtrace.arg("-R").arg(path());
    memtrace.args(["run", "--format", "json", "--report-file"]);
    memtrace.arg(&report).arg("--").args(command);
    let finished = run(alike(&mut memtrace));
    finished.exited(0);
    read(finished, &report)
}
