//! The tests that run in the machine: the integration suite, compiled out here.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Job;
use crate::{
    build::{self, Output},
    package, programs, test,
    workspace::Workspace,
};

/// What depends most on what the kernel is and tells, by the names of tests. Emulated, a test
/// takes some 35 s of CPU, so that these take a few minutes on two idle cores.
const USUAL: &[&str] = &[
    "allocators::musl_dynamic",
    "attach::killing_memtrace_leaves_the_target_running_and_the_next_one_cleans_up",
    "attach::mappings_and_residency_from_before_are_in_the_report",
    "daemon_containers::each_container_is_named_and_found",
    "daemon_growth::huge_pages_that_come_unasked_count_whole",
    "fault_stacks::a_fault_in_the_kernel_has_the_kernels_frames_and_the_programs",
    "faults::a_file_whose_pages_were_dropped_gives_major_faults",
    "faults::faults_taken_in_kernel_mode_are_counted_as_such",
    "faults::the_faults_of_a_program_that_gains_privileges_have_latencies",
    "heap::bad_frees_are_told_apart",
    "lazy::a_huge_page_is_committed_whole",
    "lazy::half_a_file_read_through_its_mapping",
    "lazy::memory_calls_by_their_32_bit_numbers_are_read_as_such",
    "lazy::parent_and_child_each_have_their_own_after_copy_on_write",
    "lazy::the_mappings_left_at_the_end_are_those_of_proc_maps",
    "lazy::the_program_break_is_heap",
    "leaks::exactly_the_leaking_functions_are_named_largest_first",
    "processes::a_grandchild_of_milliseconds_is_counted_from_its_first_instruction",
    "python::python_functions_files_and_lines_are_those_that_python_tells",
    "stacks::a_thousand_stacks_without_frame_pointers_equal_those_of_libgcc",
    "stacks::frames_that_are_hard_to_leave_are_left_or_counted_by_the_reason",
    "stacks::libraries_that_come_and_go_do_not_use_up_the_room_for_unwind_rules",
    "verifier::programs_are_small_enough_to_start_at_once",
    "vm_only::",
];

/// What takes systemd as the first process.
const OF_SYSTEMD: &str = "vm_systemd";

/// How many times as long as usual anything may take under emulation.
const PATIENCE: &str = "10";

const USUAL_LIMIT: Duration = Duration::from_secs(20 * 60);
const CHOSEN_LIMIT: Duration = Duration::from_secs(3 * 60 * 60);

/// The suite: the tests whose names have one of these in them, `all` for all, none for the usual.
pub fn job(workspace: &Workspace, tests: &[String], systemd: bool) -> Result<Job> {
    if !systemd && tests.iter().any(|name| name.starts_with(OF_SYSTEMD)) {
        bail!("{OF_SYSTEMD} runs where systemd does: add --systemd");
    }
    programs::ensure(workspace)?;
    build::memtrace(workspace, Output::Shown)?;
    let mut words = vec![
        compile(workspace)?.into_os_string(),
        "--include-ignored".into(),
    ];
    match tests {
        [] if systemd => words.push(OF_SYSTEMD.into()),
        [] => words.extend(USUAL.iter().map(Into::into)),
        [all] if all == "all" => {}
        chosen => words.extend(chosen.iter().map(Into::into)),
    }
    let mut environment = environment(workspace)?;
    if systemd {
        let [package, upgrade] = package::with_its_upgrade(workspace, &workspace.vm())?;
        environment.push(("MEMTRACE_PACKAGE", package.into()));
        environment.push(("MEMTRACE_PACKAGE_UPGRADE", upgrade.into()));
    } else {
        words.extend(["--skip", OF_SYSTEMD].map(Into::into));
    }
    Ok(Job {
        words,
        directory: workspace.root().join("tests"),
        environment,
        limit: if tests.is_empty() {
            USUAL_LIMIT
        } else {
            CHOSEN_LIMIT
        },
        systemd,
    })
}

/// What a command in the machine finds in its environment.
pub fn environment(workspace: &Workspace) -> Result<Vec<(&'static str, OsString)>> {
    Ok(vec![
        ("PATH", test::path_with_tools(workspace)?),
        ("HOME", "/root".into()),
        ("MEMTRACE_BIN", workspace.memtrace().into()),
        ("MEMTRACE_TEST_VM", "1".into()),
        ("MEMTRACE_TEST_PATIENCE", PATIENCE.into()),
    ])
}

/// Compiles the suite and returns its program.
fn compile(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = build::cargo_in(workspace);
    cargo.args([
        "test",
        "--package",
        "memtrace-tests",
        "--test",
        "suite",
        "--no-run",
    ]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    cargo.arg("--target-dir").arg(workspace.target());
    let program = messages(&mut cargo)?.iter().find_map(program_of_tests);
    program.context("cargo named no program of the suite")
}

/// The program that a message names, if it runs tests: the package has other programs too.
fn program_of_tests(message: &Value) -> Option<PathBuf> {
    let tests = message["profile"]["test"].as_bool()?;
    let program = message["executable"].as_str()?;
    tests.then(|| program.into())
}

fn messages(cargo: &mut Command) -> Result<Vec<Value>> {
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!(
            "compiling the suite failed ({}): its output is above",
            output.status
        );
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    let parsed = lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>();
    parsed.context("cargo's messages are not JSON")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_suite_is_told_from_the_programs_beside_it() {
        let of = |test: bool, program: Option<&str>| {
            program_of_tests(&json!({"executable": program, "profile": {"test": test}}))
        };
        assert_eq!(of(false, Some("mimalloc")), None);
        assert_eq!(of(true, None), None);
        assert_eq!(
            program_of_tests(&json!({"reason": "build-finished", "success": true})),
            None
        );
        assert_eq!(of(true, Some("suite")), Some("suite".into()));
    }

    #[test]
    fn the_usual_tests_exist() {
        let suite = Workspace::of_this_xtask().root().join("tests/suite");
        for name in USUAL.iter().chain([&OF_SYSTEMD]) {
            let (topic, test) = name.split_once("::").unwrap_or((name, ""));
            let source = std::fs::read_to_string(suite.join(format!("{topic}.rs")));
            let function = format!("fn {test}");
            assert!(source.is_ok_and(|text| text.contains(&function)), "{name}");
        }
    }
}
