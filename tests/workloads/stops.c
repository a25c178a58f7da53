/* stops COMMAND…: waits for the command as a job-control shell does, and counts the stops it is told of. */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/wait.h>

#include "workload.h"

static volatile sig_atomic_t child_signals;

static void on_child(int signal)
{
    (void)signal;
    child_signals++;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        die("usage: stops COMMAND…");
    u64 stops = 0, continues = 0, ends = 0;
    struct sigaction action = {.sa_handler = on_child, .sa_flags = SA_RESTART};
    sigaction(SIGCHLD, &action, NULL);
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();
        if (child == 0) {
            execvp(argv[1], argv + 1);
            _exit(127);
        }
        int status = 0;
        while (waitpid(child, &status, WUNTRACED | WCONTINUED) == child && !WIFEXITED(status) && !WIFSIGNALED(status)) {
            stops += WIFSTOPPED(status);
            continues += WIFCONTINUED(status);
        }
        ends += WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    say_number("stops", stops);
    say_number("continues", continues);
    say_number("ends", ends);
    say_number("signals", child_signals);
    say_end();
    return 0;
}
