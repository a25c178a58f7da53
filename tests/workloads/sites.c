/* sites: what each function allocates, keeps, and holds at the heap's peak; and where pages are first touched.
   Everything is counted here, by the calls themselves. */
#include <stdlib.h>
#include <sys/mman.h>

#include "workload.h"

enum { GROWN = 100, SPIKES = 50, PAGES = 300, PAGE = 4096 };

static void *volatile sink;
static void *grown[GROWN];
static void *spikes[SPIKES];
static u64 live, peak, allocated, calls;

static void *counted(void *block, u64 size)
{
    calls++;
    allocated += size;
    live += size;
    if (live > peak)
        peak = live;
    return block;
}

static void uncounted(void *block, u64 size)
{
    free(block);
    live -= size;
}

__attribute__((noinline)) static void grow(void)
{
    for (int i = 0; i < GROWN; i++)
        grown[i] = counted(malloc(10000), 10000);
}

__attribute__((noinline)) static void spike(void)
{
    for (int i = 0; i < SPIKES; i++)
        spikes[i] = counted(malloc(40000), 40000);
    for (int i = 0; i < SPIKES; i++)
        uncounted(spikes[i], 40000);
}

__attribute__((noinline)) static void churn(void)
{
    for (int i = 0; i < 1000; i++) {
        sink = counted(malloc(100), 100);
        uncounted(sink, 100);
    }
}

__attribute__((noinline)) static void keep(void)
{
    for (int i = 0; i < 7; i++)
        sink = counted(malloc(1234), 1234);
}

__attribute__((noinline)) static void extend(void)
{
    void *block = counted(malloc(16), 16);
    for (u64 size = 32; size <= 1 << 16; size *= 2) {
        live -= size / 2;
        block = counted(realloc(block, size), size);
    }
    uncounted(block, 1 << 16);
}

__attribute__((noinline)) static void touch(void)
{
    char *pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(pages, PAGES * PAGE, MADV_NOHUGEPAGE);
    for (int i = 0; i < PAGES; i++)
        ((volatile char *)pages)[i * PAGE] = 1;
}

int main(void)
{
    churn();
    grow();
    extend();
    spike();
    for (int i = 0; i < GROWN; i++)
        uncounted(grown[i], 10000);
    keep();
    touch();
    say_number("calls", calls);
    say_number("allocated", allocated);
    say_number("live", live);
    say_number("peak", peak);
    say_number("pages", PAGES);
    say_end();
    return 0;
}
