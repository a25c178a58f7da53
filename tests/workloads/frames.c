/*
 * frames N: leaks N blocks from each of some frames that are hard to leave, and prints, a line each, the name of the
 * frame's function and the size of its blocks. Functions in assembly, some without unwind rules, some with wrong ones.
 *   framed    no rules, a frame by the frame pointer
 *   tiny      the same caller, less than 16 bytes of code between functions with rules
 *   lost      no rules, and the frame pointer is used for something else
 *   beyond    rules that lead beyond the end of the stack
 *   still     rules by which the stack pointer does not rise
 *   escape    rules by an expression that no compiler writes
 *   nowhere   a return address where no code is
 *   coroutine a stack of its own, at the end of which there is nothing
 *   inlined   three functions, the inner two inlined
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "workload.h"

__asm__(".text\n"
        ".macro function name\n"
        ".balign 64\n"
        ".globl \\name\n"
        ".type \\name, @function\n"
        "\\name:\n"
        ".endm\n"
        ".macro end name\n"
        ".size \\name, . - \\name\n"
        ".endm\n"

        "function framed\n"
        "push %rbp\n"
        "mov %rsp, %rbp\n"
        "sub $32, %rsp\n"
        "call malloc@PLT\n"
        "leave\n"
        "ret\n"
        "end framed\n"

        "function before\n"
        ".cfi_startproc\n"
        "sub $1000, %rsp\n"
        ".cfi_def_cfa_offset 1008\n"
        ".fill 46, 1, 0x90\n"
        "add $1000, %rsp\n"
        ".cfi_def_cfa_offset 8\n"
        "ret\n"
        ".cfi_endproc\n"
        "end before\n"
        ".globl tiny\n"
        ".type tiny, @function\n"
        "tiny:\n"
        "push %rbp\n"
        "mov %rsp, %rbp\n"
        "call *%rsi\n"
        "leave\n"
        "ret\n"
        "end tiny\n"
        ".globl after\n"
        ".type after, @function\n"
        "after:\n"
        ".cfi_startproc\n"
        "ret\n"
        ".cfi_endproc\n"
        "end after\n"

        "function lost\n"
        "push %rbp\n"
        "mov $1, %ebp\n"
        "call malloc@PLT\n"
        "pop %rbp\n"
        "ret\n"
        "end lost\n"

        "function beyond\n"
        ".cfi_startproc\n"
        ".cfi_def_cfa %rsp, 0xff000\n"
        "sub $8, %rsp\n"
        "call malloc@PLT\n"
        "add $8, %rsp\n"
        "ret\n"
        ".cfi_endproc\n"
        "end beyond\n"

        "function still\n"
        ".cfi_startproc\n"
        ".cfi_def_cfa %rsp, 0\n"
        "sub $8, %rsp\n"
        "call malloc@PLT\n"
        "add $8, %rsp\n"
        "ret\n"
        ".cfi_endproc\n"
        "end still\n"

        /* DW_CFA_def_cfa_expression of DW_OP_lit0 */
        "function escape\n"
        ".cfi_startproc\n"
        ".cfi_escape 0x0f, 0x01, 0x30\n"
        "push %rbp\n"
        "mov $1, %ebp\n"
        "call malloc@PLT\n"
        "pop %rbp\n"
        "ret\n"
        ".cfi_endproc\n"
        "end escape\n"

        "function nowhere\n"
        ".cfi_startproc\n"
        ".cfi_def_cfa_offset 24\n"
        "sub $8, %rsp\n"
        "push $0x1234\n"
        "sub $8, %rsp\n"
        "call malloc@PLT\n"
        "add $24, %rsp\n"
        "ret\n"
        ".cfi_endproc\n"
        "end nowhere\n"

        /* The second argument is the end of the stack. */
        "function coroutine\n"
        ".cfi_startproc\n"
        "push %rbx\n"
        ".cfi_def_cfa_offset 16\n"
        ".cfi_offset %rbx, -16\n"
        "mov %rsp, %rbx\n"
        "mov %rsi, %rsp\n"
        "call malloc@PLT\n"
        "mov %rbx, %rsp\n"
        "pop %rbx\n"
        ".cfi_def_cfa_offset 8\n"
        "ret\n"
        ".cfi_endproc\n"
        "end coroutine\n");

void *framed(size_t size);
void *tiny(size_t size, void *(*call)(size_t));
void *lost(size_t size);
void *beyond(size_t size);
void *still(size_t size);
void *escape(size_t size);
void *nowhere(size_t size);
void *coroutine(size_t size, char *end);

static char *stack_end;

__attribute__((noinline)) static void *through_tiny(size_t size)
{
    void *block = tiny(size, malloc);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}

__attribute__((noinline)) static void *through_framed(size_t size)
{
    void *block = framed(size);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}

static void *on_coroutine(size_t size) { return coroutine(size, stack_end); }

static inline __attribute__((always_inline)) void *innermost(size_t size)
{
    void *block = malloc(size);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}

static inline __attribute__((always_inline)) void *middle(size_t size)
{
    void *block = innermost(size + 1);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}

__attribute__((noinline)) static void *outer(size_t size)
{
    void *block = middle(size - 1);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void *(*call)(size_t);
    } frames[] = {
        { "framed", through_framed }, { "tiny", through_tiny }, { "lost", lost },
        { "beyond", beyond }, { "still", still }, { "escape", escape }, { "nowhere", nowhere },
        { "coroutine", on_coroutine }, { "inlined", outer },
    };
    if (argc != 2)
        die("usage: frames N");
    u64 count = decimal(argv[1]);
    size_t page = 4096;
    char *stack = mmap(NULL, 32 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED)
        die("no memory");
    stack_end = stack + 31 * page;
    if (mprotect(stack_end, page, PROT_NONE) != 0)
        die("mprotect failed");
    for (size_t at = 0; at < sizeof frames / sizeof *frames; at++) {
        size_t size = 1000 + at;
        for (u64 block = 0; block < count; block++)
            if (frames[at].call(size) == NULL)
                die("no memory");
        say_number(frames[at].name, size);
    }
    say_number("blocks", count);
    say_end();
    return 0;
}
