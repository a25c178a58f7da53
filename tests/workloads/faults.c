/* faults anonymous|scattered|kernel|file MIB [FILE]: page faults of one sort, and what the kernel counted. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "workload.h"

#define MIB ((size_t)1 << 20)
#define PAGE ((size_t)4096)

static char *map(size_t length)
{
    char *block = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED || madvise(block, length, MADV_NOHUGEPAGE) != 0)
        die("mmap failed");
    return block;
}

static void anonymous(size_t length)
{
    volatile char *block = map(length);
    for (size_t at = 0; at < length; at += PAGE)
        block[at] = 1;
}

/* In no order, over a range of 4 GiB that is given back whenever 128 MiB of it are touched. */
static void scattered(size_t length)
{
    size_t range = (size_t)4 << 30, pages = range / PAGE;
    volatile char *block = map(range);
    uint32_t at = 1;
    for (size_t touched = 0; touched < length; touched += PAGE) {
        if (touched % (128 * MIB) == 0 && madvise((void *)block, range, MADV_DONTNEED) != 0)
            die("madvise failed");
        /* Constants of Numerical Recipes: every page comes once in a period. */
        at = (at * 1664525 + 1013904223) % pages;
        block[at * PAGE] = 1;
    }
}

/* The kernel writes into fresh pages on the process's behalf. */
static void kernel(size_t length)
{
    int zero = open("/dev/zero", O_RDONLY);
    char *block = map(length);
    for (size_t at = 0; at < length; at += 16 * PAGE)
        if (read(zero, block + at, 16 * PAGE) != (ssize_t)(16 * PAGE))
            die("read failed");
}

/* Pages that are not in memory any more, each fetched by itself. */
static void file(size_t length, const char *path)
{
    int file = open(path, O_RDWR);
    if (file < 0 || fsync(file) != 0 || posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) != 0)
        die("cannot drop the file's pages");
    volatile char *block = mmap(NULL, length, PROT_READ, MAP_PRIVATE, file, 0);
    if (block == MAP_FAILED || madvise((void *)block, length, MADV_RANDOM) != 0)
        die("mmap of the file failed");
    for (size_t at = 0; at < length; at += 16 * PAGE)
        (void)block[at];
}

static u64 nanoseconds(struct timeval time)
{
    return (u64)time.tv_sec * 1000000000 + (u64)time.tv_usec * 1000;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        die("usage: faults KIND MIB [FILE]");
    size_t length = decimal(argv[2]) * MIB;
    if (strcmp(argv[1], "anonymous") == 0)
        anonymous(length);
    else if (strcmp(argv[1], "scattered") == 0)
        scattered(length);
    else if (strcmp(argv[1], "kernel") == 0)
        kernel(length);
    else if (argc > 3)
        file(length, argv[3]);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    say_number("pid", getpid());
    say_number("minor", usage.ru_minflt);
    say_number("major", usage.ru_majflt);
    say_number("system_ns", nanoseconds(usage.ru_stime));
    say_end();
    return 0;
}
