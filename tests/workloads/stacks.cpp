/*
 * stacks MODE: leaks blocks from many call paths and prints, for each, its size and the stack as libgcc's own
 * unwinder sees it: "SIZE ADDRESS...", return addresses, the caller of the function that allocates first.
 *   paths    1,000 blocks from 500 random paths through functions of all shapes, in two threads
 *   signal   waits for a byte on stdin; then one block in a signal handler on an alternate stack
 *   deep     one block 200 calls deep
 *   silent   the same blocks as paths, and nothing is printed: for a debugger to see the stacks
 */
#include <alloca.h>
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

enum { MAX_DEPTH = 256, PATHS = 250 };

void *volatile kept;
volatile int sink;
thread_local uint32_t seed;
thread_local size_t size;
bool silent;

uint32_t next()
{
    seed ^= seed << 13;
    seed ^= seed >> 17;
    return seed ^= seed << 5;
}

__attribute__((noinline)) void allocate()
{
    if (silent) {
        kept = malloc(size++);
        return;
    }
    void *frames[MAX_DEPTH];
    int count = backtrace(frames, MAX_DEPTH);
    kept = malloc(size);
    std::string line = std::to_string(size++);
    for (int index = 1; index < count; index++) {
        char address[24];
        snprintf(address, sizeof address, " %p", frames[index]);
        line += address;
    }
    puts(line.c_str());
}

void step(int depth);

__attribute__((noinline)) void plain(int depth)
{
    step(depth);
    sink = depth;
}

__attribute__((noinline)) void large(int depth)
{
    volatile char frame[3000];
    frame[depth] = 1;
    step(depth);
    sink = frame[depth];
}

__attribute__((noinline)) void variable(int depth)
{
    char *frame = static_cast<char *>(alloca(64 + next() % 512));
    memset(frame, depth, 64);
    step(depth);
    sink = frame[depth % 64];
}

__attribute__((noinline)) void aligned(int depth)
{
    alignas(64) volatile char frame[128];
    frame[depth % 128] = 1;
    step(depth);
    sink = frame[depth % 128];
}

__attribute__((noinline)) void many(int a, int b, int c, int d, int e, int f, int g, int h, int depth)
{
    step(depth);
    sink = a + b + c + d + e + f + g + h;
}

int compare(const void *left, const void *)
{
    int depth = *static_cast<const int *>(left);
    if (depth >= 0)
        step(depth);
    return 0;
}

__attribute__((noinline)) void through_libc(int depth)
{
    int pair[2] = {depth, -1};
    qsort(pair, 2, sizeof pair[0], compare);
    sink = pair[0];
}

struct base {
    virtual ~base() = default;
    virtual void call(int depth) = 0;
};

struct derived : base {
    std::string held = "a string too long to be kept inside of it";
    __attribute__((noinline)) void call(int depth) override
    {
        step(depth);
        sink = static_cast<int>(held.size());
    }
};

__attribute__((noinline)) void through_virtual(int depth)
{
    derived object;
    base *volatile hidden = &object;
    hidden->call(depth);
}

__attribute__((noinline)) void step(int depth)
{
    if (depth == 0) {
        allocate();
        return;
    }
    switch (next() % 7) {
    case 0: plain(depth - 1); break;
    case 1: large(depth - 1); break;
    case 2: variable(depth - 1); break;
    case 3: aligned(depth - 1); break;
    case 4: many(1, 2, 3, 4, 5, 6, 7, 8, depth - 1); break;
    case 5: through_libc(depth - 1); break;
    default: through_virtual(depth - 1);
    }
    sink = depth;
}

void *paths(void *start)
{
    size = reinterpret_cast<uintptr_t>(start);
    for (uint32_t path = 1; path <= PATHS; path++)
        for (int twice = 0; twice < 2; twice++) {
            seed = path * 2654435761u;
            step(1 + static_cast<int>(path % 20));
        }
    return nullptr;
}

void handle(int) { allocate(); }

__attribute__((noinline)) void interrupted()
{
    raise(SIGUSR1);
    sink = 1;
}

__attribute__((noinline)) void deep(int depth)
{
    if (depth == 0)
        allocate();
    else
        deep(depth - 1);
    sink = depth;
}

}  // namespace

int main(int, char **arguments)
{
    std::string mode = arguments[1];
    size = 100000;
    silent = mode == "silent";
    if (mode == "paths" || silent) {
        paths(reinterpret_cast<void *>(uintptr_t{100000}));
        pthread_t thread;
        pthread_create(&thread, nullptr, paths, reinterpret_cast<void *>(uintptr_t{200000}));
        pthread_join(thread, nullptr);
    } else if (mode == "signal") {
        stack_t stack = {};
        stack.ss_size = 1 << 16;
        stack.ss_sp = malloc(stack.ss_size);
        sigaltstack(&stack, nullptr);
        struct sigaction action = {};
        action.sa_handler = handle;
        action.sa_flags = SA_ONSTACK;
        sigaction(SIGUSR1, &action, nullptr);
        getchar();
        interrupted();
    } else {
        deep(200);
    }
}
