/*
 * storm: for each byte on stdin, 11,000 children, fifty at a time, each of which maps the program once more to execute
 * and is gone; then a line.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "workload.h"

enum { CHILDREN = 11000 };

int main(void)
{
    int program = open("/proc/self/exe", O_RDONLY), status;
    char order;
    while (read(0, &order, 1) == 1) {
        for (int i = 0; i < CHILDREN; i++) {
            pid_t pid = fork();
            if (pid < 0)
                die("fork failed");
            if (pid == 0)
                _exit(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, program, 0) == MAP_FAILED);
            if (i >= 50 && (waitpid(-1, &status, 0) < 0 || status != 0))
                die("a child failed");
        }
        while (waitpid(-1, &status, 0) > 0)
            if (status != 0)
                die("a child failed");
        say("done\n");
        say_flush();
    }
    return 0;
}
