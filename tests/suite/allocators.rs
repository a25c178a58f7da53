//! Every allocator, as a library, preloaded and linked statically: the same known calls, counted exactly.

use std::path::{Path, PathBuf};
use std::process::Command;

use memtrace::report::document::{Heap, Process};
use memtrace_tests::binary::heap;
use memtrace_tests::child::run;
use memtrace_tests::expect::number;
use memtrace_tests::steps::Steps;
use memtrace_tests::workload::{build, library, tool, workload};
use memtrace_tests::{Scratch, memtrace, trace, trace_with};
use serde_json::Value;

const CALLS: &str = "10000";
/// As long as the other, since a program may copy its arguments.
const NO_CALLS: &str = "00000";

/// Compares a run with calls and one without: the rest is what the program's start-up allocates.
#[track_caller]
fn assert_exact(before: &[&str], program: &Path) {
    let program = program.to_str().expect("a path in UTF-8");
    assert_exact_command(&[before, &[program]].concat());
}

/// The same for a command whose last argument is the number of calls.
#[track_caller]
fn assert_exact_command(command: &[&str]) {
    assert_exact_with(&[], command, CALLS);
}

/// The same with options of `run`, and another number of calls, of as many digits.
#[track_caller]
fn assert_exact_with(options: &[&str], command: &[&str], calls: &str) {
    let traced = |calls| {
        let traced = trace_with(options, &[command, &[calls]].concat());
        traced.finished.exited(0);
        traced.nothing_lost();
        let counted = traced.finished.object();
        (heap(traced.process(number(&counted, "pid"))), counted)
    };
    let ((idle, _), (busy, counted)) = (traced(NO_CALLS), traced(calls));
    assert_difference(idle, busy, &counted);
}

#[track_caller]
fn assert_difference(idle: Heap, busy: Heap, counted: &Value) {
    let seen = [
        ("allocations", busy.allocations - idle.allocations),
        ("reallocations", busy.reallocations - idle.reallocations),
        ("frees", busy.frees - idle.frees),
        (
            "bytes_allocated",
            busy.bytes_allocated - idle.bytes_allocated,
        ),
        ("live_blocks", busy.live_blocks - idle.live_blocks),
    ];
    for (key, difference) in seen {
        assert_eq!(difference, number(counted, key), "{key}");
    }
    assert_eq!(
        (
            busy.invalid_frees,
            busy.double_frees,
            busy.failed - idle.failed
        ),
        (Some(0), Some(0), 0)
    );
}

fn dynamic(library: &str, package: &str) -> PathBuf {
    build("counts.c", "gcc", &["-Wl,--no-as-needed", library], package)
}

#[track_caller]
fn assert_preloaded(soname: &str, package: &str) {
    let preload = format!("LD_PRELOAD={}", library(soname, package));
    assert_exact(&["env", &preload], &workload("counts.c"));
    assert_exact(&["env", &preload], &workload("news.cpp"));
}

/// A static archive in a program that is otherwise dynamic.
fn archive(archive: &str, package: &str) -> PathBuf {
    let archive = library(archive, package);
    build(
        "counts.c",
        "gcc",
        &[&archive, "-lstdc++", "-lm", "-ldl"],
        package,
    )
}

/// A program that calls an allocator by the names of its own.
fn prefixed(prefix: &str, library: &str, package: &str) -> PathBuf {
    let names = ["malloc", "calloc", "realloc", "free"];
    let mut flags: Vec<String> = names
        .iter()
        .map(|name| format!("-D{}={prefix}{name}", name.to_uppercase()))
        .collect();
    flags.push(library.to_owned());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    build("counts.c", "gcc", &flags, package)
}

#[test]
fn glibc_dynamic() {
    assert_exact(&[], &workload("counts.c"));
}

#[test]
fn glibc_static() {
    assert_exact(&[], &build("counts.c", "gcc", &["-static"], "libc6-dev"));
}

#[test]
fn glibc_static_and_position_independent() {
    assert_exact(
        &[],
        &build("counts.c", "gcc", &["-static-pie"], "libc6-dev"),
    );
}

#[test]
fn new_and_delete_in_all_forms_are_counted_once() {
    assert_exact(&[], &workload("news.cpp"));
}

#[test]
fn new_and_delete_static() {
    assert_exact(
        &[],
        &build("news.cpp", "g++", &["-static"], "libstdc++-12-dev"),
    );
}

#[test]
fn jemalloc_dynamic() {
    assert_exact(&[], &dynamic("-ljemalloc", "libjemalloc-dev"));
}

#[test]
fn jemalloc_preloaded() {
    assert_preloaded("libjemalloc.so.2", "libjemalloc2");
}

