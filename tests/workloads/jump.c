/*
 * jump N: leaves realloc by longjmp out of a signal handler, N times. The copy runs into a page that may not be read,
 * a moment when glibc's heap is consistent; so this is sound, and exact, untraced.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "workload.h"

#define PAGE ((uintptr_t)4096)

static sigjmp_buf before;

static void on_fault(int signal)
{
    siglongjmp(before, signal);
}

static u64 jump_out(void)
{
    char *volatile block = malloc(64 << 10);
    char *volatile next = malloc(64);
    char *page = (char *)(((uintptr_t)block + 2 * PAGE) & ~(PAGE - 1));
    if (!block || !next || mprotect(page, PAGE, PROT_NONE) != 0)
        die("no block to copy");
    volatile u64 jumped = 0;
    if (sigsetjmp(before, 1) == 0)
        block = realloc(block, 100 << 10);
    else
        jumped = 1;
    if (mprotect(page, PAGE, PROT_READ | PROT_WRITE) != 0)
        die("mprotect failed");
    free(block);
    free(next);
    return jumped;
}

int main(int argc, char **argv)
{
    u64 n = argc > 1 ? decimal(argv[1]) : 1, jumped = 0;
    signal(SIGSEGV, on_fault);
    for (u64 i = 0; i < n; i++)
        jumped += jump_out();
    say_number("jumped", jumped);
    say_number("allocations", 2 * n);
    say_number("frees", 2 * n);
    say_end();
    return 0;
}
