/*
 * heap THREADS CALLS: every thread makes CALLS calls of the malloc family and counts what memtrace should.
 * THREADS 0 works in the main thread. With CALLS 0 it does all the rest, which calibrates what libc allocates itself.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>

#include "workload.h"

enum { MAX_THREADS = 1000, SLOTS = 64 };

struct counts {
    u64 calls, allocations, frees, reallocations, failed, bytes, blocks, live, peak;
};

struct slot {
    void *block;
    size_t size;
};

struct worker {
    pthread_t thread;
    struct counts counts;
    struct slot slots[SLOTS];
    uint32_t seed;
    u64 calls;
};

static struct worker workers[MAX_THREADS];
static pthread_barrier_t started;
/* Volatile, or the compiler warns of sizes that cannot be had. */
static volatile size_t huge = SIZE_MAX / 4;

static uint32_t next(struct worker *worker)
{
    worker->seed ^= worker->seed << 13;
    worker->seed ^= worker->seed >> 17;
    return worker->seed ^= worker->seed << 5;
}

static size_t some_size(struct worker *worker)
{
    uint32_t kind = next(worker) % 64;
    /* Small, middling, and a few above the threshold from where malloc maps. */
    return next(worker) % (kind == 0 ? 300000 : kind < 8 ? 8000 : 300);
}

static void *allocate(struct worker *worker, size_t *size)
{
    void *block = NULL;
    switch (next(worker) % 10) {
    case 0: return malloc(*size);
    case 1: return calloc(1, *size);
    case 2: *size &= ~(size_t)7; return calloc(*size / 8, 8);
    case 3: return realloc(NULL, *size);
    case 4: *size &= ~(size_t)3; return reallocarray(NULL, *size / 4, 4);
    case 5: return posix_memalign(&block, 8u << next(worker) % 8, *size) == 0 ? block : NULL;
    case 6: return aligned_alloc(64, *size);
    case 7: return memalign(8u << next(worker) % 10, *size);
    case 8: return valloc(*size);
    default: return pvalloc(*size);
    }
}

static void fail(struct worker *worker, struct slot *slot)
{
    void *block = NULL;
    switch (next(worker) % 6) {
    case 0: block = malloc(huge * 3); break;
    case 1: block = calloc(huge, 16); break;
    case 2: block = slot->block ? realloc(slot->block, huge * 3) : NULL; break;
    case 3: block = slot->block ? reallocarray(slot->block, huge, 16) : NULL; break;
    case 4: block = posix_memalign(&block, 64, huge * 3) == 0 ? block : NULL; break;
    default: block = memalign(64, huge * 3); break;
    }
    if (block)
        die("a huge allocation succeeded");
}

static void grow(struct counts *counts, size_t size)
{
    counts->bytes += size;
    counts->live += size;
    if (counts->live > counts->peak)
        counts->peak = counts->live;
}

static void shrink(struct counts *counts, struct slot *slot)
{
    counts->live -= slot->size;
    counts->blocks--;
    counts->frees++;
    slot->block = NULL;
}

static void reallocate(struct worker *worker, struct slot *slot)
{
    size_t size = some_size(worker) + 1;
    void *block = next(worker) % 4 ? realloc(slot->block, size) : reallocarray(slot->block, size, 1);
    if (!block)
        die("realloc failed");
    worker->counts.live -= slot->size;
    worker->counts.reallocations++;
    grow(&worker->counts, size);
    *slot = (struct slot){block, size};
}

static void fill(struct worker *worker, struct slot *slot)
{
    size_t size = some_size(worker);
    void *block = allocate(worker, &size);
    if (!block)
        die("an allocation failed");
    worker->counts.allocations++;
    worker->counts.blocks++;
    grow(&worker->counts, size);
    *slot = (struct slot){block, size};
}

static void step(struct worker *worker)
{
    struct slot *slot = &worker->slots[next(worker) % SLOTS];
    uint32_t what = next(worker) % 32;
    worker->counts.calls++;
    if (what == 0) {
        free(NULL);
    } else if (what == 1 && slot->block) {
        worker->counts.failed++;
        fail(worker, slot);
    } else if (what == 2 && slot->block) {
        /* Frees, in glibc. */
        if (realloc(slot->block, 0))
            die("realloc(p, 0) gave a block");
        shrink(&worker->counts, slot);
    } else if (!slot->block) {
        fill(worker, slot);
    } else if (what < 12) {
        reallocate(worker, slot);
    } else {
        free(slot->block);
        shrink(&worker->counts, slot);
    }
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    /* All alive at once, so that libc sets up as many threads in every run, however fast they end. */
    pthread_barrier_wait(&started);
    for (u64 call = 0; call < worker->calls; call++)
        step(worker);
    return NULL;
}

static void report(u64 threads)
{
    struct counts sum = {0};
    for (u64 i = 0; i < (threads ? threads : 1); i++) {
        struct counts *counts = &workers[i].counts;
        sum.calls += counts->calls;
        sum.allocations += counts->allocations;
        sum.frees += counts->frees;
        sum.reallocations += counts->reallocations;
        sum.failed += counts->failed;
        sum.bytes += counts->bytes;
        sum.blocks += counts->blocks;
        sum.live += counts->live;
        sum.peak += counts->peak;
    }
    say_number("pid", getpid());
    say_number("calls", sum.calls);
    say_number("allocations", sum.allocations);
    say_number("frees", sum.frees);
    say_number("reallocations", sum.reallocations);
    say_number("failed", sum.failed);
    say_number("bytes_allocated", sum.bytes);
    say_number("live_blocks", sum.blocks);
    say_number("live_bytes", sum.live);
    say_number("peak_live_bytes", sum.peak);
    say_end();
}

int main(int argc, char **argv)
{
    if (argc != 3)
        die("usage: heap THREADS CALLS");
    u64 threads = decimal(argv[1]), calls = decimal(argv[2]);
    if (threads > MAX_THREADS)
        die("too many threads");
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 << 10);
    pthread_barrier_init(&started, NULL, threads ? threads : 1);
    for (u64 i = 0; i < (threads ? threads : 1); i++) {
        workers[i].seed = 2463534242u + 7919 * i;
        workers[i].calls = calls;
        if (threads && pthread_create(&workers[i].thread, &attributes, work, &workers[i]) != 0)
            die("pthread_create failed");
    }
    if (!threads)
        work(&workers[0]);
    for (u64 i = 0; i < threads; i++)
        pthread_join(workers[i].thread, NULL);
    report(threads);
    return 0;
}
