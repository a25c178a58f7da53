/*
 * What one operation costs, by the CPU clock of the threads that do it. Every form waits for a line on its input
 * before it works, so that a tool can attach itself, and prints {"operations", "cpu_ns", "wall_ns"}.
 *
 * cost pairs SIZE THREADS IDLE CALLS  CALLS pairs of malloc and free in each of THREADS, beside IDLE threads that wait
 * cost deep FRAMES CALLS              the same on a stack of FRAMES frames
 * cost paths FRAMES PATHS CALLS       the same on PATHS such stacks in turn, at most 2 to the power of FRAMES
 * cost live BLOCKS CALLS              CALLS pairs, each of the oldest of BLOCKS live blocks and a new one
 * cost faults PAGES ROUNDS            first touches of fresh anonymous memory
 * cost maps CALLS                     pairs of mmap and munmap of 64 KiB, untouched
 * cost calls CALLS                    getppid(2)
 * cost pace RATE SECONDS              pairs at RATE events a second, two threads
 * cost tree COMMAND…                  the command and all that it starts: one operation
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "workload.h"

enum { MAX_THREADS = 64 };

struct worker {
    pthread_t thread;
    u64 size, calls, cpu_ns;
};

static u64 clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static u64 cpu(void) { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }
static u64 wall(void) { return clock_ns(CLOCK_MONOTONIC); }

static void wait_for_a_line(void)
{
    char byte;
    if (write(1, "ready\n", 6) != 6)
        _exit(98);
    while (read(0, &byte, 1) == 1 && byte != '\n')
        ;
}

static void tell(u64 operations, u64 cpu_ns, u64 wall_ns)
{
    say_number("operations", operations);
    say_number("cpu_ns", cpu_ns);
    say_number("wall_ns", wall_ns);
    say_end();
}

/* Not inlined and not optimised to nothing: the pair is to happen. */
__attribute__((noinline)) static void pair(u64 size)
{
    void *block = malloc(size);
    __asm__ volatile("" : : "r"(block) : "memory");
    free(block);
}

static void *pairs(void *argument)
{
    struct worker *worker = argument;
    u64 start = cpu();
    for (u64 call = 0; call < worker->calls; call++)
        pair(worker->size);
    worker->cpu_ns = cpu() - start;
    return NULL;
}

static void *idle(void *argument)
{
    (void)argument;
    for (;;)
        pause();
    return NULL;
}

static void start_idle(u64 count)
{
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (u64 thread = 0; thread < count; thread++) {
        pthread_t handle;
        if (pthread_create(&handle, &small, idle, NULL) != 0)
            die("cannot start a thread");
    }
}

static void run_pairs(u64 size, u64 threads, u64 idle_threads, u64 calls)
{
    static struct worker workers[MAX_THREADS];
    u64 cpu_ns = 0;
    if (threads == 0 || threads > MAX_THREADS)
        die("1 to 64 threads");
    start_idle(idle_threads);
    wait_for_a_line();
    u64 start = wall();
    for (u64 at = 0; at < threads; at++) {
        workers[at].size = size;
        workers[at].calls = calls;
        if (at > 0 && pthread_create(&workers[at].thread, NULL, pairs, &workers[at]) != 0)
            die("cannot start a thread");
    }
    pairs(&workers[0]);
    for (u64 at = 0; at < threads; at++) {
        if (at > 0)
            pthread_join(workers[at].thread, NULL);
        cpu_ns += workers[at].cpu_ns;
    }
    tell(calls * threads, cpu_ns, wall() - start);
}

/* The assembly keeps the recursion from becoming a loop. */
__attribute__((noinline)) static void deep(u64 frames, struct worker *worker)
{
    if (frames > 0)
        deep(frames - 1, worker);
    else
        pairs(worker);
    __asm__ volatile("");
}

static void run_deep(u64 frames, u64 calls)
{
    struct worker worker = { .size = 64, .calls = calls };
    wait_for_a_line();
    u64 start = wall();
    deep(frames, &worker);
    tell(calls, worker.cpu_ns, wall() - start);
}

/* Each bit of the path decides which of two calls goes on; what follows each keeps them from becoming one. */
__attribute__((noinline)) static void way(u64 frames, u64 path)
{
    if (frames == 0) {
        pair(64);
    } else if (path & 1) {
        way(frames - 1, path >> 1);
        __asm__ volatile("nop");
    } else {
        way(frames - 1, path >> 1);
        __asm__ volatile("nop; nop");
    }
    __asm__ volatile("");
}

static void run_paths(u64 frames, u64 paths, u64 calls)
{
    if (frames > 30 || paths == 0 || paths > 1ull << frames)
        die("more paths than there are");
    wait_for_a_line();
    u64 wall_start = wall(), start = cpu();
    for (u64 call = 0; call < calls; call++)
        way(frames, call % paths);
    tell(calls, cpu() - start, wall() - wall_start);
}

