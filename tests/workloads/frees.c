/* frees N: N blocks released by each of free, cfree, free_sized and free_aligned_sized, and some kept. See bump.c. */
#include <stddef.h>

#include "workload.h"

#define JOIN(prefix, name) prefix##name
#define NAMED(prefix, name) JOIN(prefix, name)
#define NAME(name) NAMED(PREFIX, name)

void *NAME(malloc)(size_t), *NAME(calloc)(size_t, size_t), *NAME(realloc)(void *, size_t);
void *NAME(aligned_alloc)(size_t, size_t);
void NAME(free)(void *), NAME(cfree)(void *), NAME(free_sized)(void *, size_t);
void NAME(free_aligned_sized)(void *, size_t, size_t);

int main(int argc, char **argv)
{
    u64 n = argc > 1 ? decimal(argv[1]) : 0;
    for (u64 i = 0; i < n; i++) {
        NAME(free)(NAME(malloc)(24));
        NAME(cfree)(NAME(calloc)(3, 10));
        NAME(free_sized)(NAME(realloc)(NAME(malloc)(8), 40), 40);
        NAME(free_aligned_sized)(NAME(aligned_alloc)(64, 128), 64, 128);
        NAME(free)(NULL);
        NAME(cfree)(NULL);
        NAME(free_sized)(NULL, 0);
        NAME(free_aligned_sized)(NULL, 64, 0);
        if (!NAME(malloc)(50))
            die("the allocator is empty");
    }
    say_number("pid", getpid());
    say_number("allocations", 5 * n);
    say_number("reallocations", n);
    say_number("frees", 4 * n);
    say_number("bytes_allocated", n * (24 + 30 + 8 + 40 + 128 + 50));
    say_number("live_blocks", n);
    say_end();
    return 0;
}