#[test]
fn jemalloc_static() {
    assert_exact(&[], &archive("libjemalloc.a", "libjemalloc-dev"));
}

#[test]
fn jemalloc_with_everything_static() {
    let flags = ["-static", "-ljemalloc", "-lstdc++", "-lm"];
    assert_exact(&[], &build("counts.c", "gcc", &flags, "libjemalloc-dev"));
}

#[test]
fn jemallocs_own_calls() {
    assert_exact(
        &[],
        &build("mallocx.c", "gcc", &["-ljemalloc"], "libjemalloc-dev"),
    );
}

#[test]
fn jemalloc_under_new_and_delete() {
    assert_exact(
        &[],
        &build(
            "news.cpp",
            "g++",
            &["-Wl,--no-as-needed", "-ljemalloc"],
            "libjemalloc-dev",
        ),
    );
}

#[test]
fn tcmalloc_dynamic() {
    assert_exact(
        &[],
        &dynamic("-ltcmalloc_minimal", "libgoogle-perftools-dev"),
    );
}

#[test]
fn tcmalloc_preloaded() {
    assert_preloaded("libtcmalloc_minimal.so.4", "libtcmalloc-minimal4");
}

#[test]
fn tcmalloc_static() {
    assert_exact(
        &[],
        &archive("libtcmalloc_minimal.a", "libgoogle-perftools-dev"),
    );
}

#[test]
fn tcmallocs_own_names() {
    assert_exact(
        &[],
        &prefixed("tc_", "-ltcmalloc_minimal", "libgoogle-perftools-dev"),
    );
}

#[test]
fn mimalloc_dynamic() {
    assert_exact(&[], &dynamic("-lmimalloc", "libmimalloc-dev"));
}

#[test]
fn mimalloc_preloaded() {
    assert_preloaded("libmimalloc.so.2", "libmimalloc2.0");
}

/// Debian has no archive of it; Rust programs are where it is linked statically.
#[test]
fn mimalloc_static_in_a_rust_program() {
    assert_exact(&[], Path::new(env!("CARGO_BIN_EXE_mimalloc-static")));
}

/// A malloc that hands on to the next one is no allocator: each call is one call, each free is a good one.
#[test]
fn a_preloaded_wrapper_is_seen_through() {
    let wrapper = build("wrapper.c", "gcc", &["-shared", "-fPIC"], "gcc");
    let preload = format!("LD_PRELOAD={}", wrapper.display());
    assert_exact(&["env", &preload], &workload("counts.c"));
}

#[test]
fn mimallocs_own_names() {
    assert_exact(&[], &prefixed("mi_", "-lmimalloc", "libmimalloc-dev"));
}

/// No C library here exports cfree, nor C23's frees: an allocator of the test's own does.
#[track_caller]
fn assert_every_free(prefix: &str) {
    let prefix = format!("-DPREFIX={prefix}");
    let library = build("bump.c", "gcc", &[&prefix, "-shared", "-fPIC"], "gcc");
    let library = library.to_str().expect("a path in UTF-8");
    assert_exact(&[], &build("frees.c", "gcc", &[&prefix, library], "gcc"));
}

/// With stacks the caller of each function is known when it is entered, without when it returns.
#[test]
fn what_an_allocator_calls_itself_is_not_counted_with_and_without_stacks() {
    let flags = ["-DALLOCATOR", "-shared", "-fPIC", "-fno-toplevel-reorder"];
    let library = build("pooled.c", "gcc", &flags, "gcc");
    let library = library.to_str().expect("a path in UTF-8");
    let program = build("pooled.c", "gcc", &[library], "gcc");
    let program = program.to_str().expect("a path in UTF-8");
    for options in [&[][..], &["--no-stacks"]] {
        assert_exact_with(options, &[program], "01000");
    }
}

#[test]
fn cfree_and_c23s_frees_are_counted() {
    assert_every_free("");
}

#[test]
fn cfree_and_c23s_frees_under_other_names_are_counted() {
    for prefix in ["je_", "_rjem_", "mi_", "tc_"] {
        assert_every_free(prefix);
    }
}

#[test]
fn cfree_and_c23s_frees_in_the_program_itself_are_counted() {
    let bump = build("bump.c", "gcc", &["-DPREFIX=", "-c"], "gcc");
    let bump = bump.to_str().expect("a path in UTF-8");
    for flags in [&[][..], &["-static"]] {
        let flags = [&["-DPREFIX=", bump], flags].concat();
        assert_exact(&[], &build("frees.c", "gcc", &flags, "gcc"));
    }
}