static void run_live(u64 blocks, u64 calls)
{
    void **live = calloc(blocks, sizeof *live);
    if (live == NULL)
        die("no memory");
    for (u64 at = 0; at < blocks; at++)
        live[at] = malloc(16 + at % 64);
    wait_for_a_line();
    u64 wall_start = wall(), start = cpu();
    for (u64 call = 0; call < calls; call++) {
        u64 at = call % blocks;
        free(live[at]);
        live[at] = malloc(16 + call % 64);
    }
    tell(calls, cpu() - start, wall() - wall_start);
}

static void run_faults(u64 pages, u64 rounds)
{
    u64 cpu_ns = 0;
    wait_for_a_line();
    u64 wall_start = wall();
    for (u64 round = 0; round < rounds; round++) {
        char *area = mmap(NULL, pages << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED)
            die("no memory");
        u64 start = cpu();
        for (u64 page = 0; page < pages; page++)
            ((volatile char *)area)[page << 12] = 1;
        cpu_ns += cpu() - start;
        munmap(area, pages << 12);
    }
    tell(pages * rounds, cpu_ns, wall() - wall_start);
}

static void run_maps(u64 calls)
{
    wait_for_a_line();
    u64 wall_start = wall(), start = cpu();
    for (u64 call = 0; call < calls; call++) {
        void *area = mmap(NULL, 64 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(area, 64 << 10);
    }
    tell(calls, cpu() - start, wall() - wall_start);
}

static void run_calls(u64 calls)
{
    wait_for_a_line();
    u64 wall_start = wall(), start = cpu();
    for (u64 call = 0; call < calls; call++)
        syscall(SYS_getppid);
    tell(calls, cpu() - start, wall() - wall_start);
}

struct pace {
    u64 rate, seconds, calls, cpu_ns;
};

/* As many pairs as the rate asks for by now, then a millisecond's rest. A traced thread that cannot keep up does
 * what it can. */
static void *pace(void *argument)
{
    struct pace *pace = argument;
    u64 start = wall(), began = cpu(), now;
    while ((now = wall()) - start < pace->seconds * 1000000000ull) {
        u64 due = (now - start) / 1000 * pace->rate / 1000000 / 2;
        for (u64 burst = 0; pace->calls < due && burst < 10000; burst++, pace->calls++)
            pair(64);
        struct timespec rest = { 0, 1000000 };
        nanosleep(&rest, NULL);
    }
    pace->cpu_ns = cpu() - began;
    return NULL;
}

static void run_pace(u64 rate, u64 seconds)
{
    struct pace halves[2] = { { rate / 2, seconds, 0, 0 }, { rate / 2, seconds, 0, 0 } };
    pthread_t other;
    wait_for_a_line();
    u64 start = wall();
    if (pthread_create(&other, NULL, pace, &halves[1]) != 0)
        die("cannot start a thread");
    pace(&halves[0]);
    pthread_join(other, NULL);
    tell(halves[0].calls + halves[1].calls, halves[0].cpu_ns + halves[1].cpu_ns, wall() - start);
}

static u64 of_children(void)
{
    struct rusage usage;
    getrusage(RUSAGE_CHILDREN, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000ull
           + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000ull;
}

static void run_tree(char **command)
{
    wait_for_a_line();
    u64 start = wall();
    pid_t child = fork();
    if (child == 0) {
        execvp(command[0], command);
        _exit(127);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        die("the command failed");
    tell(1, of_children(), wall() - start);
}

int main(int argc, char **argv)
{
    u64 number[4] = { 0 };
    for (int at = 2; at < argc && at < 6; at++)
        number[at - 2] = decimal(argv[at]);
    const char *form = argc > 2 ? argv[1] : "";
    if (strcmp(form, "pairs") == 0)
        run_pairs(number[0], number[1], number[2], number[3]);
    else if (strcmp(form, "deep") == 0)
        run_deep(number[0], number[1]);
    else if (strcmp(form, "paths") == 0)
        run_paths(number[0], number[1], number[2]);
    else if (strcmp(form, "live") == 0 && number[0] > 0)
        run_live(number[0], number[1]);
    else if (strcmp(form, "faults") == 0)
        run_faults(number[0], number[1]);
    else if (strcmp(form, "maps") == 0)
        run_maps(number[0]);
    else if (strcmp(form, "calls") == 0)
        run_calls(number[0]);
    else if (strcmp(form, "pace") == 0)
        run_pace(number[0], number[1]);
    else if (strcmp(form, "tree") == 0)
        run_tree(argv + 2);
    else
        die("cost FORM ARGUMENTS…: the forms are at the top of cost.c");
    _exit(0);
}
