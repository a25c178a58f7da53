/* mallocx N: jemalloc's own calls. */
#include <jemalloc/jemalloc.h>

#include "workload.h"

int main(int argc, char **argv)
{
    u64 n = argc > 1 ? decimal(argv[1]) : 0;
    for (u64 i = 0; i < n; i++) {
        void *small = mallocx(40, 0), *zeroed = mallocx(5000, MALLOCX_ZERO | MALLOCX_ALIGN(256));
        small = rallocx(small, 80, 0);
        dallocx(small, 0);
        if (i % 2)
            sdallocx(zeroed, 5000, MALLOCX_ALIGN(256));
    }
    say_number("pid", getpid());
    say_number("allocations", 2 * n);
    say_number("reallocations", n);
    say_number("frees", n + n / 2);
    say_number("bytes_allocated", n * (40 + 5000 + 80));
    say_number("live_blocks", n - n / 2);
    say_end();
    return 0;
}
