/* no_rules: blocks that are kept below functions without unwind rules: one with a frame pointer, one without. */
#include <stdlib.h>

#include "workload.h"

void framed(void);
void bare(void);

/* The assembler makes no rules where none are asked for. The second function uses rbp for a number. */
__asm__(".text\n"
        ".globl framed\n"
        ".type framed, @function\n"
        "framed: push %rbp\n"
        "        mov %rsp, %rbp\n"
        "        call keep_framed\n"
        "        pop %rbp\n"
        "        ret\n"
        ".size framed, . - framed\n"
        ".globl bare\n"
        ".type bare, @function\n"
        "bare:   push %rbp\n"
        "        mov $1, %ebp\n"
        "        call keep_bare\n"
        "        pop %rbp\n"
        "        ret\n"
        ".size bare, . - bare\n");

static void *kept[2];

__attribute__((used)) void keep_framed(void) { kept[0] = malloc(1001); }
__attribute__((used)) void keep_bare(void) { kept[1] = malloc(1002); }

int main(void)
{
    framed();
    bare();
    if (kept[0] == NULL || kept[1] == NULL)
        die("malloc failed");
    return 0;
}
