//! Reserved and committed bytes are what smaps says, however the memory came to be.

use std::path::Path;

use memtrace::report::document::{KindBytes, Process, Region};
use memtrace_tests::expect::{number, within};
use memtrace_tests::workload::{build, workload};
use memtrace_tests::{Scratch, Traced, trace};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// What the workloads read smaps into: anonymous memory of their own, all of it touched.
const BUFFER: u64 = 4 * MIB;

/// Traces a scenario and compares every process that printed its smaps.
fn scenario(arguments: &[&str]) -> Traced {
    let program = workload("lazy.c");
    let mut command = vec![program.to_str().expect("a path in UTF-8")];
    command.extend(arguments);
    let traced = trace(&command);
    traced.finished.exited(0);
    for seen in traced.finished.objects() {
        assert_eq!(number(&seen, "buffer"), BUFFER);
        let space = &traced.process(number(&seen, "pid")).address_space;
        within(
            1.0,
            space.committed_bytes,
            number(&seen, "rss"),
            "committed against Rss",
        );
        within(
            1.0,
            space.reserved_bytes,
            number(&seen, "size"),
            "reserved against Size",
        );
        within(
            1.0,
            space.lazy_bytes + space.committed_bytes,
            space.reserved_bytes,
            "lazy and committed against reserved",
        );
        assert!(
            space.peak_committed_bytes >= space.committed_bytes,
            "{space:?}"
        );
        assert!(
            space.peak_reserved_bytes >= space.reserved_bytes,
            "{space:?}"
        );
        assert_kinds_add_up(traced.process(number(&seen, "pid")));
    }
    traced
}

fn assert_kinds_add_up(process: &Process) {
    let space = &process.address_space;
    let sum = |bytes: fn(&KindBytes) -> u64| space.by_kind.values().map(bytes).sum::<u64>();
    assert_eq!(
        sum(|kind| kind.reserved_bytes),
        space.reserved_bytes,
        "reserved by kind: {:?}",
        space.by_kind
    );
    within(
        1.0,
        sum(|kind| kind.committed_bytes),
        space.committed_bytes,
        "committed by kind",
    );
}

#[track_caller]
fn assert_kind(process: &Process, kind: &str, reserved: u64, committed: u64) {
    let bytes = process
        .address_space
        .by_kind
        .get(kind)
        .unwrap_or_else(|| panic!("no {kind} in the report"));
    let own = if kind == "anonymous" { BUFFER } else { 0 };
    let (reserved, committed) = (reserved + own, committed + own);
    // What the C library maps for itself is of the same kinds.
    let near = |actual: u64, expected: u64| actual.abs_diff(expected) <= expected / 100 + MIB;
    assert!(
        near(bytes.reserved_bytes, reserved),
        "{kind}: reserved {}, not {reserved}",
        bytes.reserved_bytes
    );
    assert!(
        near(bytes.committed_bytes, committed),
        "{kind}: committed {}, not {committed}",
        bytes.committed_bytes
    );
}

#[test]
fn ten_gib_reserved_and_a_hundred_mib_touched() {
    let traced = scenario(&["ten-gib"]);
    let space = &traced.first().address_space;
    assert!(space.reserved_bytes >= 10 << 30, "{}", space.reserved_bytes);
    assert!(
        space.lazy_bytes >= (10 << 30) - 100 * MIB,
        "{}",
        space.lazy_bytes
    );
    assert_kind(traced.first(), "anonymous", 10 << 30, 100 * MIB);
    let region = traced
        .first()
        .regions
        .iter()
        .max_by_key(|region| region.reserved_bytes)
        .expect("regions");
    assert!(region.reserved_bytes >= 10 << 30, "{region:?}");
    within(
        1.0,
        region.committed_bytes,
        100 * MIB,
        "committed of the largest mapping",
    );
}

#[test]
fn pages_given_back_by_madvise_are_not_committed() {
    let traced = scenario(&["dontneed"]);
    assert_kind(traced.first(), "anonymous", 512 * MIB, 156 * MIB);
    let peak = traced.first().address_space.peak_committed_bytes;
    assert!(peak >= 256 * MIB, "peak {peak}");
}

#[test]
fn a_mapping_that_grows_by_mremap_keeps_what_was_touched() {
    assert_kind(
        scenario(&["mremap"]).first(),
        "anonymous",
        512 * MIB,
        128 * MIB,
    );
}

#[test]
fn a_block_that_grows_by_realloc_keeps_what_was_touched() {
    let traced = scenario(&["realloc"]);
    assert_kind(traced.first(), "anonymous", 512 * MIB, 128 * MIB);
    assert_eq!(traced.heap().live_bytes, 512 * MIB);
}

#[test]
fn the_program_break_is_heap() {
    let traced = scenario(&["program-break"]);
    assert_kind(traced.first(), "heap", 256 * MIB, 128 * MIB);
    let last = traced.first().timeline.last().expect("a timeline");
    within(1.0, last.program_break_bytes, 256 * MIB, "program break");
}

#[test]
fn parent_and_child_each_have_their_own_after_copy_on_write() {
    let traced = scenario(&["copy-on-write"]);
    assert_eq!(traced.document.processes.len(), 2);
    let seen = traced.finished.objects();
    let (child, parent) = (number(&seen[0], "pid"), number(&seen[1], "pid"));
    assert_kind(traced.process(parent), "anonymous", 192 * MIB, 128 * MIB);
    assert_kind(traced.process(child), "anonymous", 192 * MIB, 144 * MIB);
    assert_eq!(u64::from(traced.process(child).parent_pid), parent);
}

