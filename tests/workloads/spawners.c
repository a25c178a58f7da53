/* spawners PROGRAM: starts children in every way there is, with allocations all around; prints what failed. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "workload.h"

extern char **environ;
static void *volatile sink;
static char stack[1 << 16] __attribute__((aligned(16)));

static void allocate(void)
{
    for (int i = 0; i < 50; i++) {
        sink = malloc(100 + i);
        free(sink);
    }
}

static u64 reap(pid_t child, int expected)
{
    int status = -1;
    return child < 0 || waitpid(child, &status, __WALL) != child || status != expected << 8;
}

static u64 by_fork(void)
{
    pid_t child = fork();
    if (child == 0) {
        allocate();
        _exit(3);
    }
    return reap(child, 3);
}

static u64 by_vfork(char **arguments)
{
    pid_t child = vfork();
    if (child == 0) {
        execv(arguments[0], arguments);
        _exit(127);
    }
    return reap(child, 0);
}

static int in_clone(void *argument)
{
    (void)argument;
    allocate();
    return 4;
}

static u64 by_clone(int flags)
{
    return reap(clone(in_clone, stack + sizeof stack, flags, NULL), 4);
}

static u64 by_spawn(char **arguments)
{
    pid_t child;
    if (posix_spawn(&child, arguments[0], NULL, NULL, arguments, environ) != 0)
        return 1;
    return reap(child, 0);
}

static void *in_thread(void *argument)
{
    allocate();
    return argument;
}

static u64 by_thread(void)
{
    pthread_t thread;
    return pthread_create(&thread, NULL, in_thread, NULL) != 0 || pthread_join(thread, NULL) != 0;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        die("usage: spawners PROGRAM…");
    u64 forks = 0, vforks = 0, clones = 0, spawns = 0, threads = 0, systems = 0;
    for (int i = 0; i < 20; i++) {
        allocate();
        forks += by_fork();
        vforks += by_vfork(argv + 1);
        clones += by_clone(SIGCHLD) + by_clone(CLONE_VM | CLONE_VFORK | SIGCHLD);
        spawns += by_spawn(argv + 1);
        threads += by_thread();
        systems += system("exit 5") != 5 << 8;
    }
    say_number("fork", forks);
    say_number("vfork", vforks);
    say_number("clone", clones);
    say_number("spawn", spawns);
    say_number("thread", threads);
    say_number("system", systems);
    say_end();
    return 0;
}
