/* rusage COMMAND…: runs a command as its child; its last line says what the kernel counted for that tree. */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/wait.h>

#include "workload.h"

int main(int argc, char **argv)
{
    if (argc < 2)
        die("usage: rusage COMMAND…");
    pid_t child = vfork();
    if (child == 0) {
        execvp(argv[1], argv + 1);
        _exit(127);
    }
    struct rusage usage;
    int status;
    if (wait4(child, &status, 0, &usage) != child)
        die("wait4 failed");
    say_number("pid", getpid());
    say_number("status", status);
    say_number("minor", usage.ru_minflt);
    say_number("major", usage.ru_majflt);
    say_end();
    return 0;
}
