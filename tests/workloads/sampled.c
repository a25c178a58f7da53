/*
 * sampled ROUNDS: small blocks from one function and large ones from another, some kept, some given back, some grown.
 * Prints how many calls of each it made and what it keeps.
 */
#include <stdlib.h>

#include "workload.h"

struct kept {
    u64 blocks, bytes;
};

static u64 allocations, frees, reallocations, bytes;
static struct kept small, large;
static uint32_t seed = 1;

static uint32_t next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 17;
    return seed ^= seed << 5;
}

static void *allocate(size_t size)
{
    void *block = malloc(size);
    if (block == NULL)
        die("no memory");
    allocations++;
    bytes += size;
    return block;
}

__attribute__((noinline)) static void keep_small(void)
{
    size_t size = 16 + next() % 48;
    void *volatile block = allocate(size);
    if (block == NULL)
        die("no block");
    small.blocks++;
    small.bytes += size;
}

__attribute__((noinline)) static void keep_large(void)
{
    size_t size = 1000 + next() % 9000, grown = size + next() % 5000;
    void *block = allocate(size);
    void *volatile other = realloc(block, grown);
    if (other == NULL)
        die("no memory");
    reallocations++;
    bytes += grown;
    large.blocks++;
    large.bytes += grown;
}

__attribute__((noinline)) static void pass(void)
{
    void *volatile block = allocate(100 + next() % 1000);
    free(block);
    frees++;
}

int main(int argc, char **argv)
{
    u64 rounds = argc > 1 ? decimal(argv[1]) : 0;
    for (u64 round = 0; round < rounds; round++) {
        for (int at = 0; at < 8; at++)
            keep_small();
        keep_large();
        for (int at = 0; at < 4; at++)
            pass();
    }
    say_number("allocations", allocations);
    say_number("frees", frees);
    say_number("reallocations", reallocations);
    say_number("bytes", bytes);
    say_number("small_blocks", small.blocks);
    say_number("small_bytes", small.bytes);
    say_number("large_blocks", large.blocks);
    say_number("large_bytes", large.bytes);
    say_end();
    return 0;
}
