//! Faults have the stacks that led to them: whole ones, in the proportions that the workload knows.

use memtrace::report::document::{FaultSite, FoundBy, Process, StackEnd};
use memtrace_tests::{expect::number, trace, trace_with, workload::workload};

/// Whether the stack of a site passes a function.
fn passes(process: &Process, site: &FaultSite, function: &str) -> bool {
    let mut frames = process.stack(&site.stack);
    frames.any(|frame| frame.function.as_deref() == Some(function))
}

/// The faults whose stacks pass a function, and the standard error of their number.
fn through(process: &Process, function: &str) -> (u64, f64) {
    let sites = process.fault_sites.iter();
    let found = sites.filter(|site| passes(process, site, function));
    let (sum, variance) = found.fold((0, 0.0), |(sum, variance), site| {
        let error = site.minor_error.unwrap_or(0) as f64;
        (sum + site.minor + site.major, variance + error * error)
    });
    (sum, variance.sqrt())
}

#[test]
fn faults_of_one_instruction_are_told_apart_by_their_callers() {
    let traced = trace(&[workload("fault_stacks.c")]);
    traced.finished.exited(0);
    traced.nothing_lost();
    let (process, counted) = (traced.first(), traced.finished.object());
    let (often, seldom) = (number(&counted, "often"), number(&counted, "seldom"));
    for (function, truth) in [("often", often), ("seldom", seldom)] {
        let (found, error) = through(process, function);
        assert!(
            error > 0.0 && (found as f64 - truth as f64).abs() < 4.5 * error,
            "{function}: {found} ± {error} of {truth}"
        );
    }
    // What is estimated sums up to what was counted. The function's own page may be one more.
    let (touched, _) = through(process, "touch");
    let all = often + seldom;
    assert!((all..=all + 1).contains(&touched), "{touched} of {all}");
    // While malloc runs, its return address on the stack is that of the probe.
    let (grown, _) = through(process, "grow");
    let blocks = number(&counted, "blocks");
    // An instruction of malloc none of whose faults is in the sample stands alone; so does one whose stack could not be
    // walked, where the machine was too busy to tell the mappings.
    let alone = |site: &&FaultSite| matches!(site.stack_end, None | Some(StackEnd::NotKnown));
    let of_malloc = |site: &&FaultSite| {
        let first = process.stack(&site.stack).next();
        let module = first.and_then(|frame| frame.module.as_deref());
        module.is_some_and(|module| module.contains("/libc.so"))
    };
    let cut = process.fault_sites.iter().filter(alone).filter(of_malloc);
    let cut: u64 = cut.map(|site| site.minor).sum();
    assert!(
        grown + cut >= blocks - blocks / 100 && grown > cut,
        "{grown} and {cut} of {blocks}"
    );
    for site in &process.fault_sites {
        let known = passes(process, site, "touch") || passes(process, site, "grow");
        let whole = site.stack_end.is_some_and(|end| end != StackEnd::NotKnown);
        if known && whole {
            assert!(passes(process, site, "main"), "{site:?}");
            assert_eq!(site.stack_end, Some(StackEnd::Start), "{site:?}");
        }
    }
}

#[test]
fn a_fault_in_the_kernel_has_the_kernels_frames_and_the_programs() {
    let pages = (16 << 20) / 4096;
    let program = workload("faults.c");
    let traced = trace(&[program.as_os_str(), "kernel".as_ref(), "16".as_ref()]);
    traced.finished.exited(0);
    let process = traced.first();
    let in_kernel = |site: &&FaultSite| {
        let first = process.stack(&site.stack).next().expect("a frame");
        first.module.as_deref() == Some("[kernel]") && site.stack_end.is_some()
    };
    let sites: Vec<_> = process.fault_sites.iter().filter(in_kernel).collect();
    let read: u64 = sites
        .iter()
        .filter(|site| passes(process, site, "kernel") && passes(process, site, "main"))
        .map(|site| site.minor)
        .sum();
    assert!(
        read >= pages && read <= process.faults.kernel,
        "{read} of {pages}"
    );
    let outer = |site: &&FaultSite| {
        let mut frames = process.stack(&site.stack);
        frames.any(|frame| frame.found_by == FoundBy::Kernel)
    };
    assert!(sites.iter().any(outer), "{sites:?}");
}

#[test]
fn without_stacks_faults_are_told_by_instruction() {
    let traced = trace_with(&["--no-stacks"], &[workload("fault_stacks.c")]);
    traced.finished.exited(0);
    let (process, counted) = (traced.first(), traced.finished.object());
    let all = number(&counted, "often") + number(&counted, "seldom");
    let (touched, error) = through(process, "touch");
    assert!(
        (all..=all + 1).contains(&touched) && error == 0.0,
        "{touched}"
    );
    assert!(
        process
            .fault_sites
            .iter()
            .all(|site| site.stack_end.is_none())
    );
}
