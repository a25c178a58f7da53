/* lazy SCENARIO [FILE]: one way to reserve and commit memory; prints what smaps says about it at the end. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>

#include "smaps.h"

#define MIB ((size_t)1 << 20)
#define PAGE ((size_t)4096)

static void touch(char *from, size_t length, size_t step)
{
    for (size_t at = 0; at < length; at += step)
        ((volatile char *)from)[at] = 1;
}

static char *map(size_t length, int flags)
{
    char *block = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (block == MAP_FAILED)
        die("mmap failed");
    return block;
}

static char *anonymous(size_t length)
{
    return map(length, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
}

static void ten_gib(void)
{
    /* Where they are given unasked, the last huge page would reach beyond what is touched. */
    if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0)
        die("prctl failed");
    char *block = malloc(10240 * MIB);
    if (!block)
        die("malloc of 10 GiB failed");
    touch(block, 100 * MIB, PAGE);
}

static void dontneed(void)
{
    char *block = anonymous(512 * MIB);
    touch(block, 256 * MIB, PAGE);
    if (madvise(block + 50 * MIB, 100 * MIB, MADV_DONTNEED) != 0)
        die("madvise failed");
}

static void mremap_growth(void)
{
    char *block = anonymous(32 * MIB);
    touch(block, 32 * MIB, PAGE);
    /* A neighbour, so that it has to move. */
    block = mremap(block, 32 * MIB, 512 * MIB, MREMAP_MAYMOVE);
    if (block == MAP_FAILED)
        die("mremap failed");
    touch(block + 64 * MIB, 96 * MIB, PAGE);
}

static void realloc_growth(void)
{
    char *block = malloc(32 * MIB);
    touch(block, 32 * MIB, PAGE);
    block = realloc(block, 512 * MIB);
    if (!block)
        die("realloc failed");
    touch(block + 64 * MIB, 96 * MIB, PAGE);
}

static void program_break(void)
{
    char *block = sbrk(256 * MIB);
    if (block == (void *)-1)
        die("sbrk failed");
    touch(block, 128 * MIB, PAGE);
}

static void copy_on_write(void)
{
    char *block = anonymous(192 * MIB);
    touch(block, 128 * MIB, PAGE);
    pid_t child = fork();
    if (child == 0) {
        touch(block, 32 * MIB, PAGE);
        touch(block + 128 * MIB, 32 * MIB, PAGE);
        if (madvise(block + 64 * MIB, 16 * MIB, MADV_DONTNEED) != 0)
            die("madvise failed");
        say_smaps();
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status != 0)
        die("the child failed");
}

static void populate(void)
{
    map(128 * MIB, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE);
    anonymous(128 * MIB);
}

static void huge_pages(void)
{
    char *block = anonymous(132 * MIB);
    block = (char *)(((uintptr_t)block + 2 * MIB - 1) & ~(2 * MIB - 1));
    if (madvise(block, 128 * MIB, MADV_HUGEPAGE) != 0)
        die("madvise failed");
    touch(block, 128 * MIB, 2 * MIB);
}

/* A half of what was touched goes to swap, and a quarter of that comes back. */
static void paged_out(void)
{
    char *block = anonymous(256 * MIB);
    touch(block, 128 * MIB, PAGE);
    if (madvise(block, 64 * MIB, MADV_PAGEOUT) != 0)
        die("madvise failed");
    touch(block, 16 * MIB, PAGE);
}

/* Touches more than its control group may have, and lifts that limit: from here on the kernel takes nothing away, and
   what smaps says stays true to the end. */
static void over_limit(const char *limit)
{
    program_break();
    int file = open(limit, O_WRONLY);
    if (file < 0 || write(file, "max", 3) != 3)
        die("the limit cannot be lifted");
    close(file);
}

static void file_read(const char *path)
{
    int file = open(path, O_RDONLY);
    off_t length = file < 0 ? 0 : lseek(file, 0, SEEK_END);
    char *block = mmap(NULL, length, PROT_READ, MAP_PRIVATE, file, 0);
    u64 sum = 0;
    if (block == MAP_FAILED)
        die("mmap of the file failed");
    for (off_t at = 0; at < length / 2; at += PAGE)
        sum += block[at];
    if (sum == 0)
        die("the file has nothing in it");
}

static void shared(void)
{
    int file = memfd_create("shared", 0);
    if (file < 0 || ftruncate(file, 128 * MIB) != 0)
        die("memfd_create failed");
    char *block = mmap(NULL, 128 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (block == MAP_FAILED)
        die("mmap of the memfd failed");
    touch(block, 64 * MIB, PAGE);

    int segment = shmget(IPC_PRIVATE, 96 * MIB, IPC_CREAT | 0600);
    block = shmat(segment, NULL, 0);
    /* Goes with its last user, however that ends. */
    shmctl(segment, IPC_RMID, NULL);
    if (block == (void *)-1)
        die("shmat failed");
    touch(block, 48 * MIB, PAGE);
    block = shmat(segment, NULL, 0);
    if (block == (void *)-1 || shmdt(block) != 0)
        die("shmdt failed");
}

int main(int argc, char **argv)
{
    const char *scenario = argc > 1 ? argv[1] : "";
    static const struct {
        const char *name;
        void (*act)(void);
    } scenarios[] = {
        {"ten-gib", ten_gib},       {"dontneed", dontneed},           {"mremap", mremap_growth},
        {"realloc", realloc_growth}, {"program-break", program_break}, {"copy-on-write", copy_on_write},
        {"populate", populate},     {"huge-pages", huge_pages},       {"shared", shared},
        {"paged-out", paged_out},
    };
    if (argc == 3 && (strcmp(scenario, "file") == 0 || strcmp(scenario, "over-limit") == 0)) {
        (scenario[0] == 'f' ? file_read : over_limit)(argv[2]);
        say_smaps();
        return 0;
    }
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
        if (strcmp(scenario, scenarios[i].name) == 0) {
            scenarios[i].act();
            say_smaps();
            return 0;
        }
    die("no such scenario");
}