#[test]
fn musl_dynamic() {
    assert_exact(&[], &build("counts.c", "musl-gcc", &[], "musl-tools"));
}

#[test]
fn musl_static() {
    assert_exact(
        &[],
        &build("counts.c", "musl-gcc", &["-static"], "musl-tools"),
    );
}

#[test]
fn an_allocator_loaded_by_dlopen_is_counted_from_its_first_call() {
    let loader = workload("dlopen.c");
    let mimalloc = library("libmimalloc.so.2", "libmimalloc2.0");
    let command = [loader.to_str().expect("a path in UTF-8"), &mimalloc, "mi_"];
    assert_exact_command(&command);
}

/// Most of a large program is nothing that probes need: it is not read, and nothing is missed.
#[test]
fn a_program_of_four_hundred_megabytes_is_counted_and_not_read_whole() {
    let scratch = Scratch::new();
    let large = |source: &str| {
        let program = build(source, "gcc", &["-static"], "libc6-dev");
        let copy = scratch.copy(&program, &format!("large-{source}"), 0o755);
        let file = std::fs::File::options().write(true).open(&copy);
        file.and_then(|file| file.set_len(400 << 20))
            .expect("a hole at its end");
        (program, copy)
    };
    assert_exact(&[], &large("counts.c").1);

    let (small, large) = large("steps.c");
    let most_resident_kib = |program: &Path| {
        let mut command = memtrace(&["run", "--report-file", "/dev/null", "--"]);
        let mut steps = Steps::of(command.arg(program).arg("0"));
        steps.round();
        let status = std::fs::read_to_string(format!("/proc/{}/status", steps.pid()));
        let status = status.expect("memtrace runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        steps.end(0);
        kib.and_then(|kib| kib.parse::<u64>().ok())
            .expect("a number of KiB")
    };
    let (small, large) = (most_resident_kib(&small), most_resident_kib(&large));
    assert!(
        large < small + 50 * 1024,
        "{large} KiB, {small} for a small one"
    );
}

/// No symbol says where malloc is: that is not a heap of nothing.
#[test]
fn a_stripped_static_program_has_no_heap_and_a_reason() {
    let scratch = Scratch::new();
    let program = scratch.copy(
        &build("counts.c", "gcc", &["-static"], "libc6-dev"),
        "stripped",
        0o755,
    );
    run(Command::new(tool("strip", "binutils")).arg(&program)).exited(0);
    let traced = trace(&[program.as_os_str(), "100".as_ref()]);
    traced.finished.exited(0);
    let process: &Process = traced.first();
    assert_eq!(process.heap, None);
    assert!(traced.json["processes"][0]["heap"].is_null());
    assert!(
        process
            .heap_reason
            .as_deref()
            .is_some_and(|reason| !reason.is_empty()),
        "{:?}",
        process.heap_reason
    );
    assert!(
        process.faults.minor > 0 && process.address_space.committed_bytes > 0,
        "the rest is measured"
    );
}

/// A container's libc is another file than the host's: found where the process maps it. Its probes come while the
/// first process runs, which says so; whatever maps it later is counted whole.
#[test]
fn a_libc_in_another_mount_namespace_is_found() {
    let scratch = Scratch::new();
    let root = scratch.path("root");
    let program = workload("counts.c");
    let libraries = [
        library("libc.so.6", "libc6"),
        library("ld-linux-x86-64.so.2", "libc6"),
    ];
    for directory in ["lib64", "lib/x86_64-linux-gnu"] {
        std::fs::create_dir_all(root.join(directory)).expect("make a root");
    }
    scratch.copy(
        Path::new(&libraries[0]),
        "root/lib/x86_64-linux-gnu/libc.so.6",
        0o755,
    );
    scratch.copy(
        Path::new(&libraries[1]),
        "root/lib64/ld-linux-x86-64.so.2",
        0o755,
    );
    scratch.copy(&program, "root/counts", 0o755);
    let root = root.to_str().expect("a path in UTF-8").to_owned();
    let script = format!(
        "for n in 1 2 3 4; do unshare --mount chroot {root} /counts 10000; sleep 0.2; done"
    );
    let traced = trace(&["sh", "-c", &script]);
    traced.finished.exited(0);
    let said = traced.finished.objects();
    assert_eq!(said.len(), 4);
    for (index, said) in said.iter().enumerate() {
        let process = traced.process(number(said, "pid"));
        let whole = process
            .heap
            .is_some_and(|heap| heap.allocations >= 10_000 && heap.frees == number(said, "frees"));
        assert!(whole || process.heap_reason.is_some(), "{process:?}");
        if index == 3 {
            assert!(whole && process.heap_reason.is_none(), "{process:?}");
        }
    }
}
