/*
 * children N fork|exec: N children, fifty at a time; each allocates ten blocks and is gone. With exec they are the
 * program anew, else they inherit the parent's five blocks.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/wait.h>

#include "workload.h"

static void *volatile sink;

static void allocate(int count)
{
    for (int i = 0; i < count; i++)
        sink = malloc(100);
}

static void child(int again, char *self)
{
    if (again) {
        execl(self, self, "child", (char *)NULL);
        _exit(127);
    }
    allocate(10);
    _exit(0);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "child") == 0) {
        allocate(10);
        return 0;
    }
    if (argc != 3)
        die("usage: children N fork|exec");
    u64 n = decimal(argv[1]), failed = 0;
    int again = strcmp(argv[2], "exec") == 0, status;
    allocate(5);
    for (u64 i = 0; i < n; i++) {
        pid_t pid = fork();
        if (pid == 0)
            child(again, argv[0]);
        failed += pid < 0;
        if (i >= 50) {
            waitpid(-1, &status, 0);
            failed += status != 0;
        }
    }
    while (waitpid(-1, &status, 0) > 0)
        failed += status != 0;
    say_number("pid", getpid());
    say_number("failed", failed);
    say_end();
    return 0;
}
