//! Where control leaves a function, in a library assembled for it.

use super::*;

/// A library that is an allocator, one rule in each function.
const ASSEMBLY: &str = "
    .macro function name
    .globl \\name
    .type \\name, @function
    \\name:
    .endm
    .macro end name
    .size \\name, . - \\name
    .endm
    .text
    function malloc
        push %rbx
        pop %rbx
        ret
    end malloc
    function free
        ret
    end free
    function mallocx
        ret
    end mallocx
    function _Znwm
        jmp *%rax
    end _Znwm
    function _Znam
        test %rdi, %rdi
        je slow
        ret
    end _Znam
    function _ZnwmRKSt9nothrow_t
        test %rdi, %rdi
        je elsewhere@plt
        ret
    end _ZnwmRKSt9nothrow_t
    .type slow, @function
    slow: nop
        ret
    end slow
    function _ZdlPv
        mov %rdi, %rax
        jmp free
    end _ZdlPv
    function _ZdaPv
        push %rdi
        jmp free
    end _ZdaPv
    function _ZdlPvm
        test %rdi, %rdi
        je 1f
        push %rbx
        mov %rdi, %rbx
        sub $8, %rsp
        call malloc
        add $8, %rsp
        mov %rbx, %rdi
        pop %rbx
        jmp free
    1:  ret
    end _ZdlPvm
    function _ZdaPvm
        test %rsi, %rsi
        je 1f
        jmp free
    1:  ret
    end _ZdaPvm
    function _ZdlPvmSt11align_val_t
        test %rdi, %rdi
        je 1f
        jmp mallocx
    1:  ret
    end _ZdlPvmSt11align_val_t
    .globl calloc
    .type calloc, @gnu_indirect_function
    calloc: ret
    end calloc
    .section .note.GNU-stack
";

#[test]
fn ways_out_of_a_function() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("allocator.s");
    std::fs::write(&source, ASSEMBLY).unwrap();
    let library = directory.path().join("library");
    let output = Command::new("gcc")
        .args([
            "-shared",
            "-nostdlib",
            "-Wl,-soname,libjemalloc.so.9",
            "-Wl,-Bsymbolic",
            "-o",
        ])
        .args([&library, &source])
        .output()
        .unwrap_or_else(|error| panic!("gcc: {error}; apt-get install gcc"));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let data = std::fs::read(&library).unwrap();
    let allocator = only(library.to_str().unwrap(), &data);
    let exit = |name| function(&allocator, name).exit.clone();

    assert_eq!(exit("malloc"), Exit::ReturnProbe);
    let Exit::Unknown { reason } = exit("_Znwm") else {
        panic!("{:?}", exit("_Znwm"))
    };
    assert!(reason.contains("indirect jump"), "{reason}");
    let Exit::Instructions {
        file_offsets,
        incomplete: None,
    } = exit("_Znam")
    else {
        panic!("{:?}", exit("_Znam"))
    };
    assert_eq!(file_offsets.len(), 2, "its own, and that of slow");
    let Exit::Instructions {
        file_offsets,
        incomplete: Some(reason),
    } = exit("_ZnwmRKSt9nothrow_t")
    else {
        panic!("{:?}", exit("_ZnwmRKSt9nothrow_t"))
    };
    assert_eq!(file_offsets.len(), 1);
    assert!(reason.contains("another file"), "{reason}");

    let found = names(&allocator);
    assert!(
        !found.contains(&"_ZdlPv"),
        "moves an argument and jumps to free"
    );
    assert!(
        found.contains(&"_ZdaPv"),
        "free would see another return address"
    );
    assert!(
        !found.contains(&"_ZdlPvm"),
        "every block ends in a jump to free, with the stack as it was"
    );
    assert!(
        found.contains(&"_ZdaPvm"),
        "a block may go without a jump to free"
    );
    assert!(
        found.contains(&"_ZdlPvmSt11align_val_t"),
        "what it jumps to frees nothing"
    );
    assert!(!found.contains(&"calloc"));
    assert!(
        allocator
            .unseen
            .iter()
            .any(|unseen| unseen.name == "calloc" && unseen.reason.contains("IFUNC"))
    );
}
