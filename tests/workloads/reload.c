/*
 * reload N LIBRARY FUNCTION LIBRARY FUNCTION…: N times, loads the first library, leaks a block of 1,000 bytes through
 * its function, unloads it, and does the same with 1,001 bytes and the second, which comes to lie at the same place,
 * and so on. Prints how often one came to lie where the first did.
 */
#include <dlfcn.h>
#include <stdlib.h>

#include "workload.h"

static size_t size;
static void *volatile kept;

static void leak(void) { kept = malloc(size); }

__attribute__((noinline)) static void *through(const char *path, const char *name)
{
    void *library = dlopen(path, RTLD_NOW);
    if (!library)
        die("dlopen failed");
    void (*function)(void (*)(void)) = (void (*)(void (*)(void)))dlsym(library, name);
    if (!function)
        die("no such function");
    function(leak);
    if (dlclose(library) != 0)
        die("dlclose failed");
    return (void *)function;
}

int main(int argc, char **argv)
{
    if (argc < 6 || argc % 2 != 0)
        die("usage: reload N LIBRARY FUNCTION LIBRARY FUNCTION…");
    u64 same = 0;
    for (u64 turn = decimal(argv[1]); turn > 0; turn--) {
        size = 1000;
        void *first = through(argv[2], argv[3]);
        for (int at = 4; at < argc; at += 2) {
            size++;
            same += through(argv[at], argv[at + 1]) == first;
        }
    }
    say_number("same", same);
    say_end();
    return 0;
}
