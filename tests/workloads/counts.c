/*
 * counts N: a known number of calls to whichever allocator it is linked with. With N 0, what start-up allocates.
 * The names may be an allocator's own: -DMALLOC=mi_malloc and so on.
 */
#include <stdlib.h>

#include "workload.h"

#ifndef MALLOC
#define MALLOC malloc
#define CALLOC calloc
#define REALLOC realloc
#define FREE free
#else
void *MALLOC(size_t);
void *CALLOC(size_t, size_t);
void *REALLOC(void *, size_t);
void FREE(void *);
#endif

enum { MAX = 100000 };

static void *blocks[MAX];

static void *sure(void *block)
{
    if (!block)
        die("an allocation failed");
    return block;
}

int main(int argc, char **argv)
{
    u64 n = argc > 1 ? decimal(argv[1]) : 0, bytes = 0;
    if (n > MAX)
        die("too many");
    for (u64 i = 0; i < n; i++) {
        bytes += 16 + i % 500;
        blocks[i] = i % 2 ? sure(MALLOC(16 + i % 500)) : sure(CALLOC(1, 16 + i % 500));
    }
    for (u64 i = 0; i < n; i++) {
        bytes += 600 + i % 9000;
        blocks[i] = sure(REALLOC(blocks[i], 600 + i % 9000));
    }
    FREE(NULL);
    /* One block in ten stays. */
    for (u64 i = 0; i < n; i++)
        if (i % 10)
            FREE(blocks[i]);
    say_number("pid", getpid());
    say_number("allocations", n);
    say_number("reallocations", n);
    say_number("frees", n - (n + 9) / 10);
    say_number("bytes_allocated", bytes);
    say_number("live_blocks", (n + 9) / 10);
    say_end();
    return 0;
}
