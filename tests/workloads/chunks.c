/* chunks BYTES: each half second maps BYTES and touches each page of them. Answers each byte on stdin with what it
 * touched by then, until stdin ends. */
#include <poll.h>
#include <sys/mman.h>

#include "workload.h"

enum { PAGE = 4096 };

static u64 touched;

__attribute__((noinline)) static int touch_chunk(size_t bytes)
{
    char *chunk = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (chunk == MAP_FAILED)
        return 1;
    for (size_t at = 0; at < bytes; at += PAGE)
        *(volatile char *)(chunk + at) = 1;
    touched += bytes;
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
