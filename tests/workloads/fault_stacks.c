/* fault_stacks: pages that are touched first by one function on behalf of two, and by malloc itself. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "workload.h"

enum { PAGE = 4096, OFTEN = 6000, SELDOM = 2000, BLOCKS = 4000 };

static volatile char *next;

__attribute__((noinline)) static void touch(void)
{
    *next = 1;
    next += PAGE;
}

__attribute__((noinline)) static void often(void)
{
    touch();
    touch();
    touch();
}

__attribute__((noinline)) static void seldom(void)
{
    touch();
    __asm__ volatile("");
}

/* A page for each block, whose header malloc is the first to write. */
__attribute__((noinline)) static void *grow(void)
{
    void *block = malloc(PAGE - 16);
    if (block == NULL)
        die("malloc failed");
    return block;
}

int main(void)
{
    size_t length = (size_t)(OFTEN + SELDOM) * PAGE;
    void *pages = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || madvise(pages, length, MADV_NOHUGEPAGE) != 0)
        die("mmap failed");
    next = pages;
    for (int i = 0; i < SELDOM; i++) {
        often();
        seldom();
    }
    for (int i = 0; i < BLOCKS; i++)
        grow();
    say_number("often", OFTEN);
    say_number("seldom", SELDOM);
    say_number("blocks", BLOCKS);
    say_end();
    return 0;
}
