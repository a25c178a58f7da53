/* leaks keep|drop: two leaking functions, and a cache that grows and is kept, or dropped before the end. */
#include <stdlib.h>

#include "workload.h"

enum { ENTRIES = 500 };

static void *volatile sink;
static void *cache[ENTRIES];

__attribute__((noinline)) static void leak_small(void)
{
    for (int i = 0; i < 1000; i++)
        sink = malloc(64);
}

__attribute__((noinline)) static void leak_large(void)
{
    for (int i = 0; i < 10; i++)
        sink = malloc(1 << 20);
}

__attribute__((noinline)) static void grow_cache(void)
{
    for (int i = 0; i < ENTRIES; i++)
        cache[i] = malloc(100 + i);
}

__attribute__((noinline)) static void drop_cache(void)
{
    for (int i = 0; i < ENTRIES; i++)
        free(cache[i]);
}

int main(int argc, char **argv)
{
    leak_small();
    grow_cache();
    leak_large();
    if (argc > 1 && strcmp(argv[1], "drop") == 0)
        drop_cache();
    say_number("pid", getpid());
    say_end();
    return 0;
}