#[test]
fn populated_pages_are_committed_without_a_fault() {
    assert_kind(
        scenario(&["populate"]).first(),
        "anonymous",
        256 * MIB,
        128 * MIB,
    );
}

#[test]
fn a_huge_page_is_committed_whole() {
    let traced = scenario(&["huge-pages"]);
    let huge = number(&traced.finished.object(), "huge");
    assert!(
        huge >= 120 * MIB,
        "{huge} B huge: set /sys/kernel/mm/transparent_hugepage/enabled to madvise"
    );
    assert_kind(traced.first(), "anonymous", 132 * MIB, 128 * MIB);
}

#[test]
fn half_a_file_read_through_its_mapping() {
    let scratch = Scratch::on_disk();
    let file = scratch.write("data", vec![b'x'; 200 << 20]);
    let traced = scenario(&["file", file.to_str().expect("a path in UTF-8")]);
    let mapped = |region: &&Region| {
        region
            .path
            .as_deref()
            .is_some_and(|path| Path::new(path) == file)
    };
    let mappings: Vec<&Region> = traced.first().regions.iter().filter(mapped).collect();
    let [region] = mappings[..] else {
        panic!("one mapping of the file, not {mappings:?}");
    };
    assert_eq!(region.reserved_bytes, 200 * MIB);
    // The kernel maps whole windows of the page cache around a fault: the last may reach beyond the half.
    within(
        1.0,
        region.committed_bytes,
        100 * MIB,
        "committed of the mapping",
    );
    // The program and its libraries are files too.
    let files: Vec<&Region> = traced
        .first()
        .regions
        .iter()
        .filter(|region| region.kind == "file")
        .collect();
    let sum = |bytes: fn(&Region) -> u64| files.iter().map(|region| bytes(region)).sum::<u64>();
    let kind = traced.first().address_space.by_kind["file"];
    assert!(files.len() > 1, "{files:?}");
    assert_eq!(
        kind.reserved_bytes,
        sum(|region| region.reserved_bytes),
        "reserved of files"
    );
    within(
        1.0,
        sum(|region| region.committed_bytes),
        kind.committed_bytes,
        "committed of files",
    );
}

#[test]
fn shared_memory_of_both_sorts() {
    assert_kind(
        scenario(&["shared"]).first(),
        "shared",
        (128 + 96) * MIB,
        (64 + 48) * MIB,
    );
}

/// A mapping as `(start, end, permissions)`, joined with its neighbour where both look alike.
fn joined(mappings: impl Iterator<Item = (u64, u64, String, String)>) -> Vec<(u64, u64, String)> {
    let mut rows: Vec<(u64, u64, String, String)> = Vec::new();
    for (start, end, permissions, path) in mappings {
        // A name that the kernel shows or not, by its version: the memory is anonymous either way.
        let path = if path == "[heap]" {
            String::new()
        } else {
            path
        };
        match rows.last_mut() {
            Some(last) if last.1 == start && last.2 == permissions && last.3 == path => {
                last.1 = end
            }
            _ => rows.push((start, end, permissions, path)),
        }
    }
    // The stack grows by itself, and vsyscall is no memory of the process.
    rows.retain(|row| row.3 != "[stack]" && row.3 != "[vsyscall]");
    rows.into_iter()
        .map(|(start, end, permissions, _)| (start, end, permissions))
        .collect()
}

fn proc_maps_row(line: &str) -> (u64, u64, String, String) {
    let mut fields = line.split_whitespace();
    let (start, end) = fields
        .next()
        .and_then(|range| range.split_once('-'))
        .expect("a range");
    let number = |text| u64::from_str_radix(text, 16).expect("an address");
    let permissions = fields.next().expect("permissions").to_owned();
    (
        number(start),
        number(end),
        permissions,
        fields.nth(3).unwrap_or_default().to_owned(),
    )
}

/// Traces a program that prints its /proc/self/maps at its end.
fn assert_mappings_left(program: &Path) -> Traced {
    let traced = trace(&[program]);
    traced.finished.exited(0);
    let expected = joined(traced.finished.output().lines().map(proc_maps_row));
    let regions = traced.first().regions.iter().map(|region| {
        (
            region.start,
            region.end,
            region.permissions.clone(),
            region.path.clone().unwrap_or_default(),
        )
    });
    assert_eq!(joined(regions), expected);
    traced
}

fn failed_calls(traced: &Traced) -> Value {
    serde_json::to_value(&traced.first().address_space.failed_calls).expect("a map")
}

#[test]
fn the_mappings_left_at_the_end_are_those_of_proc_maps() {
    assert_mappings_left(&workload("mappings.c"));
}

/// The kernel takes i386's numbers from 32-bit programs, and from any other that asks by `int $0x80`.
#[test]
fn memory_calls_by_their_32_bit_numbers_are_read_as_such() {
    let bare = [
        "-nostdlib",
        "-static",
        "-fno-pie",
        "-no-pie",
        "-fno-stack-protector",
    ];
    for bits in ["-m32", "-m64"] {
        let program = build("compat.c", "gcc", &[&bare[..], &[bits]].concat(), "gcc");
        let traced = assert_mappings_left(&program);
        assert_eq!(
            failed_calls(&traced),
            serde_json::json!({ "mmap": 5, "mremap": 1 }),
            "{bits}"
        );
        let reason = traced.first().heap_reason.as_deref().expect("no heap");
        assert_eq!(reason.contains("32-bit"), bits == "-m32", "{reason}");
    }
}

#[test]
fn failed_memory_calls_are_counted_and_change_nothing() {
    let traced = trace(&[workload("mappings.c")]);
    let expected: Value = serde_json::json!({ "mmap": 5, "mprotect": 1, "munmap": 3 });
    assert_eq!(failed_calls(&traced), expected);
}
