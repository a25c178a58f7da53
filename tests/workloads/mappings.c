/* Splits, moves, joins and fails to make mappings, then prints its /proc/self/maps: which ones are left. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>

#include "smaps.h"

#define PAGE ((size_t)4096)

static char maps[1 << 16];

static char *map(size_t pages, int protection)
{
    char *block = mmap(NULL, pages * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED)
        die("mmap failed");
    return block;
}

static void must(int result)
{
    if (result != 0)
        die("a call failed");
}

/* A reserved range with a hole, another protection in its middle, and parts mapped over. */
static void split(void)
{
    char *block = map(100, PROT_NONE);
    must(mprotect(block + 10 * PAGE, 20 * PAGE, PROT_READ | PROT_WRITE));
    must(mprotect(block + 15 * PAGE, 5 * PAGE, PROT_READ));
    must(munmap(block + 40 * PAGE, 10 * PAGE));
    void *fixed = mmap(block + 60 * PAGE, 10 * PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (fixed != block + 60 * PAGE)
        die("MAP_FIXED failed");
}

/* Shrunk, grown in place or not, and moved onto a part of another mapping. */
static void move(void)
{
    char *block = map(64, PROT_READ | PROT_WRITE), *other = map(64, PROT_NONE);
    block = mremap(block, 64 * PAGE, 16 * PAGE, 0);
    block = mremap(block, 16 * PAGE, 256 * PAGE, MREMAP_MAYMOVE);
    if (block == MAP_FAILED)
        die("mremap failed");
    void *moved = mremap(block, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other + 20 * PAGE);
    if (moved != other + 20 * PAGE)
        die("MREMAP_FIXED failed");
}

static void fail(void)
{
    for (int i = 0; i < 5; i++)
        if (mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
            die("mmap of nothing succeeded");
    for (int i = 0; i < 3; i++)
        if (munmap((void *)1, PAGE) == 0)
            die("munmap of an odd address succeeded");
    if (mprotect((void *)PAGE, PAGE, PROT_READ) == 0)
        die("mprotect of nothing succeeded");
}

int main(void)
{
    split();
    move();
    fail();
    for (int i = 0; i < 20; i++) {
        char *block = map(7, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE);
        if (i % 3 == 0)
            must(munmap(block, 7 * PAGE));
    }
    read_file("/proc/self/maps", maps, sizeof maps);
    say(maps);
    say_flush();
    return 0;
}
