use super::*;

const AT: u64 = 0x1000;

fn chosen(function: Function, code: &[u8]) -> Choice {
    choose(
        function,
        &Surroundings {
            code,
            address: AT,
            fragments: &[],
            entries: &[],
        },
    )
}

fn at(offset: u64) -> Choice {
    Choice {
        offset,
        pushed: 0,
        emulated: true,
    }
}

#[test]
fn the_first_instruction_is_taken_when_it_is_emulated() {
    assert_eq!(chosen(Function::Malloc, &[0x41, 0x54, 0xc3]), at(0)); // push r12
    assert_eq!(chosen(Function::Malloc, &[0x90, 0xc3]), at(0)); // nop
    assert_eq!(chosen(Function::Malloc, &[0xe9, 0, 1, 0, 0]), at(0)); // jmp
    assert_eq!(chosen(Function::Malloc, &[0xe8, 0, 1, 0, 0, 0xc3]), at(0)); // call
}

#[test]
fn what_older_kernels_step_or_refuse_is_not_taken() {
    // endbr64; push rbp
    assert_eq!(
        chosen(Function::Malloc, &[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3]),
        at(4)
    );
    // nopl 0(rax,rax); push rbp
    assert_eq!(
        chosen(Function::Malloc, &[0x0f, 0x1f, 0x44, 0, 0, 0x55, 0xc3]),
        at(5)
    );
    // xchg ax, ax; push rbp
    assert_eq!(chosen(Function::Malloc, &[0x66, 0x90, 0x55, 0xc3]), at(2));
    // sub rsp, 8; push rbp: the return address is no longer where pushes tell
    assert_eq!(
        chosen(Function::Malloc, &[0x48, 0x83, 0xec, 8, 0x55, 0xc3]),
        ENTRY
    );
}

#[test]
fn a_conditional_branch_is_the_last_candidate() {
    // cmp rdi, 16; ja +2; push rbp
    let code = [0x48, 0x83, 0xff, 0x10, 0x77, 2, 0x55, 0x5d, 0xc3];
    assert_eq!(chosen(Function::Malloc, &code), at(4));
    // the same with the branch as a target of its own: nothing after it is passed by every call
    let code = [0x48, 0x83, 0xff, 0x10, 0x77, 0xfe, 0x55, 0x5d, 0xc3];
    assert_eq!(chosen(Function::Malloc, &code), ENTRY);
}

#[test]
fn only_free_looks_past_a_null_check() {
    // test rdi, rdi; je +3; push rbp; pop rbp; ret; ret
    let code = [0x48, 0x85, 0xff, 0x74, 3, 0x55, 0x5d, 0xc3, 0xc3];
    assert_eq!(chosen(Function::Free, &code), at(5));
    assert_eq!(chosen(Function::Malloc, &code), at(3));
    assert_eq!(chosen(Function::Realloc, &code), at(3));
    // test rsi, rsi instead: another argument
    assert_eq!(
        chosen(
            Function::Free,
            &[0x48, 0x85, 0xf6, 0x74, 3, 0x55, 0x5d, 0xc3, 0xc3]
        ),
        at(3)
    );
    // test edi, edi: half of the pointer
    assert_eq!(
        chosen(
            Function::Free,
            &[0x85, 0xff, 0x74, 3, 0x55, 0x5d, 0xc3, 0xc3]
        ),
        at(2)
    );
    // jne: the pointers of interest go elsewhere
    assert_eq!(
        chosen(
            Function::Free,
            &[0x48, 0x85, 0xff, 0x75, 3, 0x55, 0x5d, 0xc3, 0xc3]
        ),
        at(3)
    );
    // the flags changed in between: test; cmp rsi, rdi; je
    let code = [
        0x48, 0x85, 0xff, 0x48, 0x39, 0xfe, 0x74, 3, 0x55, 0x5d, 0xc3, 0xc3,
    ];
    assert_eq!(chosen(Function::Free, &code), at(6));
    // nothing to stand on after the check: at the check
    assert_eq!(
        chosen(Function::Free, &[0x48, 0x85, 0xff, 0x74, 1, 0xc3, 0xc3]),
        at(3)
    );
}

#[test]
fn arguments_must_be_intact() {
    // mov rdi, rsi; push rbp
    let code = [0x48, 0x89, 0xf7, 0x55, 0xc3];
    assert_eq!(chosen(Function::Malloc, &code), ENTRY);
    // mov esi, 1; push rbp: only matters to those with two arguments
    let code = [0xbe, 1, 0, 0, 0, 0x55, 0xc3];
    assert_eq!(chosen(Function::Malloc, &code), at(5));
    assert_eq!(chosen(Function::Calloc, &code), ENTRY);
    // xor edx, edx; push rbp
    let code = [0x31, 0xd2, 0x55, 0xc3];
    assert_eq!(chosen(Function::Realloc, &code), at(2));
    assert_eq!(chosen(Function::PosixMemalign, &code), ENTRY);
    // mov dil, 1: a part is enough
    assert_eq!(
        chosen(Function::Malloc, &[0x40, 0xb7, 1, 0x55, 0xc3]),
        ENTRY
    );
}

#[test]
fn no_loop_may_come_back_to_the_probe() {
    // xor eax, eax; push rbp; jmp back to the push
    assert_eq!(
        chosen(Function::Malloc, &[0x31, 0xc0, 0x55, 0xeb, 0xfd]),
        ENTRY
    );
    // a cold part jumps back
    let cold: &[u8] = &[0xe9, 0xfd, 0xef, 0xff, 0xff];
    let code = [0x31, 0xc0, 0x55, 0xc3];
    let around = Surroundings {
        code: &code,
        address: AT,
        fragments: &[(0x2000, cold)],
        entries: &[],
    };
    assert_eq!(choose(Function::Malloc, &around), ENTRY);
    // jmp *rax: a jump table may
    assert_eq!(
        chosen(Function::Malloc, &[0x31, 0xc0, 0x55, 0xff, 0xe0]),
        ENTRY
    );
    assert_eq!(chosen(Function::Malloc, &[0x55, 0xff, 0xe0]), at(0));
    // jmp *slot(%rip): no jump table
    assert_eq!(
        chosen(
            Function::Malloc,
            &[0x31, 0xc0, 0x55, 0xff, 0x25, 0, 0, 0, 0]
        ),
        at(2)
    );
}

#[test]
fn no_other_function_may_begin_on_the_way() {
    let code = [0x31, 0xc0, 0x55, 0xc3];
    let around = Surroundings {
        code: &code,
        address: AT,
        fragments: &[],
        entries: &[AT, AT + 2],
    };
    assert_eq!(choose(Function::Malloc, &around), ENTRY);
}

#[test]
fn no_code_is_no_trouble() {
    assert_eq!(chosen(Function::Malloc, &[]), ENTRY);
    assert_eq!(chosen(Function::Malloc, &[0x06]), ENTRY); // invalid in 64-bit mode
    assert_eq!(chosen(Function::Malloc, &[0xe9, 0]), ENTRY); // cut off
}
