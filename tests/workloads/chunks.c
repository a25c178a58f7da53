/* chunks BYTES: each half second maps BYTES and touches the first page of each 2 MiB that lie in them as a whole. Answers
 * each byte on stdin with how much that is by then, until stdin ends. */
#include <poll.h>
#include <sys/mman.h>

#include "workload.h"

enum { HUGE = 2 << 20 };

static u64 touched;

__attribute__((noinline)) static int touch_chunk(size_t bytes)
{
    char *chunk = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (chunk == MAP_FAILED)
        return 1;
    char *first = (char *)(((uintptr_t)chunk + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
    for (char *at = first; at + HUGE <= chunk + bytes; at += HUGE) {
        *(volatile char *)at = 1;
        touched += HUGE;
    }
    return 0;
}

int main(int argc, char **argv)
{
    size_t bytes = argc > 1 ? decimal(argv[1]) : 0;
    struct pollfd input = {.fd = 0, .events = POLLIN};
    say("ready\n");
    say_flush();
    while (touch_chunk(bytes) == 0) {
        char order;
        if (poll(&input, 1, 500) == 0)
            continue;
        if (read(0, &order, 1) != 1)
            return 0;
        say_number("touched", touched);
        say_end();
    }
    return 1;
}
