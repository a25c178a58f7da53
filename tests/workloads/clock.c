/*
 * clock: until its stdin ends, allocates a block a millisecond, each a byte larger than the last, and prints a line for
 * each step: the block's size and CLOCK_MONOTONIC in nanoseconds, read once it had been allocated.
 */
#include <poll.h>
#include <stdlib.h>
#include <time.h>

#include "workload.h"

enum { FIRST = 1000 };

static void *volatile block;

int main(void)
{
    struct pollfd input = { .fd = 0, .events = POLLIN };
    for (u64 size = FIRST; poll(&input, 1, 1) == 0; size++) {
        struct timespec now;
        block = malloc(size);
        clock_gettime(CLOCK_MONOTONIC, &now);
        free(block);
        say_number("size", size);
        say_number("ns", (u64)now.tv_sec * 1000000000 + (u64)now.tv_nsec);
        say_end();
    }
    return 0;
}
