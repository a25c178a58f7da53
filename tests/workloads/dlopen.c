/* dlopen LIBRARY PREFIX N: loads an allocator when it already runs, and calls it by its own names. */
#include <dlfcn.h>

#include "workload.h"

static void *function(void *library, const char *prefix, const char *name)
{
    char whole[64];
    strcpy(whole, prefix);
    strcat(whole, name);
    void *address = dlsym(library, whole);
    if (!address)
        die("no such function");
    return address;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        die("usage: dlopen LIBRARY PREFIX N");
    u64 n = decimal(argv[3]);
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library)
        die("dlopen failed");
    void *(*allocate)(size_t) = function(library, argv[2], "malloc");
    void *(*reallocate)(void *, size_t) = function(library, argv[2], "realloc");
    void (*release)(void *) = function(library, argv[2], "free");
    for (u64 i = 0; i < n; i++) {
        void *block = reallocate(allocate(100), 5000);
        if (i % 2)
            release(block);
    }
    say_number("pid", getpid());
    say_number("allocations", n);
    say_number("reallocations", n);
    say_number("frees", n / 2);
    say_number("bytes_allocated", n * 5100);
    say_number("live_blocks", n - n / 2);
    say_end();
    return 0;
}
