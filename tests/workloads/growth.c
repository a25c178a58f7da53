/*
 * growth LEAK PERIOD [threads]: leaks LEAK bytes each ten milliseconds from leak_request(), among caches. With `threads`
 * it is called by threads that live for a second each, and that another one starts which was there from the start on.
 *   warm_up()        fills 8 MiB, slower and slower
 *   refill()         maps 6 MiB bit by bit, then drops all of it and begins again, each PERIOD seconds
 *   replace_oldest() keeps 1000 blocks, of which it replaces some
 * Answers each byte on stdin with what was leaked by then and how often refill() began, until stdin ends.
 */
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "workload.h"

enum { BLOCKS = 1000, BLOCK = 5000, WARM = 8 << 20, REFILL = 6 << 20, PAGE = 4096 };

static void *volatile sink;
static char *blocks[BLOCKS];
static _Atomic u64 leaked;
static u64 refills;

__attribute__((noinline)) static void leak_request(size_t bytes)
{
    char *name = malloc(bytes);
    memset(name, 1, bytes);
    sink = name;
    leaked += bytes;
}

__attribute__((noinline)) static void replace_oldest(u64 turn)
{
    for (u64 i = 0; i < 10; i++) {
        char **block = &blocks[(turn * 10 + i) % BLOCKS];
        free(*block);
        *block = malloc(BLOCK);
        memset(*block, 2, BLOCK);
    }
}

__attribute__((noinline)) static void warm_up(u64 turn)
{
    static char *memory;
    static double filled;
    if (memory == NULL)
        memory = mmap(NULL, WARM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    double from = filled;
    filled += (WARM - filled) / 400;
    memset(memory + (size_t)from, (int)turn, (size_t)(filled - from));
}

__attribute__((noinline)) static void refill(u64 turn, u64 turns)
{
    static char *memory;
    u64 at = turn % turns;
    if (at == 0) {
        refills++;
        if (memory != NULL)
            munmap(memory, REFILL);
        memory = mmap(NULL, REFILL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    size_t from = REFILL / turns * at;
    memset(memory + from, 3, REFILL / turns);
}

static size_t size_of_leak;

static void *leaks_for_a_second(void *unused)
{
    struct timespec ten_ms = {.tv_nsec = 10000000};
    for (int i = 0; i < 100; i++) {
        leak_request(size_of_leak);
        nanosleep(&ten_ms, NULL);
    }
    return unused;
}

static void *starts_threads(void *unused)
{
    pthread_t thread;
    while (pthread_create(&thread, NULL, leaks_for_a_second, NULL) == 0)
        pthread_join(thread, NULL);
    return unused;
}

int main(int argc, char **argv)
{
    int threads = argc > 3;
    pthread_t thread;
    size_of_leak = argc > 1 ? decimal(argv[1]) : 0;
    u64 turns = (argc > 2 ? decimal(argv[2]) : 5) * 100;
    struct pollfd input = {.fd = 0, .events = POLLIN};
    if (threads && pthread_create(&thread, NULL, starts_threads, NULL) != 0)
        return 1;
    say("ready\n");
    say_flush();
    for (u64 turn = 0;; turn++) {
        char order;
        if (poll(&input, 1, 10) != 0) {
            if (read(0, &order, 1) != 1)
                return 0;
            say_number("leaked", leaked);
            say_number("refills", refills);
            say_end();
        }
        if (!threads)
            leak_request(size_of_leak);
        replace_oldest(turn);
        warm_up(turn);
        refill(turn, turns);
    }
}
