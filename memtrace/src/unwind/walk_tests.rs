use memtrace_common::unwind::{Cfa, Rule, row};

use super::*;

const CODE: u64 = 0x40_0000;
const STACK: u64 = 0x7fff_0000;

fn copied(bp: u64, words: &[u64]) -> CopiedStack {
    CopiedStack {
        time_ns: 0,
        pid: 1,
        tid: 1,
        of_fault: false,
        kernel_ip: 0,
        trampoline_at: 0,
        returns_to: 0,
        registers: Registers {
            ip: CODE + 0x10,
            sp: STACK,
            bp,
        },
        bytes: words.iter().flat_map(|word| word.to_ne_bytes()).collect(),
    }
}

/// A page of code whose functions begin at multiples of 256 bytes, with these rules in turn.
fn walk_by(copy: &CopiedStack, rules: &[Rule]) -> Walked {
    let rows: Vec<u64> = (0..)
        .zip(rules)
        .map(|(at, rule)| row(256 * at, *rule))
        .collect();
    let mapping = CodeMapping {
        start: CODE,
        length: 4096,
        offset: 0,
        first_row: 0,
        rows: rows.len() as u32,
    };
    let find = |address| mapping.holds(address).then_some(mapping);
    walk(copy, find, |index| rows.get(index as usize).copied())
}

fn rule(cfa: Cfa, offset: u64, saved_bp: u64) -> Rule {
    Rule::new(cfa, offset, saved_bp).unwrap()
}

const START: Rule = Rule::plain(Cfa::Start);

#[test]
fn a_fault_in_a_probed_call_is_followed_to_what_is_behind_the_trampoline() {
    let stack = [1, 2, 0x7fff_ffff_e000, CODE + 0x110];
    let rules = [rule(Cfa::StackPointer, 24, 0), START];
    let fault = CopiedStack {
        of_fault: true,
        trampoline_at: STACK + 16,
        returns_to: CODE + 0x110,
        ..copied(9, &stack)
    };
    let walked = walk_by(&fault, &rules);
    assert_eq!(walked.end, End::Start);
    assert_eq!(*walked.frames, [(CODE + 0x10) | INTERRUPTED, CODE + 0x110]);
    let elsewhere = CopiedStack {
        trampoline_at: STACK,
        kernel_ip: 0xffff_ffff_8123_4567,
        ..fault
    };
    let walked = walk_by(&elsewhere, &rules);
    assert_eq!(walked.end, End::NoMapping);
    assert_eq!(*walked.frames, [0xefff_ffff_8123_4567, CODE + 0x10]);
}

#[test]
fn stack_and_frame_pointer_rules_lead_to_the_start() {
    // The first saves rbp and takes 24 bytes; the second goes by it.
    let stack = [1, STACK + 48, CODE + 0x110, 2, 3, 4, 5, CODE + 0x210];
    let rules = [
        rule(Cfa::StackPointer, 24, 16),
        rule(Cfa::FramePointer, 16, 16),
        START,
    ];
    let walked = walk_by(&copied(9, &stack), &rules);
    assert_eq!(walked.end, End::Start);
    assert_eq!(*walked.frames, [CODE + 0x10, CODE + 0x110, CODE + 0x210]);
}

#[test]
fn a_function_that_aligned_its_stack_is_left_by_the_word_it_kept() {
    // rbp points at its caller's, and the CFA is kept 8 bytes below.
    let stack = [STACK + 40, 77, 0, 0, CODE + 0x110];
    let walked = walk_by(
        &copied(STACK + 8, &stack),
        &[rule(Cfa::Dereferenced, 8, 8), START],
    );
    assert_eq!((walked.end, walked.frames.len()), (End::Start, 2));
}

#[test]
fn code_without_rules_is_left_by_the_frame_pointer() {
    let stack = [0, 0, 0, CODE + 0x110];
    let walked = walk_by(&copied(STACK + 16, &stack), &[Rule::NONE, START]);
    assert_eq!((walked.end, walked.frames.len()), (End::Start, 2));
    let astray = walk_by(&copied(3, &stack), &[Rule::NONE, START]);
    assert_eq!((astray.end, astray.frames.len()), (End::NoRules, 1));
    let unsupported = Rule::plain(Cfa::Unsupported);
    assert_eq!(
        walk_by(&copied(0, &stack), &[unsupported]).end,
        End::Unsupported
    );
}

#[test]
fn every_early_end_has_a_reason() {
    let up = rule(Cfa::StackPointer, 8, 0);
    let nowhere = walk_by(&copied(0, &[0x1234]), &[up]);
    assert_eq!((nowhere.end, nowhere.frames.len()), (End::NoMapping, 1));
    assert_eq!(walk_by(&copied(0, &[]), &[up]).end, End::Unreadable);
    let still = rule(Cfa::StackPointer, 0, 0);
    assert_eq!(walk_by(&copied(0, &[0]), &[still]).end, End::StackPointer);
    let by_garbage = rule(Cfa::FramePointer, 16, 16);
    assert_eq!(
        walk_by(&copied(u64::MAX, &[0]), &[by_garbage]).end,
        End::StackPointer
    );
}

#[test]
fn a_stack_that_never_ends_is_cut() {
    let walked = walk_by(
        &copied(0, &[CODE + 0x10; 300]),
        &[rule(Cfa::StackPointer, 8, 0)],
    );
    assert_eq!(
        (walked.end, walked.frames.len()),
        (End::Truncated, MAX_FRAMES)
    );
    // Trampolines that lead to one another change the stack pointer at will.
    let mut stack = [0; 32];
    stack[20..22].copy_from_slice(&[STACK, CODE + 0x10]);
    let walked = walk_by(&copied(0, &stack), &[Rule::plain(Cfa::Signal)]);
    assert_eq!(
        (walked.end, walked.frames.len()),
        (End::Truncated, MAX_FRAMES)
    );
}

#[test]
fn stacks_that_differ_have_different_ids() {
    let up = rule(Cfa::StackPointer, 8, 0);
    let one = walk_by(&copied(0, &[CODE + 0x110]), &[up, START]);
    let other = walk_by(&copied(0, &[CODE + 0x111]), &[up, START]);
    assert_ne!(one.id, other.id);
    assert_eq!(
        one.id,
        walk_by(&copied(5, &[CODE + 0x110]), &[up, START]).id
    );
}
